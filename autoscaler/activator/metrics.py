# SPDX-License-Identifier: Apache-2.0
"""What one activator counts, in Prometheus's form, read at the moment of the scrape.

Everything is of this process alone; the controller's own metrics have the sum over all activators.
"""

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from autoscaler.activator.app import Activator
from autoscaler.core.routes import Demand, Route

_LABELS: Final = ["namespace", "service", "port"]
_GAUGES: Final[dict[str, tuple[str, Callable[[Demand], float]]]] = {
    "held_requests": ("Requests held now.", lambda d: d.held),
    "held_bytes": ("Memory that the requests held now may take.", lambda d: d.held_bytes),
    "in_flight_requests": (
        "Requests sent to replicas and not answered yet.",
        lambda d: d.in_flight,
    ),
    "held_prompt_tokens": (
        "Tokens of the prompts held now, estimated from their bytes.",
        lambda d: d.held_prompt_tokens,
    ),
    "held_output_tokens": (
        "Tokens that the requests held now allow for their answers.",
        lambda d: d.held_output_tokens,
    ),
    "held_open_ended_requests": (
        "Requests for generated text held now that allow any number of tokens.",
        lambda d: d.held_open_ended,
    ),
}
_COUNTERS: Final[dict[str, tuple[str, Callable[[Demand], float]]]] = {
    "requests": ("Requests that arrived.", lambda d: d.requests_total),
    "request_seconds": (
        "Time integral of requests held and in flight.",
        lambda d: d.request_seconds_total,
    ),
    "held_seconds": ("Time integral of requests held.", lambda d: d.held_seconds_total),
    "prompt_tokens": (
        "Tokens of the prompts that arrived, estimated from their bytes.",
        lambda d: d.prompt_tokens_total,
    ),
    "output_tokens_asked": (
        "Tokens that the requests that arrived allow for their answers.",
        lambda d: d.output_tokens_asked_total,
    ),
    "open_ended_requests": (
        "Requests for generated text that arrived and allow any number of tokens.",
        lambda d: d.open_ended_total,
    ),
}
_OUTCOMES: Final[dict[str, Callable[[Demand], float]]] = {
    "answered": lambda d: d.answered_total,
    "overflow": lambda d: d.overflow_total,
    "expired": lambda d: d.expired_total,
    "cancelled": lambda d: d.cancelled_total,
    "broken": lambda d: d.broken_total,
}


class ActivatorCollector(Collector):
    """The metrics `tidegate_activator_*`, one series for each Service port that is served."""

    def __init__(self, activator: Activator) -> None:
        self._activator = activator

    def collect(self) -> Iterator[Metric]:
        now_s = monotonic()
        gauges = {n: _gauge(n, words, _LABELS) for n, (words, _) in _GAUGES.items()}
        counters = {n: _counter(n, words, _LABELS) for n, (words, _) in _COUNTERS.items()}
        ended = _counter(
            "requests_ended",
            "Requests by how they ended: answered, overflow (503), expired (504), cancelled by the "
            "client, broken by a replica.",
            [*_LABELS, "outcome"],
        )
        cold = _counter(
            "cold_starts", "Times that a first request found nowhere to go and was held.", _LABELS
        )
        usable = _gauge("usable_endpoints", "Replicas that new requests may go to.", _LABELS)
        connections = _gauge("client_connections", "Connections of clients.", _LABELS)
        desks = self._activator.desks
        for desk in desks.values():
            labels, demand = _labels(desk.route), desk.demand(now_s)
            for name, (_, level) in _GAUGES.items():
                gauges[name].add_metric(labels, level(demand))
            for name, (_, total) in _COUNTERS.items():
                counters[name].add_metric(labels, total(demand))
            for outcome, total in _OUTCOMES.items():
                ended.add_metric([*labels, outcome], total(demand))
            cold.add_metric(labels, desk.cold_starts)
            usable.add_metric(labels, desk.holding.usable)
            connections.add_metric(labels, len(desk.clients))
        yield from (*gauges.values(), *counters.values(), ended, cold, usable, connections)
        yield _one("routes", "Service ports that are served.", len(desks))
        yield _one("channel_up", "1 while the controller is connected.", self._activator.link.up)
        listening = sum(bool(desk.port) for desk in desks.values())
        yield _one("listening_routes", "Of these, how many have their port open.", listening)


def _labels(route: Route) -> list[str]:
    """Namespace, service and port name; without a backend the route's own name is all there is."""
    backend = route.backend
    if backend is None:
        return ["", route.service, ""]
    return [backend.namespace, backend.service, backend.port_name]


def _gauge(name: str, words: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidegate_activator_{name}", words, labels=labels)


def _counter(name: str, words: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"tidegate_activator_{name}", words, labels=labels)


def _one(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidegate_activator_{name}", words, value=value)
