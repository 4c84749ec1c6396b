# SPDX-License-Identifier: Apache-2.0
"""What is known of one GPU or MIG instance, whoever told it. Pure; what is not known is None.

Units are ours: parts of a whole are 0-1, memory is bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Final

# Critical events that a program brings about by itself, and the GPU is none the worse for.
XIDS_OF_PROGRAMS: Final = frozenset({13, 31, 43, 45})


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG instance of one, as far as one pod has it.

    `uuid`: of the GPU; the instances of one GPU share it and differ in `mig_id`, the number of the
    GPU instance. `pod`: that has the device; a GPU that several pods share is there once for each.
    `utilization_ratio`: part of the time in which any kernel ran, as the driver samples it;
    `engine_active_ratio`: the same question, counted by the hardware.
    """

    uuid: str
    mig_profile: str | None = None
    mig_id: str | None = None
    node: str | None = None
    namespace: str | None = None
    pod: str | None = None
    utilization_ratio: float | None = None
    engine_active_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None

    @property
    def busy_ratio(self) -> float | None:
        """How busy it is.

        What the hardware counted comes first: it is exact, and the only one that a MIG instance
        has. Consumer GPUs do not count, and their driver's samples are what there is.
        """
        if self.engine_active_ratio is not None:
            return self.engine_active_ratio
        return self.utilization_ratio


@dataclass(frozen=True, slots=True)
class LocalDevice(Device):
    """A device of this machine, with what only its driver knows.

    `processes`: bytes of device memory by process id, None where the driver does not tell how much.
    `uncorrected_errors`: of its memory since the driver was loaded. `last_xid`: the newest critical
    event since we listen, 0 for none. `trouble`: why it cannot be read; empty: it can.
    """

    processes: Mapping[int, int | None] | None = None
    uncorrected_errors: int | None = None
    last_xid: int | None = None
    trouble: str = ""

    @property
    def ails(self) -> str:
        """What is wrong with the hardware; empty: nothing that we know."""
        if self.trouble:
            return self.trouble
        if self.last_xid and self.last_xid not in XIDS_OF_PROGRAMS:
            return f"critical event XID {self.last_xid}"
        if self.uncorrected_errors:
            return f"{self.uncorrected_errors} uncorrected memory errors"
        return ""


def document(device: Device) -> dict[str, object]:
    """What is the same for every source, as JSON has it."""
    told = asdict(device)
    return {field.name: told[field.name] for field in fields(Device)}


def mean_busy(devices: Iterable[Device]) -> float | None:
    """How busy the devices of one replica are on average; None if none of them tells.

    Of a GPU that is split, the instances speak and not the whole: its other parts are others'.
    """
    told = [device.busy_ratio for device in _counting(devices) if device.busy_ratio is not None]
    return fmean(told) if told else None


def told_ratio(devices: Iterable[Device]) -> float:
    """The part (0-1) of a replica's devices that `mean_busy` speaks for."""
    of = _counting(devices)
    return sum(device.busy_ratio is not None for device in of) / len(of) if of else 0.0


def _counting(devices: Iterable[Device]) -> list[Device]:
    of = list(devices)
    split = {device.uuid for device in of if device.mig_id is not None}
    return [device for device in of if device.mig_id is not None or device.uuid not in split]
