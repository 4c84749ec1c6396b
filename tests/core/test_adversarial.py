# SPDX-License-Identifier: Apache-2.0
"""Numbers that no honest source would give: none moves a count down or breaks a decision."""

import math
from dataclasses import replace

import pytest

from autoscaler.core.decide import decide, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import RateRule, Target
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.signals import Measure, NoReading, Reading, Signal, reading
from autoscaler.core.zero import ZeroState
from tests.builders import a_memory, a_policy, a_reading, a_snapshot


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_what_is_not_a_number_of_something_is_no_reading(value: float) -> None:
    """NaN, infinities and negatives are refused where numbers come in."""
    assert isinstance(reading(value, at_s=0, source="scrape"), NoReading)


@pytest.mark.parametrize("total", [1e308, 2.0**64 - 1])
def test_a_huge_total_is_bounded_by_max_replicas(total: float) -> None:
    """A wild counter may cost money up to the user's bound, not more, and never a crash."""
    policy, memory = a_policy(), first_memory(a_snapshot(scale=2), LeadTimes())
    for at_s, value in ((0.0, 0.0), (1.0, total), (2.0, total)):
        measures = {m: a_reading(value, at_s=at_s) for m in Measure}
        snapshot = a_snapshot(at_s=at_s, scale=2, measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert 2 <= decision.replicas <= policy.max_replicas


def test_a_reading_for_a_part_of_the_replicas_may_only_raise() -> None:
    """Half of the replicas reporting little says nothing about the other half."""
    policy = a_policy()
    memory = first_memory(a_snapshot(scale=4), LeadTimes())
    for at_s in range(200):
        measures: dict[Measure, Reading | NoReading] = {
            m: a_reading(0.0, at_s=at_s, share_ratio=0.5) for m in Measure
        }
        snapshot = a_snapshot(at_s=at_s, scale=4, measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert decision.replicas == 4


def test_a_window_that_holds_a_part_of_the_replicas_may_only_raise() -> None:
    """The mean is too low for as long, though all of them speak again."""
    policy = a_policy(targets=(Target(Signal.QUEUE, 1.0),), scale_down=RateRule(window_s=0.0))
    memory = first_memory(a_snapshot(scale=8), LeadTimes())
    counts = {}
    for at_s in range(30):
        waiting = a_reading(8, at_s=at_s)
        if at_s == 10:
            waiting = a_reading(2, at_s=at_s, share_ratio=0.25)
        elif at_s >= 20:
            waiting = a_reading(4, at_s=at_s)
        snapshot = a_snapshot(at_s=at_s, scale=8, measures={Measure.WAITING: waiting})
        decision, memory = decide(snapshot, policy, memory, at_s)
        counts[at_s] = decision.replicas
    assert {count for at_s, count in counts.items() if at_s < 20} == {8}
    assert counts[29] == 4


def test_nothing_measured_at_all_holds() -> None:
    """A service that no source speaks of keeps its count for ever, and the reason says so."""
    policy, memory = a_policy(), first_memory(a_snapshot(scale=3), LeadTimes())
    for at_s in range(0, 4000, 100):
        decision, memory = decide(a_snapshot(at_s=at_s, scale=3), policy, memory, at_s)
    assert decision.replicas == 3
    assert "no source reports it" in "; ".join(decision.because)


def quiet() -> dict[Measure, Reading | NoReading]:
    """An activator that speaks, and has had nothing to do for ever."""
    return {m: a_reading(0.0) for m in Measure if m is not Measure.WAITING}


@pytest.mark.parametrize(("scale", "tolerance_ratio"), [(1, 1.0), (20, 0.1)])
def test_no_tolerance_is_wide_enough_to_stay_below_min_replicas(
    scale: int, tolerance_ratio: float
) -> None:
    """`min-replicas` is a floor, not a wish that is near enough to the present count."""
    policy = a_policy(
        min_replicas=scale + 1,
        max_replicas=scale + 5,
        scale_up=RateRule(window_s=0.0, tolerance_ratio=tolerance_ratio),
    )
    snapshot = a_snapshot(scale=scale, measures=quiet())
    decision, _ = decide(snapshot, policy, a_memory(snapshot), 0.0)
    assert decision.replicas == scale + 1


def test_sleep_that_was_refused_needs_its_proof_anew() -> None:
    """Idleness was proven for one moment: if the count did not fall in it, silence lowers none."""
    policy = a_policy(scale_to_zero_after=1.0, scale_down=RateRule(window_s=0.0))
    memory = a_memory(a_snapshot(scale=1))
    for at_s in range(5):
        snapshot = a_snapshot(at_s=at_s, scale=1, measures=quiet())
        decision, memory = decide(snapshot, policy, memory, at_s)
    assert (decision.state, decision.replicas) == (ZeroState.ASLEEP, 0)

    blind = {measure: NoReading("the activator is gone") for measure in quiet()}
    snapshot = a_snapshot(at_s=5.0, scale=1, measures=blind)
    decision, memory = decide(snapshot, policy, memory, 5.0)
    assert (decision.state, decision.replicas) == (ZeroState.ACTIVE, 1)


def test_a_start_may_fail_for_months() -> None:
    """The pause before the next start stays at its longest, however often it was doubled."""
    policy = a_policy(cold_start_timeout_s=10.0)
    memory = replace(a_memory(), state=ZeroState.WAKING, state_since_s=0.0, failed_starts=5000)
    snapshot = a_snapshot(at_s=20.0, scale=1, ready=0, measures=quiet())
    decision, memory = decide(snapshot, policy, memory, 20.0)
    assert decision.state is ZeroState.ASLEEP
    assert memory.retry_at_s == 320.0


@pytest.mark.parametrize("in_flight", [a_reading(1.0), NoReading("the activator is gone")])
def test_a_replica_that_may_be_at_work_is_no_start_that_failed(
    in_flight: Reading | NoReading,
) -> None:
    """D6: one that is too busy for its readiness probe is not put to sleep with its request."""
    policy, memory = a_policy(cold_start_timeout_s=10.0), a_memory(a_snapshot(scale=1))
    for at_s in range(0, 100, 5):
        measures = quiet() | {Measure.IN_FLIGHT: in_flight}
        snapshot = a_snapshot(at_s=at_s, scale=1, ready=0, measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert decision.replicas == 1


def test_why_a_start_failed_is_told_until_the_next_succeeds() -> None:
    """The replica that said it is gone by then; who waits at the door still wants to know."""
    policy = a_policy(cold_start_timeout_s=10.0)
    memory = replace(a_memory(), state=ZeroState.WAKING, state_since_s=0.0)
    broken = replace(
        a_snapshot(at_s=20.0, scale=1, ready=0, measures=quiet()),
        replicas=(Replica("iris-3", ReplicaState.FAILED, 0.0, why="exit code 1: no CUDA"),),
    )
    decision, memory = decide(broken, policy, memory, 20.0)
    assert "no CUDA" in decision.why
    held = quiet() | {Measure.HELD: a_reading(1.0)}
    for at_s in (21.0, 40.0):
        snapshot = a_snapshot(at_s=at_s, scale=0, measures=held)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert decision.state is ZeroState.ASLEEP
        assert "the last start failed" in decision.why
        assert "iris-3: exit code 1: no CUDA" in decision.why
    for at_s in (51.0, 52.0, 53.0):
        snapshot = a_snapshot(at_s=at_s, scale=1, measures=held)
        decision, memory = decide(snapshot, policy, memory, at_s)
    assert decision.state is ZeroState.ACTIVE
    assert memory.failed_why == ""
