# SPDX-License-Identifier: Apache-2.0
"""Runs small enough to be worked out by hand."""

import asyncio

import pytest

from autoscaler.core.decide import Decision
from simulations import report
from simulations.replay import Outcome, Replay, Settings
from simulations.traces.arrivals import Arrival
from simulations.world import at_once
from tests.simulations.runs import a_run, at


def outcome_of(arrivals: list[Arrival], settings: Settings) -> Outcome:
    return Replay(arrivals, settings).run()


def test_a_cold_start_shows_in_the_latencies_of_those_who_came_during_it() -> None:
    # One replica of one slot, 10 s of cold start, 2 s a request:
    #   0.5 s  #1 comes, is held, and wakes the service at once: the replica is ready at 10.5 s
    #   3.0 s  #2 comes and is held behind it
    #  10.5 s  #1 begins, ends at 12.5 s: latency 12.5 - 0.5 = 12.0, waited 10.5 - 0.5 = 10.0
    #  12.5 s  #2 begins, ends at 14.5 s: latency 14.5 - 3.0 = 11.5, waited 12.5 - 3.0 = 9.5
    #  20.0 s  #3 comes, begins at once, ends at 22.0 s: latency 2.0, waited 0
    # The replica is taken from 0.5 s to the end at 22.0 s: 21.5 replica-seconds; the answers took
    # 3 x 2 s on one slot: a bound of 6 replica-seconds.
    settings = a_run(targets="concurrency=1")
    outcome = outcome_of(at(0.5, 3.0, 20.0), settings)
    assert outcome.fates.latencies_s == [12.0, 11.5, 2.0]
    assert outcome.fates.waits_s == [10.0, 9.5, 0.0]
    assert outcome.fates.cold == 2
    assert outcome.cold_starts_s == [10.0]
    assert outcome.replica_seconds == 21.5
    assert outcome.fates.service_s / settings.slots == 6.0
    assert outcome.end_s == 22.0


def test_a_service_that_slept_pays_its_cold_start_again() -> None:
    outcome = outcome_of(at(0.5, 60.0), a_run(scale_to_zero_after="5s"))
    assert outcome.fates.latencies_s == [12.0, 12.0]
    assert outcome.cold_starts_s == [10.0, 10.0]
    assert [count for _, count in outcome.moves] == [0, 1, 0, 1]


def test_the_tail_shows_the_service_fall_asleep() -> None:
    outcome = outcome_of(at(0.5), a_run(scale_to_zero_after="5s", tail_s=30.0))
    assert outcome.end_s == 12.5 + 30.0
    assert outcome.moves[-1][1] == 0
    assert outcome.replica_seconds < 20.0


def test_a_ready_replica_answers_at_once_and_its_slots_share_nothing() -> None:
    # Two slots: #1 and #2 run side by side for 0.5 + 100 x 0.01 + 10 x 0.1 = 2.5 s each; #3 waits
    # for the first free slot at 2.5 s.
    settings = a_run(
        slots=2, service_time="0.5s + 10ms/prompt-token + 100ms/token", min_replicas="1",
        initial_replicas="1",
    )  # fmt: skip
    outcome = outcome_of(at(0.0, 0.0, 1.0), settings)
    assert outcome.fates.latencies_s == [2.5, 2.5, 4.0]
    assert outcome.cold_starts_s == []


def test_what_finds_the_held_queue_full_is_refused_and_counted() -> None:
    # Five come while asleep, two may wait: they are answered at 12.5 and 14.5 s.
    outcome = outcome_of(at(0.5, 1.0, 1.5, 2.0, 2.5), a_run(hold_limit="2"))
    assert (outcome.fates.answered, outcome.fates.refused) == (2, 3)
    assert outcome.fates.latencies_s == [12.0, 13.5]


def test_what_waits_longer_than_the_hold_timeout_expires() -> None:
    # The replica is ready at 10.5 s; #1 gives up at 8.5 s, #2 would at 11 s.
    outcome = outcome_of(at(0.5, 3.0), a_run(hold_timeout="8s"))
    assert (outcome.fates.answered, outcome.fates.expired) == (1, 1)
    assert outcome.fates.waits_s == [7.5]


