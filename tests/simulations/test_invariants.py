# SPDX-License-Identifier: Apache-2.0
"""Each invariant is broken on purpose, and the run ends with its name."""

from collections.abc import Callable

import pytest

from autoscaler.core.decide import Decision
from autoscaler.errors import TidegateError
from simulations import invariants
from simulations.invariants import InvariantViolated
from simulations.replay import Replay, Settings
from simulations.traces.arrivals import Arrival
from simulations.world import SERVICE, at_once
from tests.simulations.runs import a_run, at


def wrecked(
    wreck: Callable[[Replay], None], *, from_s: float, settings: Settings | None = None
) -> InvariantViolated:
    """A run that `wreck` is let loose on once, at the first decision after `from_s`."""
    wrecked_once = False

    def on_decision(decision: Decision) -> None:
        nonlocal wrecked_once
        if decision.at_s >= from_s and not wrecked_once:
            wrecked_once = True
            wreck(replay)

    replay = Replay(at(0.5, 3.0, 3.5, 30.0), settings or a_run(), on_decision=on_decision)
    with pytest.raises(InvariantViolated) as caught:
        replay.run()
    return caught.value


def test_an_answer_too_many_breaks_conservation() -> None:
    def count_one_twice(replay: Replay) -> None:
        replay.activator.fates.answered += 1

    assert wrecked(count_one_twice, from_s=1).name == invariants.CONSERVED


def test_a_lost_request_breaks_conservation() -> None:
    def forget_one(replay: Replay) -> None:
        replay.activator.holding.cancel(replay.activator.holding.arrive(20.0), 20.0)
        replay.activator.fates.refused -= 1

    assert wrecked(forget_one, from_s=20).name == invariants.CONSERVED


def test_a_count_above_the_maximum_breaks_the_bounds() -> None:
    def ask_for_eleven(replay: Replay) -> None:
        at_once(replay.cluster.scale(SERVICE, 11, generation=2))

    assert wrecked(ask_for_eleven, from_s=12).name == invariants.WITHIN_BOUNDS


def test_a_count_below_the_minimum_breaks_the_bounds() -> None:
    def ask_for_none(replay: Replay) -> None:
        at_once(replay.cluster.scale(SERVICE, 0, generation=1))

    broken = wrecked(
        ask_for_none, from_s=12, settings=a_run(min_replicas="1", initial_replicas="1")
    )
    assert broken.name == invariants.WITHIN_BOUNDS


@pytest.mark.parametrize("from_s", [5, 11], ids=["while some are held", "while one is in flight"])
def test_sleeping_in_use_is_found(from_s: float) -> None:
    def ask_for_none(replay: Replay) -> None:
        at_once(replay.cluster.scale(SERVICE, 0, generation=2))

    assert wrecked(ask_for_none, from_s=from_s).name == invariants.NO_SLEEP_IN_USE


def test_a_request_more_than_slots_is_found() -> None:
    def let_more_through(replay: Replay) -> None:
        # The activator is told of a slot that the replica does not have.
        for ticket in replay.activator.holding.set_endpoints({"replica-1": 2}, 11.0):
            replay.cluster.began(ticket.endpoint)

    assert wrecked(let_more_through, from_s=11).name == invariants.WITHIN_SLOTS


def test_a_queue_beyond_its_limit_is_found() -> None:
    def forget_the_limit(replay: Replay) -> None:
        replay.activator.holding.set_bounds(hold_limit=99, hold_bytes=0, hold_timeout_s=99.0)

    assert (
        wrecked(forget_the_limit, from_s=1, settings=a_run(hold_limit="1")).name
        == invariants.HELD_BOUNDED
    )


def test_a_request_begun_twice_is_found() -> None:
    def begin_again(replay: Replay) -> None:
        ticket = replay.activator.holding.arrive(20.0, owner=Arrival(20.0, 1, 1))
        replay.activator._begin(ticket)
        replay.activator._begin(ticket)

    assert wrecked(begin_again, from_s=20).name == invariants.ONE_FATE


def test_replica_seconds_below_the_fluid_bound_are_found() -> None:
    def work_for_nothing(replay: Replay) -> None:
        replay.activator.fates.service_s += 1000.0

    assert wrecked(work_for_nothing, from_s=1).name == invariants.FLUID_BOUND


def test_a_clock_that_goes_back_is_found() -> None:
    def plan_the_past(replay: Replay) -> None:
        replay.events.plan(0.25, lambda: None)

    assert wrecked(plan_the_past, from_s=5).name == invariants.MONOTONE_CLOCK


def test_a_broken_invariant_is_said_by_its_name_and_is_no_bad_input() -> None:
    broken = InvariantViolated(invariants.CONSERVED, "2 arrived, 3 answered")
    assert isinstance(broken, TidegateError)
    assert invariants.CONSERVED in str(broken)
    assert "2 arrived, 3 answered" in str(broken)


def test_giving_up_on_a_start_that_failed_is_no_breach() -> None:
    invariants.check_sleep(held=3, in_flight=0, start_failed=True)
