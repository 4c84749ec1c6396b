# SPDX-License-Identifier: Apache-2.0
"""Several sources speak of one service: whose word counts, and what an average is worth."""

from collections.abc import Mapping

import pytest

from autoscaler.core.decide import Decision, decide, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import RateRule, ServicePolicy, Target
from autoscaler.core.signals import (
    MEASURES,
    SIGNALS,
    Measure,
    NoReading,
    Quantity,
    Query,
    Reading,
    Signal,
    first_told,
)
from autoscaler.core.zero import ZeroState
from tests.builders import a_policy, a_snapshot

WAITING = Query('sum(vllm:num_requests_waiting{namespace="a"})')
Told = Mapping[Quantity, Reading | NoReading]


def told(value: float, source: str = "prometheus", *, share_ratio: float = 1.0) -> Reading:
    return Reading(value, 0.0, source, share_ratio)


def activators(*, held: float = 0.0, held_s: float = 0.0, requests: float = 0.0) -> Told:
    """What activators tell of a service, all of it and for everybody."""
    return {
        Measure.HELD: told(held, "activator"),
        Measure.HELD_SECONDS_TOTAL: told(held_s, "activator"),
        Measure.IN_FLIGHT: told(0.0, "activator"),
        Measure.REQUESTS_TOTAL: told(requests, "activator"),
    }


def decided(
    policy: ServicePolicy, *ticks: Told, scale: int = 4, ready: int | None = None
) -> Decision:
    """The last of several decisions a second apart; the count stands still meanwhile."""
    memory = first_memory(a_snapshot(scale=scale, ready=ready), LeadTimes())
    for at_s, of in enumerate(ticks):
        measures = {q: seen if isinstance(seen, NoReading) else at(seen, at_s)
                    for q, seen in of.items()}  # fmt: skip
        snapshot = a_snapshot(at_s=at_s, scale=scale, ready=ready, measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
    return decision


def at(seen: Reading, at_s: float) -> Reading:
    return Reading(seen.value, at_s, seen.source, seen.share_ratio)


def wants(*targets: Target, **more: object) -> ServicePolicy:
    return a_policy(targets=targets, scale_down=RateRule(window_s=0.0), **more)


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (told(1, "a"), told(2, "b"), told(1, "a")),
        (NoReading("a is silent"), told(2, "b"), told(2, "b")),
        (told(1, "a"), NoReading("b is silent"), told(1, "a")),
        (NoReading("a is silent"), NoReading("b is silent"), NoReading("a is silent")),
        (told(1, "a", share_ratio=0.0), told(2, "b"), told(2, "b")),
        (told(1, "a", share_ratio=0.5), told(2, "b"), told(1, "a", share_ratio=0.5)),
        (
            told(1, "a", share_ratio=0.0),
            told(2, "b", share_ratio=0.0),
            told(1, "a", share_ratio=0.0),
        ),
        (
            told(1, "a", share_ratio=0.0),
            NoReading("b is silent"),
            told(1, "a", share_ratio=0.0),
        ),
    ],
    ids=[
        "the first that tells",
        "the next where the first is silent",
        "a later silence hides nothing",
        "the first reason where all are silent",
        "one that speaks for nobody gives way",
        "one that speaks for some does not",
        "of two that speak for nobody the first",
        "a word for nobody is more than a silence after it",
    ],
)
def test_of_each_quantity_the_source_that_counts_most_is_heard(
    first: Reading | NoReading, second: Reading | NoReading, merged: Reading | NoReading
) -> None:
    """The order of the sources decides, among those that speak for anybody."""
    assert first_told([{Signal.QUEUE: first}, {Signal.QUEUE: second}]) == {Signal.QUEUE: merged}


def test_sources_complete_each_other() -> None:
    """What only one of them speaks of is in the answer; what none speaks of is not."""
    merged = first_told([{Measure.HELD: told(1)}, {}, {Signal.KV: told(2)}])
    assert merged == {Measure.HELD: told(1), Signal.KV: told(2)}
    assert first_told([]) == {}


