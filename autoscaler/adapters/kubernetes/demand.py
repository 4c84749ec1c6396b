# SPDX-License-Identifier: Apache-2.0
"""All demand of a service on Kubernetes: what the activators know, and what its pods' engines tell.

While pods are ready most requests never pass an activator, so only all of the engines together know
the whole: readings say for which share of the pods they speak. Where no engine tells, the
activators' numbers stand for nothing but themselves (share 0), and `blind` says why; where engines
count requests at least, what passes the activators is a sample of them (`sampled.py`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from autoscaler.adapters.activators import IN_TOKENS
from autoscaler.adapters.engines.growth import Look
from autoscaler.adapters.engines.scraper import EngineScraper
from autoscaler.adapters.engines.table import Engine
from autoscaler.adapters.kubernetes.ledger import Ledger
from autoscaler.adapters.plain_http import At
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId, reading
from autoscaler.ports import Clock, SourceHealth

FORGOTTEN_AFTER_S = 60.0  # a service that nobody asks about any more

NO_PLACE = NoReading(
    "where its metrics are is not known; annotate the pods with prometheus.io/port and "
    "prometheus.io/path"
)


class Looks(Protocol):
    """Who asks the pods; `EngineScraper` is the real one."""

    def expect(self, service: ServiceId, places: Mapping[str, At]) -> None: ...

    def look(self, service: ServiceId, pod_id: str) -> Look | NoReading: ...

    async def run(self) -> None: ...

    def health(self) -> SourceHealth: ...


@dataclass(slots=True)
class _Service:
    """What is remembered of one service from look to look."""

    ledger: Ledger = field(default_factory=Ledger)
    engines: dict[str, Engine] = field(default_factory=dict)  # by pod, as last recognised
    pods: Mapping[str, At | None] = field(default_factory=dict)
    places: Mapping[str, At] = field(default_factory=dict)  # of those where it is known
    at_s: float = 0.0  # of the newest totals
    asked_at_s: float = 0.0


class KubernetesDemand:
    """A `SignalSource` for services whose requests pass an activator only now and then.

    `demand_of(service)`: what all activators know of it; `heard_at_s`, `share_ratio`: when they
    spoke, and which part of them does. `ready_pods(service)`: pod id -> where its metrics are,
    None where that is not known. `run` is to run beside the ticks; nothing else does I/O.
    """

    name = "demand"

    def __init__(
        self,
        *,
        clock: Clock,
        demand_of: Callable[[ServiceId], Demand | NoReading],
        heard_at_s: Callable[[], float | None],
        share_ratio: Callable[[], float],
        ready_pods: Callable[[ServiceId], Mapping[str, At | None]],
        engines: Looks | None = None,
    ) -> None:
        self._clock = clock
        self._demand_of = demand_of
        self._heard_at_s = heard_at_s
        self._share_ratio = share_ratio
        self._ready_pods = ready_pods
        jitter = Random()  # noqa: S311 - no secret depends on it
        self._engines = engines or EngineScraper(clock=clock, random=jitter)
        self._services: dict[ServiceId, _Service] = {}
        self._looked_back_at_s = 0.0  # when it was last seen whom nobody asks about any more

    async def run(self) -> None:
        """Ask the pods for their metrics until cancelled."""
        await self._engines.run()

    def health(self) -> SourceHealth:
        """Of the scrapes; activators are told of where they connect."""
        return replace(self._engines.health(), name=self.name)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        now_s = self._clock.now_s()
        if now_s - self._looked_back_at_s > FORGOTTEN_AFTER_S:
            self._looked_back_at_s = now_s
            for service, known in list(self._services.items()):
                if now_s - known.asked_at_s > FORGOTTEN_AFTER_S:
                    del self._services[service]
        return {service: self._measure(service, now_s) for service in services}

    def in_flight(self, service: ServiceId) -> Mapping[str, float]:
        """How many requests each ready pod has now, of those that tell."""
        said = {pod: _requests_in(look) for pod, look in self._looks(service).items()}
        return {pod: inside for pod, inside in said.items() if inside is not None}

    def blind(self, service: ServiceId) -> str | None:
        """Why nothing can prove that the service's ready pods are idle; None: some of them can."""
        whys = [_why_unproven(look) for look in self._looks(service).values()]
        return None if None in whys else next(iter(whys), None)

    def _looks(self, service: ServiceId) -> Mapping[str, Look | NoReading]:
        known = self._services.get(service)
        return {
            pod: NO_PLACE if at is None else self._engines.look(service, pod)
            for pod, at in (known.pods if known is not None else {}).items()
        }

    def _measure(self, service: ServiceId, now_s: float) -> Measures:
        known = self._services.setdefault(service, _Service())
        known.asked_at_s = now_s
        pods = self._ready_pods(service)
        if pods is not known.pods:
            known.pods = pods
            known.places = {pod: at for pod, at in pods.items() if at is not None}
        self._engines.expect(service, known.places)
        heard_at_s, demand = self._heard_at_s(), self._demand_of(service)
        if heard_at_s is None and isinstance(demand, Demand):
            demand = NoReading("no activator speaks")
        looks = self._looks(service)
        told = {pod: look for pod, look in looks.items() if isinstance(look, Look)}
        engines = {**known.engines, **{pod: look.page.engine for pod, look in told.items()}}
        # Of a service without a pod its last engines tell what there would be to know.
        known.engines = {pod: engines[pod] for pod in pods if pod in engines} or known.engines
        known.ledger.enter(demand, told, now_s=now_s)
        spoken_s = [look.at_s for look in told.values()] or [heard_at_s or 0.0]
        known.at_s = max(known.at_s, *spoken_s)
        seen = _Seen(demand, heard_at_s or 0.0, self._share_ratio(), looks, told, known)
        return {measure: value for measure, value in seen.measures() if value is not None}


