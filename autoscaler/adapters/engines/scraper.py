# SPDX-License-Identifier: Apache-2.0
"""Asks the pods of a cluster for their metrics once a second, beside the ticks, which only read.

Pods that answer have a lane of their own, so that a cluster full of pods that do not never keeps
them waiting. Both lanes are bounded in what runs at once and in how many scrapes begin a second:
where pods that answer must wait for their turn each is asked less often, which `health` says, and
what is older than `STALE_S` is no reading (rule D1).
"""

import asyncio
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from time import thread_time
from typing import Final

from autoscaler.adapters.engines.growth import STALE_S, Look, followed_up
from autoscaler.adapters.engines.page import SCRAPE_MAX_BYTES, Page, page_of
from autoscaler.adapters.plain_http import Answer, At, Kept, NoAnswer
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.ports import Clock, SourceHealth

PERIOD_S: Final = 1.0
# An overloaded server answers its metrics as late as its requests: just then they are needed.
PATIENCE_S: Final = 2.5
JITTER_RATIO: Final = 0.1
LONGEST_BACK_OFF_S: Final = 10.0
ROUND_S: Final = 0.05  # how often it is looked whose turn it is
FORGOTTEN_AFTER_S: Final = 60.0  # a service that nobody asks about any more
BEGUN_PER_S: Final = 2_500  # of pods that answer: two thirds of a core, if their pages are long
TRIED_PER_S: Final = 500  # of pods that do not: a twentieth of a core, where nothing listens
READ_MOST_RATIO: Final = 0.05  # of a core for one pod: a page that takes long is read less often
LATE_S: Final = 0.5  # that a pod's turn is late is told from here on

