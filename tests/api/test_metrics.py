# SPDX-License-Identifier: Apache-2.0
"""Tidegate's own metrics: what is known has a sample, what is not has none, labels stay few."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.api.metrics import LoopCollector
from autoscaler.core.policy import RateRule, Target
from autoscaler.core.proposal import Bound
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, NoReading, Query, Reading, ServiceId, Signal
from tests.api.builders import ASource, Stage, a_health
from tests.builders import A_SERVICE

Labels = Mapping[str, str]


def told(
    stage: Stage, name: str, *, demand: Demand | NoReading | None = None
) -> list[tuple[Labels, float]]:
    """The samples of one name, as Prometheus reads them; without the labels of the service."""
    registry = CollectorRegistry()
    registry.register(
        LoopCollector(stage.loop, demand=lambda _: demand or NoReading("no activator"))
    )
    text = generate_latest(registry).decode()
    return [
        ({k: v for k, v in sample.labels.items() if k not in ("namespace", "name")}, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"tidegate_{name}"
    ]


async def test_a_wish_and_what_became_of_it_are_told_apart() -> None:
    """Ten are wished for, three may be."""
    kv = Reading(5.0, 0.0, "engines")
    stage = Stage(
        ASource(a_health(), {Signal.KV: kv}),
        targets=(Target(Signal.KV, 0.5),),
        max_replicas=3,
        scale=3,
    )
    await stage.tick_at(0.0)
    assert told(stage, "wished_replicas") == [({}, 10.0)]
    assert told(stage, "wanted_replicas") == [({}, 3.0)]


async def test_decisions_are_counted_by_the_rule_that_bound_them() -> None:
    """Every tick counts, also those of which no record is kept."""
    source = ASource(a_health(), {Signal.KV: Reading(2.0, 0.0, "engines")})
    stage = Stage(source, targets=(Target(Signal.KV, 0.5),))
    for at_s in range(10):
        await stage.tick_at(at_s)
    source.told = {Signal.KV: NoReading("timed out")}
    for at_s in range(10, 15):
        await stage.tick_at(at_s)
    assert told(stage, "decisions_total") == [({"rule": "target"}, 10), ({"rule": "hold"}, 5)]


async def test_a_service_that_is_gone_leaves_no_series() -> None:
    """Neither its counts nor its readings go on."""
    stage = Stage(ASource(a_health()))
    await stage.tick_at(0.0)
    stage.cluster.views.clear()
    await stage.tick_at(1.0)
    assert told(stage, "decisions_total") == told(stage, "wished_replicas") == []
    assert stage.loop.decided == {}


async def test_what_is_absent_is_told_as_absent_and_never_as_a_value() -> None:
    """Also a signal that a target needs and no source speaks of; one that nobody asked for not."""
    stage = Stage(
        ASource(
            a_health(),
            {
                Measure.HELD: NoReading("no activator speaks"),
                Measure.WAITING: Reading(3.0, 0.0, "engines", 0.75),
            },
        ),
        targets=(Target(Signal.QUEUE, 2.0), Target(Signal.GPU_UTILIZATION, 0.7)),
    )
    await stage.tick_at(0.0)
    absent = [({"quantity": "gpu-utilization"}, 1.0), ({"quantity": "held"}, 1.0)]
    assert told(stage, "reading_absent") == absent
    assert told(stage, "signal_share_ratio") == [
        ({"signal": "queue"}, 0.75),
        ({"signal": "gpu-utilization"}, 0.0),
    ]
    assert told(stage, "held_requests") == []


@pytest.mark.parametrize("order", [1, -1])
async def test_what_users_write_is_no_label(order: int) -> None:
    """However many queries, they are one quantity: as bad as the worst of them."""
    queries = [Query(f"sum(metric_{n})") for n in range(3)]
    seen = [Reading(1.0, 0.0, "prometheus"), Reading(2.0, 0.0, "prometheus", 0.5)]
    stage = Stage(
        ASource(a_health(), dict(list(zip(queries, seen, strict=False))[::order])),
        targets=tuple(Target(query, 1.0) for query in queries[:2]),
    )
    await stage.tick_at(0.0)
    assert told(stage, "signal_share_ratio") == [({"signal": "prometheus"}, 0.5)]
    assert told(stage, "reading_absent") == []

    targets = tuple(Target(query, 1.0) for query in queries[::order])
    stage = Stage(ASource(a_health(), dict(zip(queries, seen, strict=False))), targets=targets)
    await stage.tick_at(0.0)
    assert told(stage, "signal_share_ratio") == [({"signal": "prometheus"}, 0.0)]
    assert told(stage, "reading_absent") == [({"quantity": "prometheus"}, 1.0)]


async def test_starts_are_a_histogram_of_how_long_they_took() -> None:
    """One of 4 s, one of exactly a minute, one of an hour; none of what was ready before."""
    stage = Stage(ASource(a_health()), scale=1)
    view = stage.cluster.views[A_SERVICE]
    await stage.tick_at(0.0)
    assert told(stage, "start_seconds_count") == []
    for number, took_s in enumerate((4.0, 60.0, 3600.0)):
        new = Replica(f"new-{number}", ReplicaState.READY, 10.0, 10.0 + took_s)
        stage.cluster.views[A_SERVICE] = replace(view, replicas=(new,))
        await stage.tick_at(10.0 + took_s)
    buckets = {labels["le"]: count for labels, count in told(stage, "start_seconds_bucket")}
    assert (buckets["2"], buckets["5"]) == (0, 1)
    assert (buckets["30"], buckets["60"]) == (1, 2)
    assert (buckets["1800"], buckets["+Inf"]) == (2, 3)
    assert told(stage, "start_seconds_sum") == [({}, 3664.0)]
    assert told(stage, "cold_starts_total") == [({}, 3.0)]


async def test_lost_requests_are_told_by_how_they_were_lost() -> None:
    """From what activators counted; without one there is no series at all."""
    stage = Stage(ASource(a_health()))
    await stage.tick_at(0.0)
    assert told(stage, "requests_ended_total") == []
    lost = told(
        stage, "requests_ended_total", demand=Demand("a", overflow_total=2, expired_total=1)
    )
    assert ({"outcome": "overflow"}, 2.0) in lost
    assert ({"outcome": "expired"}, 1.0) in lost


async def test_sources_say_how_they_fare() -> None:
    """A source that never answered has no age; one that was never asked is neither up nor down."""
    stage = Stage(
        ASource(a_health("engines", age_s=0.25, asked=100, failed=4)),
        ASource(a_health("prometheus", why="503", age_s=61.0, asked=9, failed=9)),
        ASource(a_health("dcgm", why="no exporter found", age_s=None, asked=0)),
        ASource(a_health("standby", age_s=None, asked=0)),
    )
    up = {labels["source"]: value for labels, value in told(stage, "source_up")}
    assert up == {"engines": 1.0, "prometheus": 0.0, "dcgm": 0.0}
    ages = {labels["source"]: value for labels, value in told(stage, "source_age_seconds")}
    assert ages == {"engines": 0.25, "prometheus": 61.0}
    assert ({"source": "engines"}, 100.0) in told(stage, "source_asked_total")
    assert ({"source": "engines"}, 4.0) in told(stage, "source_failed_total")


async def test_series_of_a_service_are_bounded() -> None:
    """Whatever a service goes through, rules and quantities are few."""
    targets = (*(Target(signal, 0.5) for signal in Signal), Target(Query("x"), 1.0))
    everything = {quantity: Reading(1.0, 0.0, "engines") for quantity in (*Measure, *Signal)}
    stage = Stage(ASource(a_health(), everything), targets=targets, scale_down=RateRule())
    for at_s in range(5):
        await stage.tick_at(at_s)
    assert len(told(stage, "signal_share_ratio")) == len(Signal) + 1
    assert len(told(stage, "reading_absent")) <= len(Measure) + len(Signal) + 1
    assert {labels["rule"] for labels, _ in told(stage, "decisions_total")} <= set(Bound)


def test_a_loop_without_a_service_names_its_metrics_all_the_same() -> None:
    """The first scrape of a new controller is valid, and empty."""
    assert told(Stage(), "replicas", demand=Demand(str(ServiceId("local", "iris")))) == []
