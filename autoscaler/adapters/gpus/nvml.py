# SPDX-License-Identifier: Apache-2.0
"""Reads this machine's GPUs from NVIDIA's driver by NVML; only this file calls that library.

Without a driver there is no reading, which is not zero devices (rule D1). What a GPU does not tell
is None; a GPU that is lost stays listed and says so. Calls may block while a GPU dies, so they
belong on a thread of their own.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pynvml
import structlog

from autoscaler.adapters.gpus.devices import LocalDevice
from autoscaler.core.signals import NoReading

log = structlog.get_logger(__name__)

# How a GPU or a driver says that it does not have something, which is no trouble.
NOT_TOLD: Final = frozenset(
    {
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,  # of what only a whole GPU has, asked of an instance
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_NO_PERMISSION,
    }
)
REMEDY: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install NVIDIA's driver, or run where it is",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the driver's kernel module",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was replaced; restart the machine",
    pynvml.NVML_ERROR_NO_PERMISSION: "give this process access to /dev/nvidiactl",
}
MOST_BYTES: Final = 10**15  # what is larger stands for no value
EVENTS_AT_ONCE: Final = 64  # the rest is heard at the next read


class NvmlDevices:
    """The devices of this machine. One thread at a time may use it.

    `library` has the functions of the module `pynvml`. `driver`: its version, once it answered.
    """

    def __init__(self, library: Any = pynvml, *, node: str | None = None) -> None:
        self._library = library
        self._node = node
        self.driver: str | None = None
        self._open = False
        self._uuids: dict[int, str] = {}  # by index, of GPUs that answered once
        self._events: Any = None
        self._xids: dict[str, int] = {}  # the newest of each GPU; only of those that tell of any

    def read(self) -> tuple[LocalDevice, ...] | NoReading:
        """Every GPU, each followed by its MIG instances."""
        try:
            self._begin()
            count = self._library.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.close()
            remedy = REMEDY.get(error.value)
            return NoReading(f"nvml: {error}" + (f"; {remedy}" if remedy else ""))
        self._hear()
        return tuple(device for index in range(count) for device in self._card(index))

    def close(self) -> None:
        """Let the library go; the next `read` begins anew."""
        if not self._open:
            return
        self._open, self._events = False, None
        try:
            self._library.nvmlShutdown()
        except pynvml.NVMLError as error:
            log.info("the driver's library was not closed", why=str(error))

    def _begin(self) -> None:
        if self._open:
            return
        self._library.nvmlInit()
        self._open = True
        self.driver = _Asked(self._library).ask("nvmlSystemGetDriverVersion")
        self._listen()

    def _listen(self) -> None:
        """Have the driver note the critical events of each GPU from now on."""
        library = _Asked(self._library)
        self._events = library.ask("nvmlEventSetCreate")
        if self._events is None:
            return
        for index in range(library.ask("nvmlDeviceGetCount") or 0):
            card = _Asked(self._library, library.ask("nvmlDeviceGetHandleByIndex", index))
            uuid = card.ask("nvmlDeviceGetUUID")
            heard = card.did(
                "nvmlDeviceRegisterEvents", pynvml.nvmlEventTypeXidCriticalError, self._events
            )
            if uuid is not None and heard:
                self._xids.setdefault(uuid, 0)

    def _hear(self) -> None:
        """Take in the events that there are, and wait for none."""
        library = _Asked(self._library)
        for _ in range(EVENTS_AT_ONCE if self._events is not None else 0):
            event = library.ask("nvmlEventSetWait_v2", self._events, 0)
            if event is None:
                return
            uuid = _Asked(self._library, event.device).ask("nvmlDeviceGetUUID") or "unknown"
            self._xids[uuid] = int(event.eventData)
            log.warning("a GPU had a critical event", uuid=uuid, xid=self._xids[uuid])

    def _card(self, index: int) -> Iterator[LocalDevice]:
        library = _Asked(self._library)
        card = _Asked(self._library, library.ask("nvmlDeviceGetHandleByIndex", index))
        uuid = card.ask("nvmlDeviceGetUUID")
        if uuid is None:
            uuid = self._uuids.get(index, f"GPU number {index}")
            trouble = library.trouble or card.trouble or "it does not tell its UUID"
            yield LocalDevice(uuid, node=self._node, last_xid=self._xids.get(uuid), trouble=trouble)
            return
        self._uuids[index] = uuid
        yield self._device(card, uuid)
        mode = card.ask("nvmlDeviceGetMigMode")
        if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return
        for number in range(card.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
            handle = card.ask("nvmlDeviceGetMigDeviceHandleByIndex", number)
            if handle is not None:
                yield self._device(_Asked(self._library, handle), uuid, split=True)

    def _device(self, card: "_Asked", uuid: str, *, split: bool = False) -> LocalDevice:
        rates = card.ask("nvmlDeviceGetUtilizationRates")
        power_mw = card.ask("nvmlDeviceGetPowerUsage")
        used, total = _memory(card)
        return LocalDevice(
            uuid=uuid,
            mig_profile=_profile(card.ask("nvmlDeviceGetName")) if split else None,
            mig_id=_text(card.ask("nvmlDeviceGetGpuInstanceId")) if split else None,
            node=self._node,
            utilization_ratio=rates.gpu / 100 if rates and 0 <= rates.gpu <= 100 else None,
            memory_used_bytes=used,
            memory_total_bytes=total,
            power_w=None if power_mw is None else power_mw / 1000,
            temperature_c=_temperature(card),
            processes=_processes(card),
            uncorrected_errors=card.ask(
                "nvmlDeviceGetTotalEccErrors",
                pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                pynvml.NVML_VOLATILE_ECC,
            ),
            last_xid=self._xids.get(uuid),
            trouble=card.trouble,
        )


class _Asked:
    """The library, or one handle of it, that answers None where it has no answer.

    `trouble`: the first error that was more than that.
    """

    def __init__(self, library: Any, *handle: Any) -> None:
        self._library = library
        self._handle = handle
        self.trouble = ""

    def ask(self, function: str, *arguments: Any) -> Any:
        if None in self._handle:
            return None
        try:
            return getattr(self._library, function)(*self._handle, *arguments)
        except pynvml.NVMLError as error:
            self._note(error)
            return None

    def did(self, function: str, *arguments: Any) -> bool:
        """Whether what returns nothing was done."""
        if None in self._handle:
            return False
        try:
            getattr(self._library, function)(*self._handle, *arguments)
        except pynvml.NVMLError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: pynvml.NVMLError) -> None:
        if error.value not in NOT_TOLD and not self.trouble:
            self.trouble = str(error)


def _memory(card: _Asked) -> tuple[int | None, int | None]:
    """Used and total. Old drivers count what they keep for themselves as used."""
    memory = card.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
    if memory is None:
        memory = card.ask("nvmlDeviceGetMemoryInfo")
    return (None, None) if memory is None else (_bytes(memory.used), _bytes(memory.total))


def _temperature(card: _Asked) -> float | None:
    told = card.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
    if told is None:  # newer libraries are to lose that function
        told = card.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU)
    return None if told is None else float(told)


def _processes(card: _Asked) -> Mapping[int, int | None] | None:
    told = card.ask("nvmlDeviceGetComputeRunningProcesses_v3")
    if told is None:
        told = card.ask("nvmlDeviceGetComputeRunningProcesses_v2")
    return None if told is None else {one.pid: _bytes(one.usedGpuMemory) for one in told}


def _bytes(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MOST_BYTES else None


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _profile(name: str | None) -> str | None:
    """Of an instance: `1g.10gb` in `NVIDIA H100 80GB HBM3 MIG 1g.10gb`."""
    return (name or "").partition(" MIG ")[2] or None
