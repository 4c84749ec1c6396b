# SPDX-License-Identifier: Apache-2.0
"""A source of signals that asks DCGM exporters beside the ticks, and tells how busy pods' GPUs are.

DCGM itself looks at the GPUs every half minute, so nothing here is fast: a page is asked for every
quarter minute and believed for a minute. A pod that no exporter names is not told (rule D1).
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import Final

from autoscaler.adapters.engines.exposition import samples
from autoscaler.adapters.gpus.dcgm import ASKED_FOR, devices
from autoscaler.adapters.gpus.devices import Device, mean_busy, told_ratio
from autoscaler.adapters.plain_http import Answer, At, Kept, NoAnswer
from autoscaler.core.signals import Measures, NoReading, Reading, ServiceId, Signal, reading
from autoscaler.ports import Clock, SourceHealth

PERIOD_S: Final = 15.0
PATIENCE_S: Final = 5.0  # for all of one scrape
COLLECTED_EVERY_S: Final = 30.0  # by DCGM, so an answer may be that old when it is given
STALE_S: Final = 60.0  # since an exporter answered: it missed three of our questions
LONGEST_BACK_OFF_S: Final = 60.0
JITTER_RATIO: Final = 0.1
ROUND_S: Final = 1.0  # how often it is looked which exporters there are, and what is stale
AT_ONCE: Final = 128  # scrapes
KEPT_MOST: Final = 256  # connections that stay open; a process may have only 1,024 files
PAGE_MAX_BYTES: Final = 1024 * 1024  # a node with eight GPUs writes a twentieth of this

Pod = tuple[str, str]  # namespace, name


@dataclass(slots=True, eq=False)
class _Exporter:
    """One exporter and what it told last, at `at_s`; `why` it fails now, empty if it does not."""

    kept: Kept
    asking: "asyncio.Task[None] | None" = None
    told: tuple[Device, ...] = ()
    at_s: float | None = None
    why: str = ""
    failures: int = 0

    def fresh(self, now_s: float) -> bool:
        return self.at_s is not None and now_s - self.at_s <= STALE_S


@dataclass(slots=True)
class _Index:
    """Whose devices there are, as of `at_s`; each device once, with when its page was read."""

    at_s: float = float("-inf")
    by_pod: dict[Pod, dict[tuple[str, str | None], tuple[float, Device]]] = field(
        default_factory=dict
    )


class DcgmSignalSource:
    """A `SignalSource`: how busy the GPUs of each service's pods are. `run` it beside the ticks.

    `places()`: where exporters answer now; `trouble()`: why that is not known, or empty;
    `ready_pods(service)`: the names of its ready pods.
    """

    name = "dcgm"

    def __init__(
        self,
        places: Callable[[], Collection[At]],
        *,
        ready_pods: Callable[[ServiceId], Collection[str]],
        clock: Clock,
        trouble: Callable[[], str] = lambda: "",
        period_s: float = PERIOD_S,
    ) -> None:
        self._places = places
        self._trouble = trouble
        self._ready_pods = ready_pods
        self._clock = clock
        self._period_s = period_s
        self._random = Random()  # noqa: S311 - it only spreads load
        self._exporters: dict[At, _Exporter] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._index = _Index()
        self._asked = self._failed = 0
        self._runs = False  # who stands by asks nobody, and knows of no trouble

    def health(self) -> SourceHealth:
        answered = [e.at_s for e in self._exporters.values() if e.at_s is not None]
        age_s = self._clock.now_s() - max(answered) if answered else None
        return SourceHealth(self.name, self._why(), age_s, self._asked, self._failed)

    def devices(self) -> tuple[Device, ...]:
        """All that fresh pages told of."""
        return tuple(device for _, device in self._fresh(self._clock.now_s()))

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        now_s = self._clock.now_s()
        if now_s - self._index.at_s >= ROUND_S:
            self._reindex(now_s)
        return {service: {Signal.GPU_UTILIZATION: self._one(service)} for service in services}

    async def run(self) -> None:
        """Ask the exporters until cancelled."""
        self._runs = True
        try:
            async with asyncio.TaskGroup() as asking:
                while True:
                    self._follow(asking)
                    await asyncio.sleep(min(ROUND_S, self._period_s))
        finally:
            for exporter in self._exporters.values():
                exporter.kept.close()
            self._exporters, self._runs = {}, False

    def _follow(self, asking: asyncio.TaskGroup) -> None:
        """Begin with exporters that are new, and leave those that are gone."""
        places = set(self._places())
        for at in self._exporters.keys() - places:
            gone = self._exporters.pop(at)
            if gone.asking is not None:
                gone.asking.cancel()
            gone.kept.close()
        for at in places - self._exporters.keys():
            new = self._exporters[at] = _Exporter(Kept(at))
            new.asking = asking.create_task(self._ask(new), name=f"dcgm {at}")

    async def _ask(self, exporter: _Exporter) -> None:
        while True:
            async with self._at_once:
                answer = await exporter.kept.get(
                    timeout_s=PATIENCE_S,
                    max_bytes=PAGE_MAX_BYTES,
                    close=len(self._exporters) > KEPT_MOST,
                )
            self._heard(exporter, _page(exporter.kept.at, answer))
            back_off_s = self._period_s * 2.0 ** min(max(exporter.failures - 1, 0), 10)
            jitter = 1 + self._random.uniform(-JITTER_RATIO, JITTER_RATIO)
            await asyncio.sleep(min(back_off_s, LONGEST_BACK_OFF_S) * jitter)

    def _heard(self, exporter: _Exporter, page: tuple[Device, ...] | NoReading) -> None:
        self._asked += 1
        if isinstance(page, NoReading):
            self._failed += 1
            exporter.failures += 1
            exporter.why = page.why
            return
        exporter.told, exporter.at_s = page, self._clock.now_s()
        exporter.failures, exporter.why = 0, ""
        self._index.at_s = float("-inf")

    def _why(self) -> str | None:
        """What is wrong with the exporters now."""
        failing = [exporter for exporter in self._exporters.values() if exporter.failures]
        if not self._exporters:
            return (self._trouble() or "no exporter is known") if self._runs else None
        if not failing:
            return None
        return f"{len(failing)} of {len(self._exporters)} exporters fail: {failing[0].why}"

    def _fresh(self, now_s: float) -> Iterator[tuple[float, Device]]:
        for exporter in self._exporters.values():
            if exporter.at_s is not None and exporter.fresh(now_s):
                for device in exporter.told:
                    yield exporter.at_s, device

    def _reindex(self, now_s: float) -> None:
        """A device that two exporters tell of counts once, as the newer page has it."""
        self._index = _Index(now_s)
        for at_s, device in self._fresh(now_s):
            if device.namespace is None or device.pod is None:
                continue
            of_pod = self._index.by_pod.setdefault((device.namespace, device.pod), {})
            known = of_pod.get((device.uuid, device.mig_id))
            if known is None or known[0] < at_s:
                of_pod[device.uuid, device.mig_id] = (at_s, device)

    def _one(self, service: ServiceId) -> Reading | NoReading:
        pods = self._ready_pods(service)
        if not pods:
            return NoReading(f"{self.name}: no pod is ready")
        busy, share, oldest_s = [], 0.0, float("inf")
        for pod in pods:
            of_pod = self._index.by_pod.get((service.namespace, pod), {}).values()
            ratio = mean_busy(device for _, device in of_pod)
            if ratio is not None:
                busy.append(ratio)
                share += told_ratio(device for _, device in of_pod)
                oldest_s = min(oldest_s, *(at_s for at_s, _ in of_pod))
        if not busy:
            return NoReading(f"{self.name}: {self._why_untold(len(pods))}")
        return reading(
            sum(busy),
            at_s=oldest_s - COLLECTED_EVERY_S,
            source=self.name,
            share_ratio=share / len(pods),
        )

    def _why_untold(self, pods: int) -> str:
        told = self._index.by_pod
        if told:
            more = f"; {why}" if (why := self._why()) else ""
            return f"no exporter tells how busy the GPUs of its {pods} ready pods are{more}"
        if why := self._why():
            return why
        if any(True for _ in self._fresh(self._clock.now_s())):
            return (
                "no GPU is labelled with a pod; set DCGM_EXPORTER_KUBERNETES=true at the exporter"
            )
        return "no exporter has answered lately"


def _page(at: At, answer: Answer | NoAnswer) -> tuple[Device, ...] | NoReading:
    """What an exporter answered."""
    if isinstance(answer, NoAnswer):
        return NoReading(f"{at} {answer.why}")
    if answer.status != HTTPStatus.OK:
        return NoReading(f"{at} answered {answer.status}; is that where an exporter's metrics are?")
    if not answer.whole:
        return NoReading(f"{at} broke off: {answer.cut}")
    page = samples(answer.body.decode(errors="replace"), names=ASKED_FOR)
    if isinstance(page, NoReading):
        return NoReading(f"{at}: {page.why}")
    return devices(page) or NoReading(f"{at}: no GPU in it (no DCGM_FI_ metric with a UUID)")
