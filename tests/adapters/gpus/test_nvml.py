# SPDX-License-Identifier: Apache-2.0
"""This machine's GPUs by NVML: units, what a card does not tell, MIG, and a card that is lost."""

import pynvml
import pytest

from autoscaler.adapters.gpus.devices import LocalDevice, document
from autoscaler.adapters.gpus.nvml import NvmlDevices
from autoscaler.core.signals import NoReading
from tests.adapters.gpus.fake_nvml import LOST, NOT_SUPPORTED, Error, FakeCard, FakeNvml

GIB = 2**30


def read(library: FakeNvml) -> tuple[LocalDevice, ...]:
    devices = NvmlDevices(library, node="desk").read()
    assert not isinstance(devices, NoReading), devices.why
    return devices


def one(card: FakeCard) -> LocalDevice:
    (device,) = read(FakeNvml([card]))
    return device


def test_a_card_is_told_in_our_units_with_its_processes() -> None:
    card = FakeCard(
        util=45,
        used=60 * GIB,
        power_mw=312_500,
        temperature=61,
        processes={4711: 59 * GIB, 4712: None},
        uncorrected=0,
    )
    assert one(card) == LocalDevice(
        uuid="GPU-1",
        node="desk",
        utilization_ratio=0.45,
        memory_used_bytes=60 * GIB,
        memory_total_bytes=80 * GIB,
        power_w=312.5,
        temperature_c=61.0,
        processes={4711: 59 * GIB, 4712: None},
        uncorrected_errors=0,
        last_xid=0,
    )


def test_what_a_card_does_not_support_is_absent_and_no_trouble() -> None:
    card = FakeCard(events=False)
    assert one(card) == LocalDevice(uuid="GPU-1", node="desk")
    assert one(card).ails == ""


def test_memory_that_stands_for_none_is_absent() -> None:
    card = FakeCard(used=2**64 - 1, total=2**64 - 1, processes={7: 2**64 - 1})
    device = one(card)
    assert (device.memory_used_bytes, device.memory_total_bytes) == (None, None)
    assert device.processes == {7: None}


def test_an_old_driver_tells_its_memory_by_the_older_function() -> None:
    card = FakeCard(used=Error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND), used_v1=GIB)
    assert one(card).memory_used_bytes == GIB


def test_a_split_card_is_followed_by_its_instances() -> None:
    part = FakeCard(
        name="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        used=3 * GIB,
        total=10 * GIB,
        processes={5: 2 * GIB},
        instance_id=9,
    )
    whole, found = read(FakeNvml([FakeCard(power_mw=90_000, instances=[part])]))
    assert (whole.mig_id, whole.mig_profile, whole.power_w) == (None, None, 90.0)
    assert (found.uuid, found.mig_id, found.mig_profile) == ("GPU-1", "9", "1g.10gb")
    assert (found.memory_used_bytes, found.memory_total_bytes) == (3 * GIB, 10 * GIB)
    assert found.processes == {5: 2 * GIB}
    assert found.busy_ratio is None


def test_a_card_that_could_be_split_and_is_not_is_one_device() -> None:
    assert one(FakeCard(instances=[], util=10)).utilization_ratio == 0.1


def test_a_card_that_is_lost_stays_listed_and_says_so() -> None:
    library = FakeNvml([FakeCard("GPU-1", util=10), FakeCard("GPU-2", util=20)])
    devices = NvmlDevices(library)
    devices.read()
    library.cards[0].lost = True
    found = devices.read()
    assert not isinstance(found, NoReading)
    lost, well = found
    assert (lost.uuid, lost.utilization_ratio, lost.processes) == ("GPU-1", None, None)
    assert lost.ails == "GPU is lost"
    assert (well.utilization_ratio, well.ails) == (0.2, "")


def test_a_card_that_is_lost_while_it_is_asked_says_so() -> None:
    device = one(FakeCard(util=LOST, used=GIB))
    assert (device.utilization_ratio, device.memory_used_bytes) == (None, GIB)
    assert device.ails == "GPU is lost"


def test_a_critical_event_is_told_of_its_card_from_then_on() -> None:
    library = FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2")])
    devices = NvmlDevices(library)
    devices.read()
    library.xids.extend([(library.cards[1], 31), (library.cards[1], 79)])
    for _ in range(2):
        found = devices.read()
        assert not isinstance(found, NoReading)
        assert [device.last_xid for device in found] == [0, 79]
        assert [device.ails for device in found] == ["", "critical event XID 79"]


def test_an_event_that_a_program_caused_does_not_ail_the_card() -> None:
    library = FakeNvml([FakeCard()])
    library.xids.append((library.cards[0], 31))
    (device,) = read(library)
    assert (device.last_xid, device.ails) == (31, "")


def test_memory_errors_that_were_not_corrected_ail_a_card() -> None:
    assert one(FakeCard(uncorrected=2)).ails == "2 uncorrected memory errors"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        pytest.param(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "install", id="no library"),
        pytest.param(pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "kernel module", id="no driver"),
        pytest.param(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart", id="replaced"),
    ],
)
def test_without_a_driver_there_is_no_reading_and_a_remedy(number: int, remedy: str) -> None:
    found = NvmlDevices(FakeNvml(broken=Error(number))).read()
    assert isinstance(found, NoReading)
    assert remedy in found.why


def test_a_driver_that_comes_later_is_found() -> None:
    library = FakeNvml([FakeCard(util=1)], broken=Error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    devices = NvmlDevices(library)
    assert isinstance(devices.read(), NoReading)
    library.broken = None
    assert not isinstance(devices.read(), NoReading)
    assert devices.driver == "580.95.05"


def test_a_driver_that_goes_away_is_begun_anew() -> None:
    library = FakeNvml([FakeCard(util=1)])
    devices = NvmlDevices(library)
    devices.read()
    library.broken = Error(pynvml.NVML_ERROR_UNKNOWN)
    assert isinstance(devices.read(), NoReading)
    library.broken = None
    assert not isinstance(devices.read(), NoReading)
    assert (library.begun, library.ended) == (2, 1)


def test_every_card_that_can_is_listened_to() -> None:
    library = FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2", events=False)])
    assert [device.last_xid for device in read(library)] == [0, None]
    assert library.listening == {"GPU-1"}


def test_the_real_library_says_why_it_cannot_be_used_or_lists_devices() -> None:
    """With or without a driver on the machine that runs this."""
    devices = NvmlDevices()
    found = devices.read()
    devices.close()
    if isinstance(found, NoReading):
        assert found.why.startswith("nvml: ")
    else:
        assert all(device.uuid for device in found)


def test_json_names_nothing_that_other_sources_do_not() -> None:
    assert "processes" not in document(one(FakeCard(processes={1: 2})))


def test_no_function_of_the_stand_in_is_one_that_the_library_lacks() -> None:
    ours = {name for name in vars(FakeNvml) if name.startswith("nvml")}
    assert ours
    assert all(callable(getattr(pynvml, name)) for name in ours)
    assert NOT_SUPPORTED.number == 3
