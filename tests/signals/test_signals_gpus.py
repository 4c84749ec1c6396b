# SPDX-License-Identifier: Apache-2.0
"""`tidegate signals gpus`: the lines and the JSON, and what stands for what is not told."""

import orjson
from typer.testing import CliRunner

from autoscaler.adapters.gpus.devices import LocalDevice
from autoscaler.app.signals import app
from autoscaler.app.signals_gpus import as_json_bytes, lines
from autoscaler.core.signals import NoReading
from autoscaler.errors import GiveUp

GIB = 2**30
CARD = LocalDevice(
    "GPU-1",
    node="desk",
    utilization_ratio=0.45,
    memory_used_bytes=60 * GIB,
    memory_total_bytes=80 * GIB,
    power_w=312.5,
    temperature_c=61.0,
    processes={4711: 59 * GIB, 4712: None},
    uncorrected_errors=0,
    last_xid=79,
)
PART = LocalDevice("GPU-1", mig_profile="1g.10gb", mig_id="9")


def test_a_person_reads_a_line_for_each_device_and_process() -> None:
    assert list(lines((CARD, PART), driver="580.95.05")) == [
        "driver 580.95.05, 2 devices",
        "GPU-1: busy 45%, memory 60.00 of 80.00 GiB, power 312.5 W, 61 C, uncorrected errors 0, "
        "last XID 79: critical event XID 79",
        "  process 4711: 59.00 GiB",
        "  process 4712: - GiB",
        "GPU-1 instance 9 (1g.10gb): busy -, memory - of - GiB, power - W, - C, "
        "uncorrected errors -, last XID -",
        "  processes: -",
    ]


def test_json_tells_what_is_not_known_as_null() -> None:
    told = orjson.loads(as_json_bytes((CARD, PART), driver="580.95.05"))
    card, part = told["devices"]
    assert (told["driver"], told["absent"]) == ("580.95.05", {})
    assert card["memory_used_bytes"] == 60 * GIB
    assert card["processes"] == [
        {"pid": 4711, "memory_used_bytes": 59 * GIB},
        {"pid": 4712, "memory_used_bytes": None},
    ]
    assert part["mig_id"] == "9"
    assert {part[key] for key in ("utilization_ratio", "power_w", "processes", "trouble")} == {None}


def test_json_says_why_there_is_no_device() -> None:
    told = orjson.loads(as_json_bytes(NoReading("nvml: no driver"), driver=None))
    assert told == {"driver": None, "devices": [], "absent": {"devices": "nvml: no driver"}}


def test_the_command_lists_devices_or_fails_with_the_reason() -> None:
    """With or without a driver on the machine that runs this."""
    ran = CliRunner().invoke(app, ["gpus"])
    if ran.exit_code:
        assert isinstance(ran.exception, GiveUp)
        assert str(ran.exception).startswith("nvml: ")
        assert not ran.stdout
    else:
        assert ran.stdout.startswith("driver ")
