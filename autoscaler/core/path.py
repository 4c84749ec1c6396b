# SPDX-License-Identifier: Apache-2.0
"""Whether the activator should stand in a service's path: while it is needed, and no longer."""

from autoscaler.core.policy import InPath, ServicePolicy
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.signals import Measure, NoReading, Reading, ServiceSnapshot
from autoscaler.core.zero import ZeroState

# kube-proxy takes up to a second to hear of a ready replica; twice that, and a slow one has too.
SETTLED_S = 2.0
# A scrape that fails now and then is no reason to change a path; an engine that tells nothing is.
BLIND_AFTER_S = 10.0
BLIND = "no replica tells how busy it is"


def is_blind(snapshot: ServiceSnapshot) -> bool:
    """Whether replicas serve and none tells how much: only the activator's share is seen."""
    seen = snapshot.measures.get(Measure.IN_FLIGHT)
    return _ready(snapshot) > 0 and isinstance(seen, Reading) and seen.share_ratio == 0.0


def why_in_path(
    snapshot: ServiceSnapshot,
    policy: ServicePolicy,
    state: ZeroState,
    *,
    count: int,
    active_s: float,
    blind_s: float,
) -> str | None:
    """Why the activator should stand in the path; None: clients are better off without it.

    `count`: the replicas just decided; `active_s`, `blind_s`: for how long that has been so.
    """
    if policy.activator is InPath.NEVER:
        return None
    if policy.activator is InPath.ALWAYS:
        return "activator=always"
    if state is not ZeroState.ACTIVE:
        return f"the service is {state}"
    if blind_s >= BLIND_AFTER_S:
        return BLIND
    if not snapshot.in_path:
        return None
    held = snapshot.measures.get(Measure.HELD)
    if isinstance(held, NoReading) or (held is not None and held.value > 0):
        return "requests are held, or nobody can say"
    if active_s < SETTLED_S or _ready(snapshot) < min(count, snapshot.scale):
        return "its replicas are not all ready yet"
    return None


def _ready(snapshot: ServiceSnapshot) -> int:
    return sum(replica.state is ReplicaState.READY for replica in snapshot.replicas)