@dataclass(frozen=True, slots=True)
class _Seen:
    """One look at everything about one service, and what follows from it.

    `looks`: of every ready pod; `told`: of those that told something.
    """

    demand: Demand | NoReading
    heard_at_s: float
    heard_ratio: float
    looks: Mapping[str, Look | NoReading]
    told: Mapping[str, Look]
    known: _Service

    def measures(self) -> Iterator[tuple[Measure, Reading | NoReading | None]]:
        """None: nobody speaks of this measure."""
        ledger = self.known.ledger
        yield Measure.HELD, self._held(lambda demand: demand.held)
        yield Measure.HELD_SECONDS_TOTAL, self._held(lambda _: ledger.held_s)
        yield Measure.IN_FLIGHT, self._in_flight()
        yield Measure.WORKING, self._working()
        yield (
            Measure.REQUESTS_TOTAL,
            # Where an engine counts none, ours prove that something came, and not how much.
            self._whole(
                ledger.requests,
                self._ratio(lambda look: Measure.REQUESTS_TOTAL in look.page.engine.samples),
            ),
        )
        yield (
            Measure.REQUEST_SECONDS_TOTAL,
            self._whole(
                ledger.request_s,
                self._ratio(
                    _tells(
                        Measure.REQUESTS_TOTAL if self._sampled else Measure.REQUEST_SECONDS_TOTAL
                    )
                ),
                at_most=0.0 if isinstance(self.demand, NoReading) else self.heard_ratio,
                # Of what activators tell: the time of a look would make its rate swing.
                at_s=None if ledger.engines_time else self.heard_at_s or None,
            ),
        )
        yield Measure.WAITING, self._inside(Measure.WAITING, self._sum(Measure.WAITING))
        yield Measure.TOKENS_TOTAL, self._inside(Measure.TOKENS_TOTAL, ledger.tokens)
        yield (
            Measure.PROMPT_TOKENS_TOTAL,
            self._inside(Measure.PROMPT_TOKENS_TOTAL, ledger.prompt_tokens),
        )
        for measure, take in IN_TOKENS.items():
            yield measure, self._held(take)
        yield Measure.KV_USED, self._inside(Measure.KV_USED, self._sum(Measure.KV_USED))

    def _held(self, take: Callable[[Demand], float]) -> Reading | NoReading:
        """What activators alone can know."""
        if isinstance(self.demand, NoReading):
            return self.demand
        return self._reading(take(self.demand), self.heard_ratio, at_s=self.heard_at_s)

    def _in_flight(self) -> Reading | NoReading:
        passed = 0.0 if isinstance(self.demand, NoReading) else self.demand.in_flight
        telling = self._ratio(lambda look: _why_not_gauged(look) is None)
        return self._whole(max(passed, self._sum(Measure.IN_FLIGHT)), telling)

    @property
    def _sampled(self) -> bool:
        """Whether what passes the activators tells of all that the engines count."""
        if self.known.ledger.sampled == 0.0:  # unless one takes longer than anybody waits
            working = self._working()
            return working is None or (isinstance(working, Reading) and working.value == 0)
        return self.known.ledger.sampled is not None

    def _working(self) -> Reading | NoReading | None:
        """Of engines that have no gauge of what is in flight."""
        signs = [look.working for look in self.told.values() if look.page.engine.unended]
        told = [sign for sign in signs if isinstance(sign, int | float)]
        if told and self.known.ledger.incomplete:
            return NoReading("more requests pass the activators than its replicas count")
        if told:
            return self._reading(sum(told), len(told) / len(self.looks))
        return next((sign for sign in signs if isinstance(sign, NoReading)), None)

    def _whole(
        self, value: float, ratio: float, *, at_most: float = 1.0, at_s: float | None = None
    ) -> Reading | NoReading:
        """A number made of what pods and activators know; of activators alone without a pod."""
        if isinstance(self.demand, NoReading) and (not self.looks or ratio == 0.0):
            return self.demand
        ratio = min(ratio, at_most) if self.looks else self.heard_ratio
        return self._reading(value, ratio, at_s=at_s)

    def _inside(self, measure: Measure, value: float) -> Reading | NoReading | None:
        """What pods alone can know; without one, nothing waits, and no token is added."""
        engines = self.known.engines.values()
        if engines and not any(measure in engine.samples for engine in engines):
            return None
        if not self.looks:
            return self._reading(value, 1.0) if engines else None
        ratio = self._ratio(_tells(measure))
        if ratio > 0.0:
            return self._reading(value, ratio)
        if not engines and all(look is NO_PLACE for look in self.looks.values()):
            return None
        whys = (_why_untold(look, measure) for look in self.looks.values())
        return NoReading(next(filter(None, whys), "no pod tells"))

    def _ratio(self, tells: Callable[[Look], bool]) -> float:
        """The part of the ready pods of which this is true; 1 where there is none."""
        return sum(map(tells, self.told.values())) / len(self.looks) if self.looks else 1.0

    def _sum(self, measure: Measure) -> float:
        return sum(look.page.total(measure) or 0.0 for look in self.told.values())

    def _reading(
        self, value: float, ratio: float, *, at_s: float | None = None
    ) -> Reading | NoReading:
        at_s = self.known.at_s if at_s is None else at_s
        return reading(value, at_s=at_s, source=KubernetesDemand.name, share_ratio=ratio)


