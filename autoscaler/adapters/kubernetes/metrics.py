# SPDX-License-Identifier: Apache-2.0
"""The controller's metrics about itself: its ticks, its lead, and what it asks the API server.

They tell what Tidegate costs a cluster; `tidegate bench platform` is made of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Fine enough to tell a tick of 80 ms from one of 100; beyond the last one nothing is in order.
TICK_BUCKETS_S: Final = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25,
    0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
)  # fmt: skip


class TickSeconds:
    """How long ticks took: `scope="all"` over every service, `some` over those with news."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds, self._cpu_seconds = (
            Histogram(name, what, ["scope"], buckets=TICK_BUCKETS_S, registry=registry)
            for name, what in (
                (
                    "tidegate_tick_seconds",
                    "Time of one tick: over all services, or over some that had news.",
                ),
                (
                    "tidegate_tick_cpu_seconds",
                    "CPU time of one tick; where it is less than the time, the tick had to wait.",
                ),
            )
        )
        for scope in ("all", "some"):
            self._seconds.labels(scope)
            self._cpu_seconds.labels(scope)

    def took(self, seconds: float, *, cpu_s: float, all_services: bool) -> None:
        scope = "all" if all_services else "some"
        self._seconds.labels(scope).observe(seconds)
        self._cpu_seconds.labels(scope).observe(cpu_s)


class ControllerCollector(Collector):
    """What the controller's parts know at the moment of the scrape.

    `leads()`: whether this process acts. `requests`: how many were sent, by verb and resource.
    `ages_s()`: of each watched kind, how long ago the API server was last heard of it.
    """

    def __init__(
        self,
        *,
        leads: Callable[[], bool],
        requests: Mapping[tuple[str, str], int],
        ages_s: Callable[[], Mapping[str, float]],
    ) -> None:
        self._leads = leads
        self._requests = requests
        self._ages_s = ages_s

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tidegate_leader", "1 for the controller that acts, 0 for one that stands by.",
            value=float(self._leads()),
        )  # fmt: skip
        sent = CounterMetricFamily(
            "tidegate_api_requests",
            "Requests to the Kubernetes API, retries included.",
            labels=["verb", "resource"],
        )
        for (verb, resource), count in self._requests.items():
            sent.add_metric([verb, resource], count)
        yield sent
        ages = GaugeMetricFamily(
            "tidegate_informer_age_seconds",
            "Time since the API server was last heard of a kind of object; quiet kinds are heard "
            "of once or twice a minute.",
            labels=["resource"],
        )
        for resource, age_s in self._ages_s().items():
            ages.add_metric([resource], age_s)
        yield ages


def register(
    registry: CollectorRegistry,
    *,
    leads: Callable[[], bool],
    requests: Mapping[tuple[str, str], int],
    ages_s: Callable[[], Mapping[str, float]],
) -> None:
    """Add everything but the ticks, and the process's own CPU time and memory."""
    registry.register(ControllerCollector(leads=leads, requests=requests, ages_s=ages_s))
    ProcessCollector(registry=registry)
