# SPDX-License-Identifier: Apache-2.0
"""How long idle is worth keeping before a service goes to sleep."""

from autoscaler.core.policy import Idle, InPath, ServicePolicy
from autoscaler.core.signals import Measure, Measures, NoReading, Reading

SHORTEST_AUTO_S = 60.0
LONGEST_AUTO_S = 3600.0


def keepalive_s(policy: ServicePolicy, *, lead_time_s: float | None) -> float | None:
    """Seconds of proven idleness before sleep; None: this service never sleeps.

    `auto` is the break-even rule of the rented ski: stay awake idle for as long as waking costs,
    and the bill is never more than twice that of knowing the future. A start occupies its GPU for
    the lead time, so the lead time it is, within a minute and an hour.
    """
    if policy.min_replicas > 0 or policy.scale_to_zero_after is Idle.NEVER:
        return None
    if policy.activator is InPath.NEVER:
        return None
    if isinstance(policy.scale_to_zero_after, Idle):
        return min(max(lead_time_s or 0.0, SHORTEST_AUTO_S), LONGEST_AUTO_S)
    return policy.scale_to_zero_after


def is_quiet(measures: Measures, *, requests_before: float | None) -> bool:
    """Whether it is proven that nothing is held, waits or runs, and nothing came since last time.

    Rule D6: all of that is activity. Rule D1: what could not be read, or speaks for only a part of
    the replicas, proves nothing; so does a first look.
    """
    for measure in (Measure.HELD, Measure.IN_FLIGHT, Measure.REQUESTS_TOTAL):
        if measure not in measures:
            return False
    for measure in (Measure.HELD, Measure.WAITING):
        if measure in measures and not _is_nought(measures[measure]):
            return False
    if not _is_nought(measures[Measure.IN_FLIGHT]) and not _does_nothing(measures):
        return False
    arrived = measures[Measure.REQUESTS_TOTAL]
    return not isinstance(arrived, NoReading) and arrived.value == requests_before


def _is_nought(seen: Reading | NoReading) -> bool:
    return isinstance(seen, Reading) and seen.share_ratio == 1.0 and seen.value == 0


def _does_nothing(measures: Measures) -> bool:
    """Whether replicas that cannot tell what is in flight do not work, nor activators wait."""
    known = measures[Measure.IN_FLIGHT]
    working = measures.get(Measure.WORKING)
    return (
        isinstance(known, Reading)
        and known.value == 0
        and working is not None
        and _is_nought(working)
    )