def _tells(measure: Measure) -> Callable[[Look], bool]:
    def tells(look: Look) -> bool:
        told = look.page.values.get(measure)
        return told is not None and not isinstance(told, NoReading)

    return tells


def _why_untold(look: Look | NoReading, measure: Measure) -> str | None:
    if isinstance(look, NoReading):
        return look.why
    series = look.page.values.get(measure)
    if series is None:
        return f"{look.page.engine.name} does not tell {_IN_WORDS.get(measure, measure)}"
    return series.why if isinstance(series, NoReading) else None


def _why_unproven(look: Look | NoReading) -> str | None:
    """Why a pod cannot prove that it is idle; None: it can."""
    working = look.working if isinstance(look, Look) else None
    if working is None:
        return _why_not_gauged(look)
    return working.why if isinstance(working, NoReading) else None


def _why_not_gauged(look: Look | NoReading) -> str | None:
    """Why a pod does not tell what is in flight and what came; None: it does."""
    why = _why_untold(look, Measure.IN_FLIGHT)
    return _why_untold(look, Measure.REQUESTS_TOTAL) if why is None else why


def _requests_in(look: Look | NoReading) -> float | None:
    """How many requests a pod has, as far as it tells."""
    if isinstance(look, NoReading):
        return None
    gauged = look.page.total(Measure.IN_FLIGHT)
    signs = look.working
    return signs if gauged is None and isinstance(signs, int | float) else gauged


_IN_WORDS = {
    Measure.IN_FLIGHT: "how many requests run",
    Measure.REQUESTS_TOTAL: "how many requests it had",
}
