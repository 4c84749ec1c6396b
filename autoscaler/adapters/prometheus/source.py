# SPDX-License-Identifier: Apache-2.0
"""What Prometheus says of each service. Only a whole and fresh answer counts (rule D1).

Rounds of queries run beside the ticks; a tick takes what the last round left. Once a query fails,
what it said before is no reading: what a silent Prometheus last said lowers no count.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from autoscaler.adapters.prometheus.client import AT_ONCE, PrometheusClient, Sample
from autoscaler.adapters.prometheus.queries import (
    Place,
    Question,
    Told,
    questions,
    told_by_pods,
)
from autoscaler.adapters.prometheus.targets import filled, value_for
from autoscaler.core.signals import (
    Measures,
    NoReading,
    Quantity,
    Query,
    Reading,
    ServiceId,
    Signal,
    reading,
)
from autoscaler.errors import GiveUp, RetryLater
from autoscaler.ports import Clock, SourceHealth
from autoscaler.prometheus_settings import PrometheusSettings

NAME: Final = "prometheus"
RETRY_S: Final = 2.0  # after a round that failed: one query tells that it answers again
# Prometheus' clock and ours; beyond it one of them was set anew, and ages mean nothing.
SKEW_MOST_S: Final = 30.0
FORGOTTEN_AFTER_S: Final = 60.0  # a service that nobody asks about any more
QUERIES_PER_ROUND_S: Final = 10.0  # for users' own queries; the rest come first in the next round


class Client(Protocol):
    """Who asks; `PrometheusClient` is the real one."""

    async def query(self, promql: str) -> list[Sample]: ...

    async def query_range(
        self, promql: str, *, from_s: float, to_s: float, step_s: float
    ) -> list[Sample]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Pods:
    """A good answer to one of our own questions."""

    told: Mapping[Place, Told | NoReading]
    at_s: float


@dataclass(frozen=True, slots=True)
class _Given:
    """A good answer to a user's query."""

    samples: Sequence[Sample]
    at_s: float


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was made of the last round for one service; good until a sample in it is too old."""

    round: int
    pods: Collection[str]
    queries: Collection[Query]
    measures: Measures
    until_s: float


class PrometheusSignalSource:
    """A `SignalSource`. `run` is to run beside the ticks; nothing else does I/O.

    `pods(service)`: the names of its ready pods, the same object as long as nothing changed;
    `queries(service)`: the targets in PromQL that its policy sets.
    """

    name = NAME

    def __init__(
        self,
        settings: PrometheusSettings,
        *,
        clock: Clock,
        pods: Callable[[ServiceId], Collection[str]],
        queries: Callable[[ServiceId], Collection[Query]],
        client: Client | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wall_s = wall_s
        self._pods = pods
        self._queries = queries
        self._client = client or PrometheusClient(settings)
        self._questions = questions(window_s=settings.window_s)
        not_asked = NoReading("not asked yet")
        self._signals: dict[Signal, _Pods | NoReading] = {
            question.signal: not_asked for question in self._questions
        }
        self._own: dict[str, _Given | NoReading] = {}  # by PromQL
        self._tried: dict[str, tuple[bool, float]] = {}  # whether it failed, and when
        self._asked_about: dict[ServiceId, float] = {}  # when last
        self._kept: dict[ServiceId, _Kept] = {}
        self._round = 0
        self._news = asyncio.Event()  # a query that was not asked yet
        self._free = asyncio.Semaphore(AT_ONCE)
        self._trouble: str | None = None  # who stands by asks nothing, and knows of no trouble
        self._answered_at_s: float | None = None
        self._asked = self._failed = 0  # queries

    def health(self) -> SourceHealth:
        why = self._trouble
        failing = [seen for seen in self._own.values() if isinstance(seen, NoReading)]
        if why is None and failing:
            why = f"{len(failing)} of {len(self._own)} PromQL targets fail: {failing[0].why}"
        answered_at_s = self._answered_at_s
        age_s = None if answered_at_s is None else self._clock.now_s() - answered_at_s
        return SourceHealth(NAME, why, age_s, self._asked, self._failed)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        now_s = self._clock.now_s()
        return {service: self._measure(service, now_s) for service in services}

    async def run(self) -> None:
        """Ask in rounds until cancelled."""
        try:
            while True:
                self._news.clear()
                await self.refresh()
                pause_s = self._settings.refresh_s
                if self._trouble is not None:
                    pause_s = min(pause_s, RETRY_S)
                try:
                    async with asyncio.timeout(pause_s):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            self._client.close()

    async def refresh(self) -> None:
        """One round: every signal once for all services, then every query of a user once."""
        troubles: list[str] = []
        signals = await asyncio.gather(*(self._ask_signal(q, troubles) for q in self._questions))
        self._signals = dict(zip((q.signal for q in self._questions), signals, strict=True))
        self._trouble = troubles[0] if troubles else None
        self._round += 1
        self._forget()
        if troubles and all(isinstance(seen, NoReading) for seen in signals):
            self._own = dict.fromkeys(self._wanted(), NoReading(troubles[0]))
        else:
            await self._ask_own(self._wanted())
        self._round += 1

    async def history(
        self, services: Collection[ServiceId], signal: Signal, *, window_s: float, step_s: float
    ) -> Mapping[ServiceId, list[tuple[float, float]]]:
        """How long ago a signal had which value, oldest first; only where every pod told it.

        One query for all services. Their pods are those that are ready now. Raises `RetryLater`,
        `GiveUp`.
        """
        question = next(q for q in self._questions if q.signal is signal)
        now_s = self._wall_s()
        samples = await self._client.query_range(
            question.promql, from_s=now_s - window_s, to_s=now_s, step_s=step_s
        )
        moments: dict[float, list[Sample]] = {}
        for sample in samples:
            moments.setdefault(sample.at_s, []).append(sample)
        past: dict[ServiceId, list[tuple[float, float]]] = {service: [] for service in services}
        for at_s in sorted(moments):
            told = told_by_pods(question, moments[at_s])
            for service, values in past.items():
                whole = self._whole(told, service)
                if whole is not None:
                    values.append((now_s - at_s, whole))
        return past

    def _whole(self, told: Mapping[Place, Told | NoReading], service: ServiceId) -> float | None:
        """The sum over a service's pods, if each of them told something fresh."""
        of_pods = [told.get((service.namespace, pod)) for pod in self._pods(service)]
        fresh = [t.value for t in of_pods if isinstance(t, Told) and self._is_fresh(t.age_s)]
        return sum(fresh) if fresh and len(fresh) == len(of_pods) else None

    # One round

    async def _ask_signal(self, question: Question, troubles: list[str]) -> _Pods | NoReading:
        """Ask for one signal; once the server is in trouble, no more is asked in this round."""
        async with self._free:
            if troubles:
                return NoReading(troubles[0])
            try:
                samples = await self._ask(question.promql)
            except GiveUp as trouble:
                return NoReading(str(trouble))
            except RetryLater as trouble:
                troubles.append(str(trouble))
                return NoReading(str(trouble))
        return _Pods(told_by_pods(question, samples), self._clock.now_s())

    async def _ask_own(self, wanted: Collection[str]) -> None:
        """Ask the users' queries; those that wait the longest first, those that failed last."""
        not_asked = NoReading("not asked yet")
        self._own = {promql: self._own.get(promql, not_asked) for promql in wanted}
        self._tried = {promql: self._tried.get(promql, (False, 0.0)) for promql in wanted}
        ends_s = self._clock.now_s() + QUERIES_PER_ROUND_S
        in_turn = sorted(wanted, key=self._tried.__getitem__)
        await asyncio.gather(*(self._ask_one(promql, ends_s) for promql in in_turn))

    async def _ask_one(self, promql: str, ends_s: float) -> None:
        async with self._free:
            if self._clock.now_s() > ends_s:
                return  # what it said before ages
            try:
                samples = await self._ask(promql)
            except (GiveUp, RetryLater) as trouble:
                self._own[promql] = NoReading(str(trouble))
                self._tried[promql] = (True, self._clock.now_s())
            else:
                self._own[promql] = _Given(samples, self._clock.now_s())
                self._tried[promql] = (False, self._clock.now_s())

    async def _ask(self, promql: str) -> list[Sample]:
        self._asked += 1
        try:
            samples = await self._client.query(promql)
            if samples:
                self._check_clock(samples[0].at_s)
        except (GiveUp, RetryLater):
            self._failed += 1
            raise
        self._answered_at_s = self._clock.now_s()
        return samples

    def _check_clock(self, at_s: float) -> None:
        ahead_s = at_s - self._wall_s()
        if abs(ahead_s) > SKEW_MOST_S:
            side = "ahead of" if ahead_s > 0 else "behind"
            raise RetryLater(
                f"its clock is {abs(ahead_s):.0f} s {side} this machine's; have NTP set both",
                after_s=RETRY_S,
            )

    def _wanted(self) -> dict[str, None]:
        """The users' queries, each once."""
        return {
            filled(query, service): None
            for service in self._asked_about
            for query in self._queries(service)
        }

    def _forget(self) -> None:
        now_s = self._clock.now_s()
        for service, at_s in list(self._asked_about.items()):
            if now_s - at_s > FORGOTTEN_AFTER_S:
                del self._asked_about[service]
                self._kept.pop(service, None)

    # What follows for one service

    def _measure(self, service: ServiceId, now_s: float) -> Measures:
        self._asked_about[service] = now_s
        pods, queries = self._pods(service), self._queries(service)
        kept = self._kept.get(service)
        if (
            kept is None
            or kept.round != self._round
            or kept.pods is not pods
            or kept.queries != queries
            or now_s > kept.until_s
        ):
            kept = self._kept[service] = self._made(service, pods, queries, now_s)
        return kept.measures

    def _made(
        self, service: ServiceId, pods: Collection[str], queries: Collection[Query], now_s: float
    ) -> _Kept:
        measures: dict[Quantity, Reading | NoReading] = {}
        if pods:  # without one there is nothing that Prometheus could know
            for signal, seen in self._signals.items():
                measures[signal] = self._signal(service, pods, seen, now_s)
        for query in queries:
            measures[query] = self._query(service, pods, filled(query, service), now_s)
        told = [seen.at_s for seen in measures.values() if isinstance(seen, Reading)]
        until_s = min(told, default=now_s) + self._settings.stale_after_s
        return _Kept(self._round, pods, queries, measures, until_s)

    def _signal(
        self,
        service: ServiceId,
        pods: Collection[str],
        seen: _Pods | NoReading,
        now_s: float,
    ) -> Reading | NoReading:
        """The sum over the ready pods that were seen lately."""
        if isinstance(seen, NoReading):
            return NoReading(f"{NAME}: {seen.why}")
        fresh, whys = [], []
        for pod in pods:
            told = seen.told.get((service.namespace, pod), NoReading("no series carries its name"))
            age_s = told.age_s + now_s - seen.at_s if isinstance(told, Told) else 0.0
            if isinstance(told, Told) and self._is_fresh(age_s):
                fresh.append((told.value, now_s - age_s))
            else:
                why = told.why if isinstance(told, NoReading) else _why_stale(age_s)
                whys.append(f"{pod}: {why}")
        if not fresh:
            more = f" (and {len(whys) - 1} more pods)" if len(whys) > 1 else ""
            return NoReading(f"{NAME}: {whys[0]}{more}")
        return reading(
            sum(value for value, _ in fresh),
            at_s=min(at_s for _, at_s in fresh),
            source=NAME,
            share_ratio=len(fresh) / len(pods),
        )

    def _query(
        self, service: ServiceId, pods: Collection[str], promql: str, now_s: float
    ) -> Reading | NoReading:
        """The value of a user's query: of the whole service, or the sum over its ready pods."""
        given = self._own.get(promql)
        if given is None:
            self._news.set()
            given = NoReading("not asked yet")
        if isinstance(given, NoReading):
            return NoReading(f"{NAME}: {given.why}")
        if not self._is_fresh(now_s - given.at_s):
            return NoReading(f"{NAME}: {_why_stale(now_s - given.at_s)}")
        total = value_for(service, given.samples, pods=pods)
        if isinstance(total, NoReading):
            return NoReading(f"{NAME}: {total.why}")
        value, share_ratio = total
        return reading(value, at_s=given.at_s, source=NAME, share_ratio=share_ratio)

    def _is_fresh(self, age_s: float) -> bool:
        return -SKEW_MOST_S <= age_s <= self._settings.stale_after_s


def _why_stale(age_s: float) -> str:
    if age_s < 0:
        return f"its newest sample is from {-age_s:.0f} s in the future"
    return f"its newest sample is {age_s:.0f} s old"
