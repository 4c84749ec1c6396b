# SPDX-License-Identifier: Apache-2.0
"""A source of signals that reads this machine's GPUs, and tells how busy each service's ones are.

A thread of its own asks the driver, which may hang on a GPU that dies: what it read last then grows
old, and is no reading any more (rule D1). A tick only reads what is there.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Protocol

import structlog

from autoscaler.adapters.gpus.devices import LocalDevice, mean_busy, told_ratio
from autoscaler.adapters.gpus.lineage import lineage
from autoscaler.core.signals import Measures, NoReading, Reading, ServiceId, Signal, reading
from autoscaler.ports import Clock, SourceHealth

log = structlog.get_logger(__name__)

PERIOD_S: Final = 1.0
AVERAGED_S: Final = 15.0  # the driver itself averages over a sixth of a second up to one
STALE_S: Final = 5.0

# Of each service, by replica: the processes that it began with.
Processes = Mapping[ServiceId, Mapping[str, Collection[int]]]


class Devices(Protocol):
    """Whom the thread asks; `NvmlDevices` is the real one."""

    def read(self) -> tuple[LocalDevice, ...] | NoReading: ...


@dataclass(frozen=True, slots=True)
class _Look:
    """All devices at one time. `lineages`: of each process that is on one of them."""

    at_s: float
    devices: tuple[LocalDevice, ...]
    lineages: Mapping[int, frozenset[int]]

    def busy(self, pids: Collection[int]) -> float | None:
        """How busy the devices are that descendants of these processes are on."""
        return mean_busy(device for device in self.devices if self._has(device, pids))

    def told_ratio(self, pids: Collection[int]) -> float:
        """The part (0-1) of those devices that tell how busy they are."""
        return told_ratio(device for device in self.devices if self._has(device, pids))

    def _has(self, device: LocalDevice, pids: Collection[int]) -> bool:
        return any(not self.lineages[pid].isdisjoint(pids) for pid in device.processes or ())


class NvmlSignalSource:
    """A `SignalSource` of the local platform. `run` it beside the ticks."""

    name = "nvml"

    def __init__(
        self,
        devices: Devices,
        *,
        pids: Callable[[], Processes],
        clock: Clock,
        lineage: Callable[[int], frozenset[int]] = lineage,
    ) -> None:
        """`pids()`: the ready replicas of every service, at this moment."""
        self._devices = devices
        self._pids = pids
        self._clock = clock
        self._lineage = lineage
        # The thread puts a new tuple here; nobody changes one.
        self._looks: tuple[_Look, ...] = ()
        self._why: str | None = None
        self._asked = self._failed = 0

    def health(self) -> SourceHealth:
        age_s = self._clock.now_s() - self._looks[-1].at_s if self._looks else None
        return SourceHealth(self.name, self._trouble(), age_s, self._asked, self._failed)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        looks, pids = self._looks, self._pids()
        return {
            service: {Signal.GPU_UTILIZATION: self._one(looks, pids.get(service, {}))}
            for service in services
        }

    def look(self) -> None:
        """Read all devices once; blocks for as long as the driver does."""
        self._asked += 1
        read = self._devices.read()
        if isinstance(read, NoReading):
            self._failed += 1
            if read.why != self._why:  # said once, however often it is so
                log.warning("the GPUs of this machine cannot be read", why=read.why)
            self._why = read.why
            return
        pids = {pid for device in read for pid in device.processes or ()}
        now_s = self._clock.now_s()
        look = _Look(now_s, read, {pid: self._lineage(pid) for pid in pids})
        kept = (each for each in self._looks if now_s - each.at_s < AVERAGED_S)
        self._looks, self._why = (*kept, look), None

    async def run(self) -> None:
        """Have a thread look every second, until cancelled."""
        stop = threading.Event()
        # A daemon: one that hangs in the driver must not keep the process from ending.
        threading.Thread(target=self._keep_looking, args=(stop,), daemon=True, name="nvml").start()
        try:
            await asyncio.Event().wait()
        finally:
            stop.set()

    def _keep_looking(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.look()
            stop.wait(PERIOD_S)

    def _one(
        self, looks: tuple[_Look, ...], replicas: Mapping[str, Collection[int]]
    ) -> Reading | NoReading:
        if not replicas:
            return NoReading(f"{self.name}: no replica is ready")
        now_s = self._clock.now_s()
        if not looks or now_s - looks[-1].at_s > STALE_S:
            return NoReading(f"{self.name}: {self._trouble() or 'the GPUs were not read yet'}")
        told = [ratio for pids in replicas.values() if (ratio := _mean(looks, pids)) is not None]
        if not told:
            return NoReading(f"{self.name}: {_why_untold(looks[-1], replicas)}")
        return reading(
            sum(told),
            at_s=looks[-1].at_s,
            source=self.name,
            share_ratio=sum(map(looks[-1].told_ratio, replicas.values())) / len(replicas),
        )

    def _trouble(self) -> str | None:
        """What is wrong now: with the reading, or else with a GPU."""
        if self._why is not None:
            return self._why
        if not self._looks:
            return None
        age_s = self._clock.now_s() - self._looks[-1].at_s
        if age_s > STALE_S:
            return f"the driver has not answered for {age_s:.0f} s"
        return "; ".join(_ailing(self._looks[-1].devices)) or None


def _mean(looks: tuple[_Look, ...], pids: Collection[int]) -> float | None:
    """Over the looks that tell; None where the newest does not."""
    if looks[-1].busy(pids) is None:
        return None
    return fmean(busy for look in looks if (busy := look.busy(pids)) is not None)


def _ailing(devices: Collection[LocalDevice]) -> Iterator[str]:
    for device in devices:
        if device.ails and device.mig_id is None:  # what ails an instance is its GPU
            yield f"{device.uuid}: {device.ails}"


def _why_untold(look: _Look, replicas: Mapping[str, Collection[int]]) -> str:
    if not look.devices:
        return "the driver knows no GPU"
    if all(device.processes is None for device in look.devices):
        return "the driver does not tell which processes are on its GPUs"
    on_one = any(look._has(d, pids) for d in look.devices for pids in replicas.values())
    if on_one:
        return "the GPUs of its replicas do not tell how busy they are"
    return f"no process of its {len(replicas)} ready replicas is on a GPU"