# Of the files that a process may have open: connections that stay open, scrapes of pods that
# answer, and of those that do not. A busy server may take half a second for its metrics, so that
# two thousand pods need a thousand scrapes at once; each may hold `SCRAPE_MAX_BYTES`.
KEPT_MOST: Final = 8_192
AT_ONCE_MOST: Final = 512
TRIED_AT_ONCE_MOST: Final = 256


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections there may be."""

    kept: int
    at_once: int
    tried_at_once: int

    @classmethod
    def of(cls, files: int) -> "Room":
        """For a process that may open so many files: an eighth of them is left to the rest."""
        if files == resource.RLIM_INFINITY:
            return cls(KEPT_MOST, AT_ONCE_MOST, TRIED_AT_ONCE_MOST)
        return cls(
            kept=min(KEPT_MOST, files // 2),
            at_once=min(AT_ONCE_MOST, files // 8),
            tried_at_once=min(TRIED_AT_ONCE_MOST, files // 4),
        )


@dataclass(slots=True, eq=False)
class _Pod:
    """One pod and what it said. `last`: its newest look, however old; `failures` in a row.

    `turn_s`: when its turn came last.
    """

    kept: Kept
    pod_id: str
    why: NoReading
    last: Look | None = None
    failures: int = 0
    turn_s: float = 0.0
    expected: bool = True
    busy: bool = False

    @property
    def answers(self) -> bool:
        return self.last is not None and not self.failures


@dataclass(slots=True)
class _Lane:
    """Pods whose turn has come, those that failed least first; and how many may be asked."""

    at_once: int
    begun_per_s: float
    turns: list[tuple[int, float, int, _Pod]] = field(default_factory=list)
    running: int = 0
    unused: float = field(init=False)  # scrapes that might have begun, of the last quarter second

    def __post_init__(self) -> None:
        self.unused = self.begun_per_s / 4

    def late_s(self, now_s: float) -> float:
        """For how long whoever is next waits for its turn."""
        return now_s - self.turns[0][1] if self.turns else 0.0

    def begin(self, elapsed_s: float) -> list[_Pod]:
        self.unused = min(self.unused + elapsed_s * self.begun_per_s, self.begun_per_s / 4)
        begun = []
        while self.turns and self.running < self.at_once and self.unused >= 1:
            pod = heappop(self.turns)[-1]
            if pod.expected:
                begun.append(pod)
                self.running += 1
                self.unused -= 1
        return begun


@dataclass(slots=True)
class _Expected:
    pods: dict[str, _Pod] = field(default_factory=dict)
    places: Mapping[str, At] = field(default_factory=dict)
    at_s: float = 0.0


class EngineScraper:
    """Newest look at each pod that was said to exist. `expect` and `look` do no I/O."""

    def __init__(
        self,
        *,
        clock: Clock,
        random: Random,
        begun_per_s: float = BEGUN_PER_S,
        read: Callable[[At, Answer | NoAnswer], Page | NoReading] = page_of,
    ) -> None:
        """`read`: what an answer says; it does no I/O and takes a fraction of a millisecond."""
        room = Room.of(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._clock = clock
        self._random = random
        self._read = read
        self._services: dict[ServiceId, _Expected] = {}
        self._answering = _Lane(at_once=room.at_once, begun_per_s=begun_per_s)
        self._others = _Lane(at_once=room.tried_at_once, begun_per_s=TRIED_PER_S)
        self._due: list[tuple[float, int, _Pod]] = []
        self._number = count()
        self._scrapes: set[asyncio.Task[None]] = set()
        self._open: set[_Pod] = set()
        self._kept_most = room.kept
        self._asked = self._failed = 0  # scrapes that ended
        self._answered_at_s: float | None = None

    def health(self) -> SourceHealth:
        """How the scrapes fare; what is wrong is told of the pods that are expected now."""
        pods = [pod for of in self._services.values() for pod in of.pods.values()]
        failing = [pod for pod in pods if pod.failures]
        whys = []
        if failing:
            whys.append(f"{len(failing)} of {len(pods)} pods fail: {failing[0].why.why}")
        now_s = self._clock.now_s()
        late_s = self._answering.late_s(now_s)
        if late_s > LATE_S:
            whys.append(
                f"{len(self._answering.turns)} of {len(pods)} pods wait to be asked, the first "
                f"for {late_s:.1f} s: they are more than can be asked every {PERIOD_S:g} s, or "
                "answer too slowly"
            )
        age_s = None if self._answered_at_s is None else now_s - self._answered_at_s
        return SourceHealth(
            "engine metrics", "; ".join(whys) or None, age_s, self._asked, self._failed
        )

    def expect(self, service: ServiceId, places: Mapping[str, At]) -> None:
        """Say which pods a service has now, by id; new ones are asked at once.

        `places` must not change afterwards: the same object again says that nothing did.
        """
        expected = self._services.setdefault(service, _Expected())
        expected.at_s = self._clock.now_s()
        if places is expected.places:
            return
        expected.places = places
        known = expected.pods
        for pod_id in [p for p, pod in known.items() if places.get(p) != pod.kept.at]:
            self._drop(known.pop(pod_id))
        for pod_id, at in places.items():
            if pod_id not in known:
                why = NoReading(f"{pod_id}: not asked yet")
                known[pod_id] = pod = _Pod(Kept(at), pod_id, why)
                self._when(pod, 0.0)

    def look(self, service: ServiceId, pod_id: str) -> Look | NoReading:
        """What a pod said last, or why that is not known."""
        expected = self._services.get(service)
        pod = None if expected is None else expected.pods.get(pod_id)
        if pod is None:
            return NoReading(f"{pod_id}: not asked yet")
        if pod.last is None or pod.failures:
            return pod.why
        age_s = self._clock.now_s() - pod.last.at_s
        if age_s > STALE_S:
            return NoReading(f"{pod_id}: {pod.kept.at} last answered {age_s:.1f} s ago")
        return pod.last

    async def run(self) -> None:
        """Scrape until cancelled."""
        before_s = self._clock.now_s()
        try:
            while True:
                now_s = self._clock.now_s()
                self._begin(now_s - before_s, now_s)
                before_s = now_s
                await asyncio.sleep(ROUND_S)
        finally:
            for task in self._scrapes:
                task.cancel()
            await asyncio.gather(*self._scrapes, return_exceptions=True)
            for service in list(self._services):
                self._forget(service)

    def _begin(self, elapsed_s: float, now_s: float) -> None:
        """Whose turn it is joins the lane; who may begin begins."""
        for service in [s for s, e in self._services.items() if now_s - e.at_s > FORGOTTEN_AFTER_S]:
            self._forget(service)
        while self._due and self._due[0][0] <= now_s:
            due_s, number, pod = heappop(self._due)
            pod.turn_s = due_s
            lane = self._answering if pod.answers else self._others
            heappush(lane.turns, (pod.failures, due_s, number, pod))
        for lane in (self._answering, self._others):
            for pod in lane.begin(elapsed_s):
                task = asyncio.create_task(self._scrape(pod, lane))
                self._scrapes.add(task)
                task.add_done_callback(self._scrapes.discard)

    async def _scrape(self, pod: _Pod, lane: _Lane) -> None:
        pod.busy = True
        try:
            answer = await pod.kept.get(
                timeout_s=PATIENCE_S,
                max_bytes=SCRAPE_MAX_BYTES,
                close=pod not in self._open and len(self._open) >= self._kept_most,
            )
        finally:
            pod.busy = False
            lane.running -= 1
        (self._open.add if pod.kept.open else self._open.discard)(pod)
        began_s = thread_time()
        page = self._read(pod.kept.at, answer)
        read_s = thread_time() - began_s
        self._note(pod, page)
        if not pod.expected:
            self._drop(pod)
            return
        pause_s = PERIOD_S * 2.0 ** min(max(pod.failures - 1, 0), 10)
        pause_s = min(max(pause_s, read_s / READ_MOST_RATIO), LONGEST_BACK_OFF_S)
        # From turn to turn, so that waiting for it and for the answer does not add to the period.
        spent_s = 0.0 if pod.failures else self._clock.now_s() - pod.turn_s
        self._when(pod, pause_s, spent_s=spent_s)

    def _note(self, pod: _Pod, page: Page | NoReading) -> None:
        self._asked += 1
        if isinstance(page, NoReading):
            self._failed += 1
            pod.why = NoReading(f"{pod.pod_id}: {page.why}")
            pod.failures += 1
        else:
            self._answered_at_s = self._clock.now_s()
            pod.last = followed_up(page, at_s=self._answered_at_s, before=pod.last)
            pod.failures = 0

    def _when(self, pod: _Pod, pause_s: float, *, spent_s: float = 0.0) -> None:
        """Its turn comes after a pause, of which `spent_s` is over; half of it is always left."""
        pause_s *= 1 + self._random.uniform(-JITTER_RATIO, JITTER_RATIO)
        in_s = max(pause_s - spent_s, pause_s / 2)
        heappush(self._due, (self._clock.now_s() + in_s, next(self._number), pod))

    def _forget(self, service: ServiceId) -> None:
        for pod in self._services.pop(service).pods.values():
            self._drop(pod)

    def _drop(self, pod: _Pod) -> None:
        """It is not asked again; a scrape that runs ends by itself."""
        pod.expected = False
        if not pod.busy:
            pod.kept.close()
            self._open.discard(pod)
