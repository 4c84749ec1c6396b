# SPDX-License-Identifier: Apache-2.0
"""What a target in PromQL means for one service. Pure.

What one of three pods says must never pass for the whole (rule D1).
"""

import re
from collections.abc import Collection, Sequence

from autoscaler.adapters.prometheus.client import Sample
from autoscaler.adapters.prometheus.queries import place_of
from autoscaler.core.signals import NoReading, Query, ServiceId


def filled(query: Query, service: ServiceId) -> str:
    """The query with the service's own names in place of `$NAMESPACE` and `$NAME`."""
    names = {"NAMESPACE": service.namespace, "NAME": service.name}
    return re.sub(r"\$(NAMESPACE|NAME)\b", lambda found: names[found[1]], query.promql)


def value_for(
    service: ServiceId, samples: Sequence[Sample], *, pods: Collection[str]
) -> tuple[float, float] | NoReading:
    """The value of a user's query for one service, and the share of the pods it speaks for.

    A series that names a pod of the service's namespace speaks for that pod alone.
    """
    if not samples:
        return NoReading("the query gives no series")
    placed = [(*place_of(sample.labels), sample.value) for sample in samples]
    near = [
        (pod, value) for where, pod, value in placed if pod and where in ("", service.namespace)
    ]
    ours = [(pod, value) for pod, value in near if pod in pods]
    if ours:
        speaking = {pod for pod, _ in ours}
        return sum(value for _, value in ours), len(speaking) / len(pods)
    if len(samples) > 1:
        return NoReading(f"the query gave {len(samples)} series; aggregate it with sum()")
    if near:
        return NoReading(
            f"the query gave one series of {near[0][0]}, which is none of the service's ready "
            f"pods; wrap it in sum() if it speaks for the whole service"
        )
    return samples[0].value, 1.0
