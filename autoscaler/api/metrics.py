# SPDX-License-Identifier: Apache-2.0
"""Tidegate's own metrics, read from what the loop has recorded at the moment of the scrape."""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from autoscaler.core.replicas import ReplicaState
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, NoReading, Reading, ServiceId
from autoscaler.core.zero import ZeroState
from autoscaler.loop import ControlLoop

# Measures that users ask for by name; a reading that is absent is left out, never shown as 0.
_SHOWN = {
    Measure.HELD: ("held_requests", "Requests held in the activator now."),
    Measure.IN_FLIGHT: ("in_flight_requests", "Requests sent to replicas and not answered yet."),
    Measure.WAITING: ("waiting_requests", "Requests queued inside the replicas."),
}


# How a request can end, and the total of it that activators keep.
_OUTCOMES: dict[str, Callable[[Demand], int]] = {
    "answered": lambda demand: demand.answered_total,
    "overflow": lambda demand: demand.overflow_total,
    "expired": lambda demand: demand.expired_total,
    "cancelled": lambda demand: demand.cancelled_total,
    "broken": lambda demand: demand.broken_total,
}


class LoopCollector(Collector):
    """Turns the last record of each service, and what activators counted, into metrics."""

    def __init__(
        self, loop: ControlLoop, *, demand: Callable[[ServiceId], Demand | NoReading]
    ) -> None:
        self._loop = loop
        self._demand = demand

    def collect(self) -> Iterator[Metric]:
        wanted = _gauge("wanted_replicas", "Replicas asked for by the last decision.")
        replicas = _gauge("replicas", "Replicas of a service by state.", "state")
        states = _gauge("service_state", "1 for the state the service is in.", "state")
        lead = _gauge("lead_time_seconds", "Learned time from deciding to ready.", "quantile")
        arrived = CounterMetricFamily(
            "tidegate_requests",
            "Requests that arrived for a service.",
            labels=["namespace", "name"],
        )
        ended = CounterMetricFamily(
            "tidegate_requests_ended",
            "Requests by how they ended: answered, overflow (503), expired (504), cancelled by the "
            "client, broken by a replica.",
            labels=["namespace", "name", "outcome"],
        )
        starts = CounterMetricFamily(
            "tidegate_cold_starts", "Replicas that became ready.", labels=["namespace", "name"]
        )
        shown = {measure: _gauge(*words) for measure, words in _SHOWN.items()}
        for service, records in self._loop.records.items():
            decision, snapshot = records[-1].decision, records[-1].snapshot
            labels = [service.namespace, service.name]
            wanted.add_metric(labels, decision.replicas)
            counts = Counter(replica.state for replica in snapshot.replicas)
            for replica_state in ReplicaState:
                replicas.add_metric([*labels, replica_state], counts[replica_state])
            for state in ZeroState:
                states.add_metric([*labels, state], float(state is decision.state))
            for quantile in (0.5, 0.95):
                seconds = self._loop.lead_times(service).quantile(quantile)
                if seconds is not None:
                    lead.add_metric([*labels, str(quantile)], seconds)
            for measure, gauge in shown.items():
                seen = snapshot.measures.get(measure)
                if isinstance(seen, Reading):
                    gauge.add_metric(labels, seen.value)
            total = snapshot.measures.get(Measure.REQUESTS_TOTAL)
            if isinstance(total, Reading):
                arrived.add_metric(labels, total.value)
            starts.add_metric(labels, self._loop.cold_starts(service))
            demand = self._demand(service)
            if isinstance(demand, Demand):
                for outcome, total_of in _OUTCOMES.items():
                    ended.add_metric([*labels, outcome], total_of(demand))
        yield from (wanted, replicas, states, lead, arrived, ended, starts, *shown.values())


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidegate_{name}", meaning, labels=["namespace", "name", *labels])
