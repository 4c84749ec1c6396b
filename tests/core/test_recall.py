# SPDX-License-Identifier: Apache-2.0
"""A past that somebody else remembers ends the wait after a restart; a past with holes does not."""

import pytest

from autoscaler.core.decide import Decision, ServiceMemory, decide
from autoscaler.core.policy import RateRule, ServicePolicy, Target
from autoscaler.core.recall import Past, needed, recalled
from autoscaler.core.signals import Measure, Query, Signal
from tests.builders import a_memory, a_policy, a_reading, a_snapshot

NOW_S = 1000.0
POLICY = a_policy(
    targets=(Target(Signal.CONCURRENCY, 8.0),),
    max_replicas=10,
    scale_down=RateRule(window_s=300.0),
)


def a_past(*values: float, step_s: float = 30.0) -> Past:
    """One value a step, the last of them a step ago."""
    times_s = [NOW_S - step_s * (len(values) - n) for n in range(len(values))]
    return {Signal.CONCURRENCY: list(zip(times_s, values, strict=True))}


def count_after(past: Past, *, policy: ServicePolicy = POLICY) -> int:
    """What is decided 5 s after a restart of a service with 6 replicas that now needs 1."""
    memory = a_memory(a_snapshot(at_s=NOW_S, scale=6))
    memory = recalled(memory, policy, past, now_s=NOW_S, gap_s=75.0)
    for second in range(1, 6):
        at_s = NOW_S + second
        decision, memory = look(memory, policy, at_s)
    return decision.replicas


def look(
    memory: ServiceMemory, policy: ServicePolicy, at_s: float
) -> tuple[Decision, ServiceMemory]:
    measures = {
        Measure.REQUEST_SECONDS_TOTAL: a_reading(4.0 * (at_s - NOW_S), at_s=at_s),
        Measure.HELD: a_reading(0, at_s=at_s),
        Measure.IN_FLIGHT: a_reading(4, at_s=at_s),
        Measure.REQUESTS_TOTAL: a_reading(at_s, at_s=at_s),
    }
    return decide(a_snapshot(at_s=at_s, scale=6, measures=measures), policy, memory, at_s)


@pytest.mark.parametrize(
    ("past", "count"),
    [
        pytest.param({}, 6, id="nothing is remembered: the whole window is waited for"),
        pytest.param(a_past(*[4.0] * 12), 1, id="one was enough all the time: it falls at once"),
        pytest.param(a_past(*[4.0] * 5, 20.0, *[4.0] * 6), 3, id="three were wanted: those stay"),
        pytest.param(a_past(*[4.0] * 6), 6, id="it does not reach back far enough"),
        pytest.param(
            {Signal.CONCURRENCY: a_past(*[4.0] * 12)[Signal.CONCURRENCY][::4]},
            6,
            id="it has holes",
        ),
        pytest.param({Signal.QUEUE: a_past(*[0.0] * 12)[Signal.CONCURRENCY]}, 6,
                     id="it is of another signal"),
        pytest.param(
            {Signal.CONCURRENCY: a_past(*[4.0] * 12)[Signal.CONCURRENCY][:-4]},
            6,
            id="it ends long before the first look",
        ),
    ],
)  # fmt: skip
def test_a_count_falls_before_its_window_only_by_a_whole_past(past: Past, count: int) -> None:
    assert count_after(past) == count


def test_every_target_must_be_remembered() -> None:
    """One of two proves nothing of the other."""
    both = a_policy(
        targets=(Target(Signal.CONCURRENCY, 8.0), Target(Signal.KV, 0.8)),
        max_replicas=10,
        scale_down=RateRule(window_s=300.0),
    )
    assert count_after(a_past(*[4.0] * 12), policy=both) == 6


def test_a_past_does_not_make_up_for_what_cannot_be_read_now() -> None:
    """D1: on no reading the count stays, however little was wanted until a moment ago."""
    memory = a_memory(a_snapshot(at_s=NOW_S, scale=6))
    memory = recalled(memory, POLICY, a_past(*[4.0] * 12), now_s=NOW_S, gap_s=75.0)
    for second in range(1, 400):
        at_s = NOW_S + second
        decision, memory = decide(a_snapshot(at_s=at_s, scale=6), POLICY, memory, at_s)
        assert decision.replicas == 6


def test_a_past_that_comes_after_the_first_wishes_counts_with_them() -> None:
    """Prometheus takes its time; what was decided meanwhile is not forgotten."""
    memory = a_memory(a_snapshot(at_s=NOW_S, scale=6))
    for second in range(1, 4):
        decision, memory = look(memory, POLICY, NOW_S + second)
    assert decision.replicas == 6
    memory = recalled(memory, POLICY, a_past(*[4.0] * 12), now_s=NOW_S + 3, gap_s=75.0)
    decision, memory = look(memory, POLICY, NOW_S + 4)
    assert decision.replicas == 1


def test_a_query_of_users_has_no_past() -> None:
    targets = (Target(Signal.CONCURRENCY, 8.0), Target(Query("up"), 1.0))
    assert needed(a_policy(targets=targets)) is None


def test_a_queue_with_slots_needs_what_ran_beside_it() -> None:
    policy = a_policy(targets=(Target(Signal.QUEUE, 2.0),), slots=4)
    assert needed(policy) == frozenset({Signal.QUEUE, Signal.CONCURRENCY})
