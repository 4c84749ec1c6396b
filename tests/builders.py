# SPDX-License-Identifier: Apache-2.0
"""Values for tests with every field filled in; a test names only what it is about."""

from collections.abc import Mapping
from typing import Any

from autoscaler.core.decide import ServiceMemory, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import RateRule, ServicePolicy, Target
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.signals import (
    NoReading,
    Reading,
    ServiceId,
    ServiceSnapshot,
    Signal,
)

A_SERVICE = ServiceId("local", "iris")


def a_policy(**changes: object) -> ServicePolicy:
    """Concurrency 8 a replica, 0 to 10 replicas, sleep after 60 s, no tolerance."""
    fields: dict[str, object] = {
        "targets": (Target(Signal.CONCURRENCY, 8.0),),
        "max_replicas": 10,
        "scale_to_zero_after": 60.0,
        "scale_up": RateRule(window_s=0.0),
        "scale_down": RateRule(window_s=60.0),
    }
    return ServicePolicy(**(fields | changes))  # type: ignore[arg-type]


def a_reading(value: float, *, at_s: float = 0.0, share_ratio: float = 1.0) -> Reading:
    return Reading(value, at_s, "test", share_ratio)


def replicas(ready: int = 0, starting: int = 0, *, since_s: float = 0.0) -> tuple[Replica, ...]:
    """`ready` and `starting` replicas, all asked for at `since_s`."""
    return tuple(
        Replica(f"r{n}", ReplicaState.READY, since_s, since_s) for n in range(ready)
    ) + tuple(
        Replica(f"r{n}", ReplicaState.STARTING, since_s) for n in range(ready, ready + starting)
    )


def a_snapshot(
    *,
    at_s: float = 0.0,
    scale: int = 1,
    ready: int | None = None,
    measures: Mapping[Any, Reading | NoReading] | None = None,
    path_held: bool = True,
    in_path: bool = True,
    written_by: str = "",
) -> ServiceSnapshot:
    """A service with `scale` replicas, all ready, of which nothing was measured."""
    return ServiceSnapshot(
        service=A_SERVICE,
        at_s=at_s,
        generation=1,
        scale=scale,
        replicas=replicas(scale if ready is None else ready),
        measures=measures or {},
        path_held=path_held,
        in_path=in_path,
        written_by=written_by,
    )


def a_memory(
    snapshot: ServiceSnapshot | None = None, *, lead_times: LeadTimes | None = None
) -> ServiceMemory:
    return first_memory(snapshot or a_snapshot(), lead_times or LeadTimes())
