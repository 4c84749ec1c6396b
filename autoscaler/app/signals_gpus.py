# SPDX-License-Identifier: Apache-2.0
"""`tidegate signals gpus`: prints what the driver says of this machine's GPUs; judges nothing."""

import socket
import sys
from collections.abc import Iterator
from typing import Annotated

import orjson
import typer

from autoscaler import logs
from autoscaler.adapters.gpus.devices import LocalDevice, document
from autoscaler.adapters.gpus.nvml import NvmlDevices
from autoscaler.core.signals import NoReading
from autoscaler.errors import GiveUp

GIB = 2**30


def gpus(
    as_json: Annotated[bool, typer.Option("--json", help="Print the devices as JSON.")] = False,
) -> None:
    """Say what NVIDIA's driver tells of this machine's GPUs, as the local platform reads it.

    One line for each GPU and MIG instance, then the processes on it; `-` is what is not told.
    docs/gpus.md says which number is which of nvidia-smi's.

    Exit code 1: no GPU can be read, and why.
    """
    logs.configure()
    reader = NvmlDevices(node=socket.gethostname())
    read = reader.read()
    reader.close()
    if as_json:
        sys.stdout.buffer.write(as_json_bytes(read, driver=reader.driver) + b"\n")
    if isinstance(read, NoReading):
        raise GiveUp(read.why)
    if not as_json:
        for line in lines(read, driver=reader.driver):
            typer.echo(line)


def as_json_bytes(read: tuple[LocalDevice, ...] | NoReading, *, driver: str | None) -> bytes:
    devices = () if isinstance(read, NoReading) else read
    told = {
        "driver": driver,
        "devices": [_document(device) for device in devices],
        "absent": {"devices": read.why} if isinstance(read, NoReading) else {},
    }
    return orjson.dumps(told, option=orjson.OPT_INDENT_2)


def _document(device: LocalDevice) -> dict[str, object]:
    processes = device.processes
    return {
        **document(device),
        "processes": None
        if processes is None
        else [{"pid": pid, "memory_used_bytes": used} for pid, used in processes.items()],
        "uncorrected_errors": device.uncorrected_errors,
        "last_xid": device.last_xid,
        "trouble": device.trouble or None,
    }


def lines(devices: tuple[LocalDevice, ...], *, driver: str | None) -> Iterator[str]:
    yield f"driver {driver or '-'}, {len(devices)} devices"
    for device in devices:
        part = f" instance {device.mig_id} ({device.mig_profile})" if device.mig_id else ""
        yield (
            f"{device.uuid}{part}: busy {_shown(device.utilization_ratio, '.0%')}, memory "
            f"{_gib(device.memory_used_bytes)} of {_gib(device.memory_total_bytes)} GiB, power "
            f"{_shown(device.power_w, '.1f')} W, {_shown(device.temperature_c, '.0f')} C, "
            f"uncorrected errors {_shown(device.uncorrected_errors, 'd')}, last XID "
            f"{_shown(device.last_xid, 'd')}" + (f": {device.ails}" if device.ails else "")
        )
        if device.processes is None:
            yield "  processes: -"
        for pid, used in (device.processes or {}).items():
            yield f"  process {pid}: {_gib(used)} GiB"


def _gib(value: int | None) -> str:
    return _shown(None if value is None else value / GIB, ".2f")


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
