# SPDX-License-Identifier: Apache-2.0
"""Reads this node's GPUs from NVIDIA's driver by NVML; only this package calls that library.

What a GPU does not tell is None; one that is lost stays listed, and says so. Calls may block while
a GPU dies, so they belong on a thread of their own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import pynvml
import structlog

from scheduler_extender.node_agent.asked import Asked
from scheduler_extender.node_agent.gpus import Gpu, Links, Machine, NotRead
from scheduler_extender.node_agent.links import links_between

log = structlog.get_logger(__name__)

MIB: Final = 2**20
MOST_BYTES: Final = 10**15  # what is larger stands for no value
EVENTS_AT_ONCE: Final = 64  # the rest is heard at the next reading
# Critical events that a program brings about by itself, and the GPU is none the worse for:
# graphics exceptions, page faults, stopped and preempted channels, video, context switches.
XIDS_OF_PROGRAMS: Final = frozenset({13, 31, 43, 45, 68, 109})
# Drivers before 510 do not tell what they keep for themselves.
LEAST_RESERVE_MIB: Final = 256
RESERVE_RATIO: Final = 0.03
REMEDY: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install NVIDIA's driver, or run where it is",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the driver's kernel module",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was replaced; restart the node",
    pynvml.NVML_ERROR_NO_PERMISSION: "give this process access to /dev/nvidiactl",
}


class NvmlGpus:
    """The GPUs of this node. One thread at a time may use it.

    `library` has the functions of the module `pynvml`. `xids`: by UUID, critical events that were
    heard by an earlier process since the node started.
    """

    def __init__(self, library: Any = pynvml, *, xids: Mapping[str, int] | None = None) -> None:
        self._library = library
        self._open = False
        self._events: Any = None
        self._xids = dict(xids or {})
        self._known: dict[int, tuple[Gpu, ...]] = {}  # by index, as it was read last
        self._links: tuple[tuple[str, ...], Links] | None = None  # of these UUIDs
        self._unlisted: list[str] = []
        self._modes: list[int | None] = []

    def read(self) -> Machine | NotRead:
        try:
            self._begin()
            count = self._library.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self.close()
            remedy = REMEDY.get(error.value)
            return NotRead(f"nvml: {error}" + (f"; {remedy}" if remedy else ""))
        self._hear()
        self._unlisted, self._modes = [], []
        gpus = tuple(gpu for index in range(count) for gpu in self._card(index))
        return Machine(
            gpus,
            links=self._links_of(gpus, count),
            driver=Asked(self._library).ask("nvmlSystemGetDriverVersion") or "",
            one_process=bool(self._modes)
            and set(self._modes) == {pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS},
            unlisted=tuple(self._unlisted),
        )

    def close(self) -> None:
        """Let the library go; the next `read` begins anew."""
        if not self._open:
            return
        self._open, self._events, self._links = False, None, None
        try:
            self._library.nvmlShutdown()
        except pynvml.NVMLError as error:
            log.info("the driver's library was not closed", why=str(error))

    def _begin(self) -> None:
        if self._open:
            return
        self._library.nvmlInit()
        self._open = True
        library = Asked(self._library)
        self._events = library.ask("nvmlEventSetCreate")
        for index in range(library.ask("nvmlDeviceGetCount") or 0):
            card = self._at(index)
            if self._events is not None:
                card.did(
                    "nvmlDeviceRegisterEvents", pynvml.nvmlEventTypeXidCriticalError, self._events
                )

    def _hear(self) -> None:
        """Take in the critical events that there are, and wait for none."""
        library = Asked(self._library)
        for _ in range(EVENTS_AT_ONCE if self._events is not None else 0):
            event = library.ask("nvmlEventSetWait_v2", self._events, 0)
            if event is None:
                return
            uuid = Asked(self._library, event.device).ask("nvmlDeviceGetUUID")
            xid = int(event.eventData)
            log.warning("a GPU had a critical event", uuid=uuid, xid=xid)
            if uuid is not None and xid not in XIDS_OF_PROGRAMS:
                self._xids[uuid] = xid

    def _card(self, index: int) -> Iterator[Gpu]:
        """The GPU at an index, or its instances; as known last where it does not answer."""
        card = self._at(index)
        uuid = card.ask("nvmlDeviceGetUUID")
        if uuid is None:
            trouble = card.trouble or "it does not tell its UUID"
            known = self._known.get(index, ())
            if not known:
                self._unlisted.append(f"GPU number {index}: {trouble}")
            yield from (replace(gpu, ails=trouble) for gpu in map(_unmeasured, known))
            return
        mode = card.ask("nvmlDeviceGetComputeMode")
        self._modes.append(mode)
        ails = self._ails(card, uuid, mode)
        handles = _instances(self._library, card)
        parts = [card] if handles is None else handles
        was = {gpu.uuid: gpu for gpu in self._known.get(index, ())}
        found = tuple(
            gpu
            for part in parts
            if (gpu := self._gpu(part, was, split=handles is not None, owner=uuid, ails=ails))
        )
        self._known[index] = found
        yield from found

    def _at(self, index: int) -> Asked:
        library = Asked(self._library)
        handle = library.ask("nvmlDeviceGetHandleByIndex", index)
        return Asked(self._library, handle, trouble=library.trouble)

    def _ails(self, card: Asked, uuid: str, mode: int | None) -> str:
        """What is wrong with a GPU as a whole."""
        errors = card.ask(
            "nvmlDeviceGetTotalEccErrors",
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        )
        rows = card.ask("nvmlDeviceGetRemappedRows")
        if card.trouble:
            return card.trouble
        if uuid in self._xids:
            return f"critical event XID {self._xids[uuid]}"
        if errors:
            return f"{errors} uncorrected memory errors"
        if rows and rows[3]:
            return "a row of its memory could not be replaced"
        if mode == pynvml.NVML_COMPUTEMODE_PROHIBITED:
            return "its compute mode is prohibited; nvidia-smi --compute-mode=DEFAULT allows it"
        return ""

    def _gpu(
        self, part: Asked, was: Mapping[str, Gpu], *, split: bool, owner: str, ails: str
    ) -> Gpu | None:
        """None, and a line in `unlisted`, where nothing can be promised of it."""
        uuid = part.ask("nvmlDeviceGetUUID")
        name = part.ask("nvmlDeviceGetName") or ""
        memory_mib, used_bytes = _memory(part)
        before = was.get(uuid)
        if before is not None:
            # What the driver keeps differs a little from time to time: promise the least.
            memory_mib = min(memory_mib or before.memory_mib, before.memory_mib)
            name = name or before.model
        if uuid is None or not memory_mib:
            trouble = part.trouble or ails or "it tells no memory"
            self._unlisted.append(f"{uuid or f'an instance of {owner}'}: {trouble}")
            return None
        model, _, profile = name.partition(" MIG ")
        gpu = Gpu(
            uuid,
            model=model.strip().replace(" ", "-"),
            memory_mib=memory_mib,
            profile=profile if split else "",
            xid=self._xids.get(owner, 0),
            ails=ails or part.trouble,
            memory_used_bytes=used_bytes,
        )
        return _measured(gpu, part.again())

    def _links_of(self, gpus: tuple[Gpu, ...], count: int) -> Links:
        """Asked once for the same GPUs: links that break are critical events."""
        uuids = tuple(gpu.uuid for gpu in gpus)
        if self._links is None or self._links[0] != uuids:
            cards = {}
            for index in range(count):
                card = self._at(index)
                cards[card.ask("nvmlDeviceGetUUID")] = card
            self._links = uuids, links_between([cards.get(uuid) for uuid in uuids])
        return self._links[1]


def _instances(library: Any, card: Asked) -> list[Asked] | None:
    """None for a GPU that is not split; one that is and has no instances has nothing to give."""
    mode = card.ask("nvmlDeviceGetMigMode")
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    most = card.ask("nvmlDeviceGetMaxMigDeviceCount") or 0
    handles = (card.ask("nvmlDeviceGetMigDeviceHandleByIndex", number) for number in range(most))
    return [Asked(library, handle) for handle in handles if handle is not None]


def _memory(part: Asked) -> tuple[int | None, int | None]:
    """MiB that pods may have, and bytes in use."""
    memory = part.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
    if memory is not None:
        total, reserved = _bytes(memory.total), _bytes(memory.reserved)
        if total is None or reserved is None:
            return None, _bytes(memory.used)
        return (total - reserved) // MIB, _bytes(memory.used)
    memory = part.ask("nvmlDeviceGetMemoryInfo")
    total = None if memory is None else _bytes(memory.total)
    if memory is None or total is None:
        return None, None
    reserve_mib = max(LEAST_RESERVE_MIB, int(total / MIB * RESERVE_RATIO))
    return total // MIB - reserve_mib, _bytes(memory.used)


def _measured(gpu: Gpu, part: Asked) -> Gpu:
    """What is only shown: a GPU that does not tell it is none the worse."""
    rates = part.ask("nvmlDeviceGetUtilizationRates")
    power_mw = part.ask("nvmlDeviceGetPowerUsage")
    temperature = part.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
    if temperature is None:  # newer libraries are to lose that function
        temperature = part.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU)
    return replace(
        gpu,
        utilization_ratio=rates.gpu / 100 if rates and 0 <= rates.gpu <= 100 else None,
        power_w=None if power_mw is None else power_mw / 1000,
        temperature_c=None if temperature is None else float(temperature),
    )


def _unmeasured(gpu: Gpu) -> Gpu:
    return replace(
        gpu, utilization_ratio=None, memory_used_bytes=None, power_w=None, temperature_c=None
    )


def _bytes(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MOST_BYTES else None
