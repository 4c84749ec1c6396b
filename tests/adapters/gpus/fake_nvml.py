# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 - the names are the library's
"""A stand-in for the module `pynvml`: GPUs as a test says, behind the functions that we call.

A value that is an error number is raised; what a card does not have is not supported.
"""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass(frozen=True, slots=True)
class Error:
    """A function that fails, instead of a value."""

    number: int


NOT_SUPPORTED = Error(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = Error(pynvml.NVML_ERROR_GPU_IS_LOST)


@dataclass(eq=False)
class FakeCard:
    """One GPU or MIG instance; it is its own handle. `processes`: bytes by process id."""

    uuid: Any = "GPU-1"
    name: Any = "NVIDIA H100 80GB HBM3"
    util: Any = NOT_SUPPORTED
    used: Any = NOT_SUPPORTED
    total: int = 80 * 2**30
    used_v1: Any = NOT_SUPPORTED
    power_mw: Any = NOT_SUPPORTED
    temperature: Any = NOT_SUPPORTED
    processes: Any = NOT_SUPPORTED
    uncorrected: Any = NOT_SUPPORTED
    events: bool = True
    lost: bool = False
    instance_id: Any = NOT_SUPPORTED
    instances: "list[FakeCard] | None" = None  # None: it cannot be split

    def tell(self, value: Any) -> Any:
        return told(LOST if self.lost else value)


def told(value: Any) -> Any:
    if isinstance(value, Error):
        raise pynvml.NVMLError(value.number)
    return value


@dataclass
class FakeNvml:
    """`broken`: why the library cannot be used; `begun`, `ended`: how often it was."""

    cards: list[FakeCard] = field(default_factory=list)
    broken: Error | None = None
    xids: deque[tuple[FakeCard, int]] = field(default_factory=deque)
    begun: int = 0
    ended: int = 0
    listening: set[str] = field(default_factory=set)

    def nvmlInit(self) -> None:
        told(self.broken)
        self.begun += 1

    def nvmlShutdown(self) -> None:
        self.ended += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlDeviceGetCount(self) -> int:
        told(self.broken)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeCard:
        card = self.cards[index]
        card.tell(None)
        return card

    def nvmlDeviceGetUUID(self, card: FakeCard) -> Any:
        return card.tell(card.uuid)

    def nvmlDeviceGetName(self, card: FakeCard) -> Any:
        return card.tell(card.name)

    def nvmlDeviceGetUtilizationRates(self, card: FakeCard) -> Any:
        return SimpleNamespace(gpu=card.tell(card.util), memory=0)

    def nvmlDeviceGetMemoryInfo(self, card: FakeCard, version: int | None = None) -> Any:
        used = card.tell(card.used_v1 if version is None else card.used)
        return SimpleNamespace(used=used, total=card.total, reserved=0, free=0)

    def nvmlDeviceGetPowerUsage(self, card: FakeCard) -> Any:
        return card.tell(card.power_mw)

    def nvmlDeviceGetTemperature(self, card: FakeCard, sensor: int) -> Any:
        return card.tell(card.temperature)

    def nvmlDeviceGetTemperatureV(self, card: FakeCard, sensor: int) -> Any:
        return card.tell(card.temperature)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, card: FakeCard) -> Any:
        processes = card.tell(card.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]

    def nvmlDeviceGetComputeRunningProcesses_v2(self, card: FakeCard) -> Any:
        return self.nvmlDeviceGetComputeRunningProcesses_v3(card)

    def nvmlDeviceGetTotalEccErrors(self, card: FakeCard, kind: int, counter: int) -> Any:
        assert (kind, counter) == (1, 0)  # uncorrected, since the driver was loaded
        return card.tell(card.uncorrected)

    def nvmlDeviceGetMigMode(self, card: FakeCard) -> list[int]:
        card.tell(NOT_SUPPORTED if card.instances is None else None)
        return [1, 1] if card.instances else [0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: FakeCard) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: FakeCard, index: int) -> FakeCard:
        instances = card.instances or []
        if index >= len(instances):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instances[index]

    def nvmlDeviceGetGpuInstanceId(self, card: FakeCard) -> Any:
        return card.tell(card.instance_id)

    def nvmlEventSetCreate(self) -> str:
        return "event set"

    def nvmlDeviceRegisterEvents(self, card: FakeCard, kinds: int, events: str) -> None:
        assert (kinds, events) == (pynvml.nvmlEventTypeXidCriticalError, "event set")
        card.tell(None if card.events else NOT_SUPPORTED)
        self.listening.add(card.uuid)

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> Any:
        assert (events, timeout_ms) == ("event set", 0)
        if not self.xids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        card, xid = self.xids.popleft()
        return SimpleNamespace(device=card, eventData=xid)
