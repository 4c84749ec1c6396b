# SPDX-License-Identifier: Apache-2.0
"""What each service is asked for, as one `SignalSource`: activators and pods together.

While pods are ready most requests go straight to them, and the activators see a part at most. So
the whole is what the pods tell, with what the activators hold; without a ready pod it is what the
activators tell. Where pods are ready and tell nothing, the readings speak for nobody (share 0):
they may raise a count, and prove no idleness.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from autoscaler.adapters.engines import Growth, Inside, Page
from autoscaler.adapters.kubernetes.scrapes import Places, Scrapes
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId, reading
from autoscaler.ports import Clock

NAME: Final = "activators and pods"

# What is had from the pods' pages alone.
_WAITING: Final = Measure.WAITING
_TOKENS: Final = Measure.TOKENS_TOTAL


@dataclass(slots=True)
class _Tally:
    """One service's totals, over all its sources and their changes. They never fall."""

    arrived: Growth = field(default_factory=Growth)
    seconds: Growth = field(default_factory=Growth)
    tokens: Growth = field(default_factory=Growth)
    older: frozenset[str] = frozenset()  # pods that were there before we looked first
    at_s: float | None = None
    activators: Demand | None = None  # as counted last
    held_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Pods:
    """What a service's ready pods tell now."""

    pages: Mapping[str, Page]
    ready: int
    why_not: str  # what the first one that tells nothing says

    @property
    def share_ratio(self) -> float:
        return len(self.pages) / self.ready if self.ready else 1.0

    @property
    def present(self) -> float:
        return sum(_present(page) for page in self.pages.values())


