# SPDX-License-Identifier: Apache-2.0
"""Rule D5: a count that somebody else set is respected; a 0 for good, others for a while."""

from dataclasses import replace

import pytest

from autoscaler.core.decide import COOL_OFF_S, Decision, ServiceMemory, decide
from autoscaler.core.signals import Measure, NoReading, Reading
from autoscaler.core.zero import ZeroState
from tests.builders import a_memory, a_policy, a_reading, a_snapshot, replicas

POLICY = a_policy(max_replicas=5)


def held(requests: float, at_s: float) -> dict[Measure, Reading | NoReading]:
    return {m: a_reading(requests if m is Measure.HELD else 0.0, at_s=at_s) for m in Measure}


def look(
    memory: ServiceMemory, *, at_s: float, scale: int, by: str = "", waiting: float = 0.0
) -> tuple[Decision, ServiceMemory]:
    snapshot = a_snapshot(at_s=at_s, scale=scale, written_by=by, measures=held(waiting, at_s))
    return decide(snapshot, POLICY, memory, at_s)


@pytest.mark.parametrize("min_replicas", [0, 2])
def test_a_zero_that_somebody_set_stays_whatever_is_held_or_floored(min_replicas: int) -> None:
    """Demand and min-replicas both lose against a person who switched the service off."""
    policy = a_policy(min_replicas=min_replicas)
    memory = a_memory(a_snapshot(scale=2))
    for at_s in range(1, 1000, 100):
        measures = held(5.0, at_s)
        snapshot = a_snapshot(at_s=at_s, scale=0, written_by="kubectl", measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert (decision.replicas, decision.state) == (0, ZeroState.ASLEEP)
        assert "D5" in decision.why


@pytest.mark.parametrize(("min_replicas", "waiting"), [(2, 0.0), (0, 5.0)])
def test_a_zero_of_whoever_writes_what_is_wished_is_no_switch(
    min_replicas: int, waiting: float
) -> None:
    """KEDA wrote the 0 that was wished in a dry run; a floor or demand is wished as before."""
    policy = a_policy(min_replicas=min_replicas, dry_run=True)
    memory = a_memory(a_snapshot(scale=1))
    for at_s in range(1, 20):
        measures = held(waiting, at_s)
        snapshot = a_snapshot(at_s=at_s, scale=0, written_by="keda-operator", measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
    assert decision.decided == max(min_replicas, 1)
    assert (decision.replicas, decision.state) == (0, ZeroState.WAKING)


def test_a_zero_of_our_own_wakes_on_demand() -> None:
    """What Tidegate put to sleep itself is no decision of somebody else."""
    memory = a_memory(a_snapshot(scale=0))
    decision, _ = look(memory, at_s=1.0, scale=0, waiting=1.0)
    assert (decision.replicas, decision.state) == (1, ZeroState.WAKING)


def test_a_replica_that_somebody_asked_for_is_not_stopped_while_it_loads() -> None:
    """Rule D6, also when nobody waits and the cool-off has long passed."""
    memory = a_memory(a_snapshot(scale=0))
    for at_s in range(1, 1500, 10):
        snapshot = a_snapshot(
            at_s=at_s, scale=1, ready=0, written_by="kubectl", measures=held(0.0, at_s)
        )
        snapshot = replace(snapshot, replicas=replicas(starting=1))
        decision, memory = decide(snapshot, POLICY, memory, at_s)
        assert decision.replicas == 1


def test_a_zero_that_is_lifted_wakes_and_is_then_left_alone() -> None:
    """Setting the count above 0 hands the service back."""
    memory = a_memory(a_snapshot(scale=2))
    _, memory = look(memory, at_s=1.0, scale=0, by="kubectl")
    decision, _ = look(memory, at_s=2.0, scale=3, by="kubectl")
    assert decision.replicas == 3


@pytest.mark.parametrize("theirs", [1, 5])
def test_another_count_of_somebody_else_is_left_alone_for_the_cool_off(theirs: int) -> None:
    """Neither raised nor lowered, and no sleep, until the cool-off has passed."""
    memory = a_memory(a_snapshot(scale=3))
    decision, memory = look(memory, at_s=0.0, scale=theirs, by="kubectl", waiting=24.0)
    assert decision.replicas == theirs
    at_s = 0.0
    while at_s < COOL_OFF_S - 1:
        at_s += 1.0
        decision, memory = look(memory, at_s=at_s, scale=theirs, by="kubectl")
        assert decision.replicas == theirs
    assert "kubectl" in "; ".join(decision.because)
    for _ in range(200):
        at_s += 1.0
        decision, memory = look(memory, at_s=at_s, scale=theirs, by="kubectl")
    assert decision.replicas == 0


def test_the_count_that_whoever_made_the_service_gave_it_is_no_override() -> None:
    """At the first look nobody has changed anything yet."""
    snapshot = a_snapshot(at_s=1.0, scale=1, written_by="helm", measures=held(0.0, 1.0))
    decision, _ = decide(snapshot, a_policy(min_replicas=3), a_memory(a_snapshot(scale=1)), 1.0)
    assert decision.replicas == 3