@pytest.mark.parametrize("signal", [Signal.KV, Signal.GPU_UTILIZATION])
def test_parts_of_a_whole_are_summed_over_replicas_and_shared_out(signal: Signal) -> None:
    """Four replicas at 90 % where each should be at 60 %: six are needed."""
    decision = decided(wants(Target(signal, 0.6)), {signal: told(4 * 0.9)})
    assert decision.replicas == 6
    assert decision.because[0] == f"{signal}=3.6/0.6"


def test_what_activators_hold_comes_on_top_of_an_average() -> None:
    """A monitoring system sees 4 queued in the replicas; 8 more wait in front of them."""
    target = Target(Signal.QUEUE, 2.0)
    ticks = [{**activators(held=8, held_s=8.0 * n), Signal.QUEUE: told(4.0)} for n in range(3)]
    decision = decided(wants(target), *ticks)
    assert (decision.replicas, decision.because[0]) == (6, "queue=12/2")


@pytest.mark.parametrize(
    "unknown",
    [{}, {Measure.HELD: NoReading("no activator speaks")}],
    ids=["nobody tells", "silent"],
)
def test_an_average_lowers_nothing_while_it_is_unknown_what_is_held(unknown: Told) -> None:
    """Little runs in the replicas, but nobody knows what waits in front of them."""
    averages = [{**unknown, Signal.CONCURRENCY: told(1.0)} for _ in range(3)]
    decision = decided(wants(Target(Signal.CONCURRENCY, 8.0)), *averages)
    assert decision.replicas == 4
    assert decision.signals[Signal.CONCURRENCY] == Reading(1.0, 2.0, "prometheus", 0.0)


def test_an_average_of_no_requests_needs_nothing_held() -> None:
    """What activators hold takes no KV cache and no GPU: the average is all there is to know."""
    decision = decided(wants(Target(Signal.KV, 0.8)), {Signal.KV: told(1.0)})
    assert decision.replicas == 2


def test_a_measure_counts_for_more_than_an_average() -> None:
    """Measured this second, by our own windows, it is newer and exact."""
    both: Told = {Measure.KV_USED: told(3.5, "engine"), Signal.KV: told(0.4)}
    decision = decided(wants(Target(Signal.KV, 0.8)), both, both)
    assert decision.signals[Signal.KV] == Reading(3.5, 1.0, "engine", 1.0)


def test_an_average_steps_in_where_the_measure_fails() -> None:
    """Scrapes fail, the monitoring system does not."""
    both: Told = {Measure.KV_USED: NoReading("connection refused"), Signal.KV: told(3.2)}
    assert decided(wants(Target(Signal.KV, 0.8)), both, both).because[0] == "kv=3.2/0.8"


def test_an_average_that_fails_leaves_an_unknown_queue_and_not_an_empty_one() -> None:
    """Nothing is held, and of what waits inside the replicas nobody tells any more."""
    silent = {**activators(), Signal.QUEUE: NoReading("prometheus: timed out")}
    decision = decided(wants(Target(Signal.QUEUE, 2.0)), *[silent] * 50)
    assert decision.replicas == 4
    assert decision.because[0] == "queue=? (prometheus: timed out)"


def test_where_no_replica_tells_its_queue_an_average_counts_beside_what_is_held() -> None:
    """A handful held must not hide the many that a monitoring system sees queued inside."""
    ticks = [
        {
            **activators(held=1, held_s=float(n)),
            Measure.WAITING: told(0.0, "engine", share_ratio=0.0),
            Signal.QUEUE: told(15.0),
        }
        for n in range(3)
    ]
    decision = decided(wants(Target(Signal.QUEUE, 2.0)), *ticks)
    assert (decision.replicas, decision.because[0]) == (8, "queue=16/2")