class KubernetesDemand:
    """Asked by the tick, answers from memory; `run()` it beside the ticks."""

    name = NAME

    def __init__(
        self,
        *,
        clock: Clock,
        demand_of: Callable[[ServiceId], Demand | NoReading],
        heard_at_s: Callable[[], float | None],
        share_ratio: Callable[[], float],
        pods_of: Callable[[ServiceId], Mapping[str, bool]],
        places: Callable[[], Places],
    ) -> None:
        """`demand_of`, `heard_at_s`, `share_ratio`: of the activators, as `ActivatorHub` says.

        `pods_of`: a service's pods by name, and whether each is ready. `places`: where the metrics
        of the ready ones are.
        """
        self._clock = clock
        self._demand_of = demand_of
        self._heard_at_s = heard_at_s
        self._share_ratio = share_ratio
        self._pods_of = pods_of
        self._scrapes = Scrapes(places, clock=clock)
        self._tallies: dict[ServiceId, _Tally] = {}

    async def run(self) -> None:
        await self._scrapes.run()

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        return {service: self._measure(service) for service in services}

    def forget_all_but(self, services: Collection[ServiceId]) -> None:
        for gone in self._tallies.keys() - set(services):
            del self._tallies[gone]

    def in_flight(self, service: ServiceId) -> Mapping[str, float]:
        """Requests in each ready pod that tells, by the pod's name."""
        return {name: _present(page) for name, page in self._pods(service).pages.items()}

    def blind(self, service: ServiceId) -> str | None:
        """Why no pod tells how busy it is, though some are ready; None: at least one does."""
        pods = self._pods(service)
        return pods.why_not if pods.ready and not pods.pages else None

    def _pods(self, service: ServiceId) -> _Pods:
        ready = [name for name, is_ready in self._pods_of(service).items() if is_ready]
        pages, why_not = {}, ""
        for pod in ready:
            page = self._scrapes.page(service, pod)
            if isinstance(page, Page) and Inside.PRESENT in page.inside:
                pages[pod] = page
            elif isinstance(page, Page):
                why_not = why_not or f"{pod}: {page.engine.name} tells no requests in flight"
            else:
                why_not = why_not or page.why
        return _Pods(pages, len(ready), why_not)

    def _measure(self, service: ServiceId) -> Measures:
        now_s = self._clock.now_s()
        pods = self._pods(service)
        there = self._pods_of(service).keys()
        tally = self._tallies.setdefault(service, _Tally(older=frozenset(there)))
        demand = self._demand_of(service)
        self._count(tally, demand, pods, now_s)
        for growth in (tally.arrived, tally.seconds, tally.tokens):
            growth.forget_all_but(there)
        return {
            **self._from_activators(tally, demand),
            **self._from_both(tally, demand, pods, now_s),
            **self._from_pods(tally, pods, now_s),
        }

    # Totals

    def _count(
        self,
        tally: _Tally,
        demand: Demand | NoReading,
        pods: _Pods,
        now_s: float,
    ) -> None:
        """Add what grew since the last look, by whoever sees the requests now."""
        if isinstance(demand, Demand):
            before = tally.activators or demand
            if not pods.pages:
                tally.arrived.total += _grown(before.requests_total, demand.requests_total)
                tally.seconds.total += _grown(
                    before.request_seconds_total, demand.request_seconds_total
                )
            else:
                tally.seconds.total += _grown(before.held_seconds_total, demand.held_seconds_total)
            tally.held_seconds += _grown(before.held_seconds_total, demand.held_seconds_total)
            tally.activators = demand
        elapsed_s = 0.0 if tally.at_s is None else max(now_s - tally.at_s, 0.0)
        for name, page in pods.pages.items():
            began = name not in tally.older
            _add(tally.arrived, name, page, Inside.ARRIVED_TOTAL, began=began)
            _add(tally.tokens, name, page, _TOKENS, began=began)
            if Inside.SECONDS_TOTAL in page.inside:
                _add(tally.seconds, name, page, Inside.SECONDS_TOTAL, began=began)
            else:
                tally.seconds.total += _present(page) * elapsed_s
        tally.at_s = now_s

    # Measures

    def _from_activators(self, tally: _Tally, demand: Demand | NoReading) -> Measures:
        heard_at_s = self._heard_at_s()
        if isinstance(demand, NoReading) or heard_at_s is None:
            why = demand if isinstance(demand, NoReading) else NoReading("no activator speaks")
            return {Measure.HELD: why, Measure.HELD_SECONDS_TOTAL: why}
        share_ratio = self._share_ratio()
        return {
            Measure.HELD: reading(
                demand.held, at_s=heard_at_s, source=NAME, share_ratio=share_ratio
            ),
            Measure.HELD_SECONDS_TOTAL: reading(
                tally.held_seconds, at_s=heard_at_s, source=NAME, share_ratio=share_ratio
            ),
        }

    def _from_both(
        self, tally: _Tally, demand: Demand | NoReading, pods: _Pods, now_s: float
    ) -> Measures:
        """What passes the activators, the pods, or both."""
        if isinstance(demand, NoReading) and not pods.pages:
            return dict.fromkeys(
                (Measure.IN_FLIGHT, Measure.REQUESTS_TOTAL, Measure.REQUEST_SECONDS_TOTAL), demand
            )
        known = isinstance(demand, Demand)
        share_ratio = min(pods.share_ratio, self._share_ratio() if known else 0.0)
        through = demand.in_flight if isinstance(demand, Demand) else 0

        def seen(value: float) -> Reading | NoReading:
            return reading(value, at_s=now_s, source=NAME, share_ratio=share_ratio)

        return {
            Measure.IN_FLIGHT: seen(max(pods.present, through)),
            Measure.REQUESTS_TOTAL: seen(tally.arrived.total),
            Measure.REQUEST_SECONDS_TOTAL: seen(tally.seconds.total),
        }

    def _from_pods(self, tally: _Tally, pods: _Pods, now_s: float) -> Measures:
        """What only engines know; left out where they do not tell it."""
        measures: dict[Measure, Reading | NoReading] = {}
        waiting = [page.values[_WAITING] for page in pods.pages.values() if _WAITING in page.values]
        if waiting:
            told = [sum(series.values()) for series in waiting if isinstance(series, Mapping)]
            measures[_WAITING] = reading(
                sum(told), at_s=now_s, source=NAME, share_ratio=len(told) / max(pods.ready, 1)
            )
        if any(_TOKENS in page.values for page in pods.pages.values()):
            measures[_TOKENS] = reading(
                tally.tokens.total, at_s=now_s, source=NAME, share_ratio=pods.share_ratio
            )
        return measures


def _present(page: Page) -> float:
    return sum(page.inside.get(Inside.PRESENT, {}).values())


def _add(growth: Growth, pod: str, page: Page, what: Inside | Measure, *, began: bool) -> None:
    series = page.inside.get(what, {}) if isinstance(what, Inside) else page.values.get(what, {})
    if isinstance(series, Mapping):
        growth.add(pod, series, began=began)


def _grown(before: float, after: float) -> float:
    """How much a total grew; one that fell began anew."""
    return after - before if after >= before else after
