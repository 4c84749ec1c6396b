# SPDX-License-Identifier: Apache-2.0
"""Tidegate's own metrics, read from what the loop has recorded at the moment of the scrape.

What is not known has no sample: a 0 would be a statement. Every label has few values; the queries
that users write go by the one name `prometheus`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from autoscaler.core.decide import Decision
from autoscaler.core.lead_time import SPREAD_S, LeadTimes, StartsSeen
from autoscaler.core.proposal import Bound
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, NoReading, Quantity, Query, Reading, ServiceId
from autoscaler.core.zero import ZeroState
from autoscaler.loop import ControlLoop, Record
from autoscaler.ports import SourceHealth

# How a request can end, and the total of it that activators keep.
_OUTCOMES: Mapping[str, Callable[[Demand], int]] = {
    "answered": lambda demand: demand.answered_total,
    "overflow": lambda demand: demand.overflow_total,
    "expired": lambda demand: demand.expired_total,
    "cancelled": lambda demand: demand.cancelled_total,
    "broken": lambda demand: demand.broken_total,
}
QUERIES = "prometheus"  # the `quantity` of all queries of a service: the one that fares worst

Samples = Iterator[tuple[tuple[str, ...], float]]  # (values of the labels beyond the service's)


@dataclass(frozen=True, slots=True)
class _Seen:
    """All that is told of one service."""

    record: Record
    lead_times: LeadTimes
    starts: StartsSeen
    decided: Mapping[Bound, int]
    demand: Demand | NoReading


def _replicas(seen: _Seen) -> Samples:
    counts = Counter(replica.state for replica in seen.record.snapshot.replicas)
    return (((state,), counts[state]) for state in ReplicaState)


def _states(seen: _Seen) -> Samples:
    return (((state,), float(state is seen.record.decision.state)) for state in ZeroState)


def _lead_times(seen: _Seen) -> Samples:
    for quantile in (0.5, 0.95):
        if (seconds := seen.lead_times.quantile(quantile)) is not None:
            yield (str(quantile),), seconds


def _measure(measure: Measure) -> Callable[[_Seen], Samples]:
    def samples(seen: _Seen) -> Samples:
        value = seen.record.snapshot.measures.get(measure)
        if isinstance(value, Reading):
            yield (), value.value

    return samples


def _ended(seen: _Seen) -> Samples:
    if isinstance(seen.demand, Demand):
        for outcome, total_of in _OUTCOMES.items():
            yield (outcome,), total_of(seen.demand)


def _absent(seen: _Seen) -> Samples:
    """Of what sources hand over, and of the signals that a target is set for."""
    quantities = {**seen.record.snapshot.measures, **_targeted(seen.record.decision)}
    absent = {_name(quantity) for quantity, of in quantities.items() if isinstance(of, NoReading)}
    return (((name,), 1.0) for name in sorted(absent))


def _shares(seen: _Seen) -> Samples:
    worst: dict[str, float] = {}
    for signal, of in _targeted(seen.record.decision).items():
        share_ratio = 0.0 if isinstance(of, NoReading) else of.share_ratio
        worst[_name(signal)] = min(share_ratio, worst.get(_name(signal), 1.0))
    return (((name,), share_ratio) for name, share_ratio in worst.items())


def _targeted(decision: Decision) -> dict[Quantity, Reading | NoReading]:
    targets = {candidate.signal for candidate in decision.candidates}
    return {signal: of for signal, of in decision.signals.items() if str(signal) in targets}


def _name(quantity: Quantity) -> str:
    return QUERIES if isinstance(quantity, Query) else str(quantity)


@dataclass(frozen=True, slots=True)
class _Row:
    """One metric of every service: how it is called, what it means, and where it comes from."""

    name: str
    meaning: str
    samples: Callable[[_Seen], Iterable[tuple[tuple[str, ...], float]]]
    label: str = ""
    counts: bool = False

    def family(self) -> GaugeMetricFamily | CounterMetricFamily:
        labels = ["namespace", "name", *filter(None, (self.label,))]
        kind = CounterMetricFamily if self.counts else GaugeMetricFamily
        return kind(f"tidegate_{self.name}", self.meaning, labels=labels)


_ROWS = (
    _Row("wished_replicas", "Replicas that the policy asked for, before bounds and limits.",
         lambda seen: [((), seen.record.decision.wished)]),
    _Row("wanted_replicas", "Replicas asked for by the last decision.",
         lambda seen: [((), seen.record.decision.replicas)]),
    _Row("replicas", "Replicas of a service by state.", _replicas, "state"),
    _Row("service_state", "1 for the state the service is in.", _states, "state"),
    _Row("decisions", "Decisions by the rule that bound the count.",
         lambda seen: (((rule,), count) for rule, count in seen.decided.items()),
         "rule", counts=True),
    _Row("lead_time_seconds", "Learned time from deciding to ready.", _lead_times, "quantile"),
    _Row("cold_starts", "Replicas that became ready.",
         lambda seen: [((), seen.starts.total)], counts=True),
    _Row("requests", "Requests that arrived for a service.", _measure(Measure.REQUESTS_TOTAL),
         counts=True),
    _Row("requests_ended",
         "Requests by how they ended: answered, overflow (503), expired (504), cancelled by the "
         "client, broken by a replica.", _ended, "outcome", counts=True),
    _Row("held_requests", "Requests held in the activator now.", _measure(Measure.HELD)),
    _Row("in_flight_requests", "Requests sent to replicas and not answered yet.",
         _measure(Measure.IN_FLIGHT)),
    _Row("waiting_requests", "Requests queued inside the replicas.", _measure(Measure.WAITING)),
    _Row("held_prompt_tokens", "Tokens of the prompts held now, estimated from their bytes.",
         _measure(Measure.HELD_PROMPT_TOKENS)),
    _Row("held_output_tokens", "Tokens that the requests held now allow for their answers.",
         _measure(Measure.HELD_OUTPUT_TOKENS)),
    _Row("held_open_ended_requests",
         "Requests for generated text held now that allow any number of tokens.",
         _measure(Measure.HELD_OPEN_ENDED)),
    _Row("prompt_tokens_arrived",
         "Tokens of the prompts that arrived at an activator, estimated from their bytes.",
         _measure(Measure.PROMPT_TOKENS_ARRIVED_TOTAL), counts=True),
    _Row("output_tokens_asked",
         "Tokens that the requests that arrived at an activator allow for their answers.",
         _measure(Measure.OUTPUT_TOKENS_ASKED_TOTAL), counts=True),
    _Row("open_ended_requests",
         "Requests for generated text that arrived at an activator and allow any number of tokens.",
         _measure(Measure.OPEN_ENDED_TOTAL), counts=True),
    _Row("reading_absent",
         "1 for a quantity that could not be read; no count falls on it. GET /v1/services says "
         "why.", _absent, "quantity"),
    _Row("signal_share_ratio",
         "Part of the replicas that a signal with a target speaks for, 0 where it could not be "
         "read; below 1 it may raise a count and never lower it.", _shares, "signal"),
)  # fmt: skip


class LoopCollector(Collector):
    """Turns the last record of each service, and what activators counted, into metrics."""

    def __init__(
        self, loop: ControlLoop, *, demand: Callable[[ServiceId], Demand | NoReading]
    ) -> None:
        self._loop = loop
        self._demand = demand

    def collect(self) -> Iterator[Metric]:
        families = [(row, row.family()) for row in _ROWS]
        starts = HistogramMetricFamily(
            "tidegate_start_seconds",
            "Time from deciding to ready of the replicas that became ready.",
            labels=["namespace", "name"],
        )
        for service, records in self._loop.records.items():
            seen = _Seen(
                record=records[-1],
                lead_times=self._loop.lead_times(service),
                starts=self._loop.starts(service),
                decided=self._loop.decided[service],
                demand=self._demand(service),
            )
            labels = [service.namespace, service.name]
            for row, family in families:
                for more, value in row.samples(seen):
                    family.add_metric([*labels, *more], value)
            if seen.starts.total:
                starts.add_metric(labels, _buckets(seen.starts), seen.starts.lead_s)
        yield from (family for _, family in families)
        yield starts
        yield from source_metrics(source.health() for source in self._loop.sources)


def _buckets(starts: StartsSeen) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in SPREAD_S), "+Inf"]
    return list(zip(bounds, map(float, accumulate(starts.spread)), strict=True))


def source_metrics(sources: Iterable[SourceHealth]) -> Iterator[Metric]:
    """How the sources of numbers fare.

    One that was not asked yet and knows of no trouble is neither up nor down: a controller that
    stands by asks none, and must not hide that the one that acts is in trouble.
    """
    up = _of_source("up", "1 while nothing is wrong with a source of numbers, else 0.")
    age = _of_source("age_seconds", "Time since a source last answered.")
    totals = {
        "asked": "Questions to a source, in its own units (scrapes, queries).",
        "failed": "Of these, how many got no answer that could be used.",
    }
    asked, failed = (
        CounterMetricFamily(f"tidegate_source_{name}", meaning, labels=["source"])
        for name, meaning in totals.items()
    )
    for health in sources:
        if health.asked or health.why is not None:
            up.add_metric([health.name], float(health.why is None))
        if health.age_s is not None:
            age.add_metric([health.name], health.age_s)
        asked.add_metric([health.name], health.asked)
        failed.add_metric([health.name], health.failed)
    yield from (up, age, asked, failed)


@dataclass(frozen=True, slots=True)
class _Collected(Collector):
    """Metrics as they were at one moment; nothing changes them any more."""

    metrics: tuple[Metric, ...]

    def collect(self) -> tuple[Metric, ...]:
        return self.metrics


async def exposition(registry: CollectorRegistry) -> bytes:
    """The text of a scrape: collected between two ticks, and written down beside them.

    Of thousands of services the text takes longer to write than the numbers to collect.
    """
    return await asyncio.to_thread(generate_latest, _Collected(tuple(registry.collect())))


def _of_source(name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidegate_source_{name}", meaning, labels=["source"])