@pytest.mark.parametrize(
    "running",
    [
        {Measure.REQUEST_SECONDS_TOTAL: NoReading("connection refused")},
        {Measure.REQUEST_SECONDS_TOTAL: told(0.0, "activator", share_ratio=0.0)},
        {},
    ],
    ids=["silent", "known of activators alone", "nobody tells"],
)
def test_an_empty_queue_lowers_nothing_while_it_is_unknown_what_runs(running: Told) -> None:
    """Where replicas have slots, all of them may be taken and none wait."""
    ticks = [{**activators(), Measure.WAITING: told(0.0, "engine"), **running} for _ in range(50)]
    decision = decided(wants(Target(Signal.QUEUE, 2.0), slots=4), *ticks)
    assert decision.replicas == 4
    assert decision.because[1] == "D1 hold 4: queue not fully read"


@pytest.mark.parametrize(
    "more",
    [{}, {Measure.WAITING: NoReading("connection refused")}],
    ids=["no engine", "an engine that is silent"],
)
def test_a_burst_that_is_held_now_is_not_averaged_away(more: Told) -> None:
    """Nothing is ready: twenty held count as twenty, whatever an average of before says."""
    ticks = [
        {**activators(held=20 * n, held_s=0.0), **more, Signal.QUEUE: told(0.0)} for n in range(2)
    ]
    decision = decided(wants(Target(Signal.QUEUE, 8.0)), *ticks, scale=1, ready=0)
    assert decision.replicas == 3


def test_averages_never_put_a_service_to_sleep() -> None:
    """Every average at zero for an hour proves no idleness: a request may hide between samples."""
    policy = wants(Target(Signal.CONCURRENCY, 8.0), scale_to_zero_after=10.0)
    averages: Told = {signal: told(0.0) for signal in Signal}
    decision = decided(policy, *[averages] * 100, scale=1)
    assert (decision.state, decision.replicas) == (ZeroState.ACTIVE, 1)


def test_a_query_scales_by_the_whole_services_value() -> None:
    """Twenty of whatever was asked for, five a replica."""
    decision = decided(wants(Target(WAITING, 5.0)), {WAITING: told(20.0)}, scale=2)
    assert decision.replicas == 4
    assert decision.candidates[0].signal == str(WAITING)


@pytest.mark.parametrize(
    ("measures", "why"),
    [
        ({WAITING: NoReading("prometheus: 503")}, "prometheus: 503"),
        ({}, "no Prometheus is configured"),
        ({Query("another"): told(0.0)}, "no Prometheus is configured"),
    ],
    ids=["failed", "no Prometheus", "another query"],
)
def test_a_query_without_an_answer_holds_and_says_why(measures: Told, why: str) -> None:
    """Four replicas stay four, however long."""
    decision = decided(wants(Target(WAITING, 5.0)), *[measures] * 50)
    assert decision.replicas == 4
    assert why in decision.because[0]
    assert "D1 hold 4" in decision.because[1]


def test_a_window_is_as_long_as_the_policy_says_now() -> None:
    """A user who makes it longer need not wait for the next controller."""
    memory = first_memory(a_snapshot(scale=4), LeadTimes())
    for at_s in range(100):
        policy = wants(Target(Signal.KV, 1.0), signal_window_s=2.0 if at_s < 50 else 20.0)
        used = told(4.0 if at_s < 90 else 0.0, "engine")
        snapshot = a_snapshot(at_s=at_s, scale=4, measures={Measure.KV_USED: at(used, at_s)})
        decision, memory = decide(snapshot, policy, memory, at_s)
    assert decision.because[0] == "kv=2/1"


def test_a_decision_says_what_share_of_the_replicas_told() -> None:
    """A person who wonders why nothing falls finds it in the reasons."""
    most: Told = {Measure.KV_USED: told(0.8, "engine", share_ratio=0.75)}
    decision = decided(wants(Target(Signal.KV, 0.8)), most, most)
    assert decision.because[0] == "kv=0.8/0.8 (75% of replicas told)"
    assert decision.candidates[0].share_ratio == 0.75
    assert decision.replicas == 4


def test_every_measure_and_signal_has_its_meaning() -> None:
    """The API and the documentation are made of these words."""
    assert MEASURES.keys() == set(Measure)
    assert SIGNALS.keys() == set(Signal)
    assert all(of.meaning and of.unit for of in MEASURES.values())
    assert all(of.meaning and of.unit for of in SIGNALS.values())