def test_a_start_that_fails_ends_in_expired_requests_and_not_in_an_endless_run() -> None:
    settings = a_run(cold_start="200s", cold_start_timeout="20s", hold_timeout="60s")
    outcome = outcome_of(at(0.5, 1.0), settings)
    assert (outcome.fates.answered, outcome.fates.expired) == (0, 2)
    assert outcome.cold_starts_s == []
    assert outcome.abandoned_starts > 0
    figures = report.build(outcome, settings, trace={}, policy={})
    assert figures["oracle"] == {
        "fluid_bound_replica_seconds": 0.0,
        "replica_seconds_per_bound": None,
    }


def test_a_draining_replica_ends_its_requests_before_it_goes() -> None:
    # Two replicas of one slot; #2 runs from 0.25 s to 100.25 s. Nothing else comes, so the count
    # falls to one long before, and the one that is idle goes.
    long_one = Arrival(0.25, 0, 1000)
    settings = a_run(
        service_time="1s + 0.1s/token", min_replicas="1", max_replicas="2", initial_replicas="2",
        scale_down="window=10s",
    )  # fmt: skip
    outcome = outcome_of([Arrival(0.0, 0, 0), long_one], settings)
    assert outcome.fates.answered == 2
    assert outcome.fates.latencies_s == [1.0, 101.0]
    assert outcome.moves[-1][1] == 1
    assert outcome.replica_seconds < 2 * outcome.end_s


@pytest.mark.parametrize(
    ("targets", "most"),
    [("concurrency=4", 5), ("rps=2", 5), ("tokens/s=20", 5), ("queue=2, concurrency=4", 5)],
)
def test_every_signal_reaches_the_policy(targets: str, most: int) -> None:
    # 10 requests/s of 2 s and 10 tokens: 20 at once, 100 tokens/s.
    settings = a_run(
        slots=8, targets=targets, max_replicas="10", service_time="1s + 0.1s/token",
        min_replicas="1", initial_replicas="1", cold_start="1s",
    )  # fmt: skip
    outcome = outcome_of(at(*(n / 10 for n in range(600))), settings)
    settled = [sample.asked for sample in outcome.samples if 40.0 <= sample.at_s <= 59.0]
    assert min(settled) >= most - 1
    assert max(settled) <= most + 1


def test_decisions_are_handed_out_as_they_are_made_and_counted() -> None:
    seen: list[Decision] = []
    outcome = Replay(at(0.5, 3.0), a_run(), on_decision=seen.append).run()
    assert len(seen) == outcome.decisions.total
    assert outcome.decisions.raised == 1
    assert [decision.at_s for decision in seen] == sorted(decision.at_s for decision in seen)


def test_a_second_run_in_the_same_process_is_like_the_first() -> None:
    settings = a_run(cold_start="lognormal(10s,0.5)", max_replicas="3", seed=4)
    first, second = (
        report.as_json(
            report.build(
                outcome_of(at(0.5, 3.0, 3.5, 40.0), settings), settings, trace={}, policy={}
            )
        )
        for _ in range(2)
    )
    assert first == second


def test_another_seed_draws_other_cold_starts() -> None:
    drawn = [
        outcome_of(at(0.5), a_run(cold_start="uniform(5s,50s)", seed=seed)).cold_starts_s[0]
        for seed in range(4)
    ]
    assert len(set(drawn)) == 4
    assert all(5.0 <= cold_s <= 50.0 for cold_s in drawn)


def test_the_timeline_counts_every_arrival_once() -> None:
    outcome = outcome_of(at(0.5, 3.0, 3.5, 40.0), a_run())
    assert sum(sample.arrived for sample in outcome.samples) == 4
    assert max(sample.held for sample in outcome.samples) == 3


def test_something_that_waits_in_virtual_time_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="waited for something"):
        at_once(asyncio.sleep(0))
