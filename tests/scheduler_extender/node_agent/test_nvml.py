# SPDX-License-Identifier: Apache-2.0
"""A node's GPUs by NVML: what pods may have of them, MIG, health, and a driver that is gone."""

import pynvml
import pytest

from scheduler_extender.node_agent.gpus import Gpu, Machine, NotRead
from scheduler_extender.node_agent.nvml import NvmlGpus
from tests.adapters.gpus.fake_nvml import LOST, NOT_SUPPORTED, Error
from tests.scheduler_extender.node_agent.fake_nvml import (
    GIB,
    MIB,
    FakeCard,
    FakeNvml,
    an_instance,
)

H100 = "NVIDIA-H100-80GB-HBM3"


def machine(gpus: NvmlGpus) -> Machine:
    seen = gpus.read()
    assert not isinstance(seen, NotRead), seen.why
    return seen


def one(card: FakeCard) -> Gpu:
    (gpu,) = machine(NvmlGpus(FakeNvml([card]))).gpus
    return gpu


def test_a_gpu_is_told_with_the_memory_that_pods_may_have() -> None:
    card = FakeCard("GPU-1", used=3 * GIB, util=45, power_mw=312_500, temperature=61)
    assert one(card) == Gpu(
        "GPU-1",
        model=H100,
        memory_mib=80 * 1024 - 512,
        utilization_ratio=0.45,
        memory_used_bytes=3 * GIB,
        power_w=312.5,
        temperature_c=61.0,
    )


def test_what_a_gpu_does_not_measure_is_absent_and_it_is_well() -> None:
    gpu = one(FakeCard(used=2**64 - 1))
    assert (gpu.utilization_ratio, gpu.memory_used_bytes, gpu.power_w) == (None, None, None)
    assert gpu.ails == ""


@pytest.mark.parametrize(
    ("total", "memory_mib"),
    [
        pytest.param(80 * GIB, 81920 - 2457, id="a part of a large one"),
        pytest.param(4 * GIB, 4096 - 256, id="no less than so much"),
    ],
)
def test_a_driver_that_tells_no_reserve_is_allowed_one(total: int, memory_mib: int) -> None:
    assert one(FakeCard(total=total, old_driver=True)).memory_mib == memory_mib


def test_no_more_is_promised_when_the_driver_keeps_less_for_a_while() -> None:
    card = FakeCard(reserved=600 * MIB)
    gpus = NvmlGpus(FakeNvml([card]))
    machine(gpus)
    card.reserved = 500 * MIB
    assert machine(gpus).gpus[0].memory_mib == 80 * 1024 - 600


def test_of_a_split_gpu_only_the_instances_are_given() -> None:
    parts: list[FakeCard] = [
        an_instance("MIG-1"),
        an_instance("MIG-2", profile="3g.40gb", total=40 * GIB),
    ]
    whole = FakeCard("GPU-2")
    seen = machine(NvmlGpus(FakeNvml([FakeCard("GPU-1", instances=[*parts]), whole])))
    told = [(gpu.uuid, gpu.profile, gpu.memory_mib, gpu.ails) for gpu in seen.gpus]
    assert told == [
        ("MIG-1", "1g.10gb", 10240 - 16, ""),
        ("MIG-2", "3g.40gb", 40960 - 16, ""),
        ("GPU-2", "", 81920 - 512, ""),
    ]
    assert {gpu.model for gpu in seen.gpus} == {H100}


def test_instances_are_as_ill_as_their_gpu() -> None:
    (gpu,) = machine(
        NvmlGpus(FakeNvml([FakeCard(uncorrected=1, instances=[an_instance("MIG-1")])]))
    ).gpus
    assert (gpu.uuid, gpu.ails) == ("MIG-1", "1 uncorrected memory errors")


@pytest.mark.parametrize(
    ("card", "why"),
    [
        pytest.param(FakeCard(uncorrected=2), "2 uncorrected memory errors", id="ECC"),
        pytest.param(FakeCard(remapped=(1, 1, 0, 1)), "could not be replaced", id="rows"),
        pytest.param(
            FakeCard(compute_mode=pynvml.NVML_COMPUTEMODE_PROHIBITED), "prohibited", id="mode"
        ),
        pytest.param(FakeCard(uncorrected=LOST), "GPU is lost", id="lost as it is asked"),
        pytest.param(
            FakeCard(used=Error(pynvml.NVML_ERROR_UNKNOWN), uncorrected=NOT_SUPPORTED),
            "tells no memory|Unknown",
            id="no memory",
        ),
    ],
)
def test_a_gpu_that_ails_says_why(card: FakeCard, why: str) -> None:
    seen = machine(NvmlGpus(FakeNvml([card])))
    told = [gpu.ails for gpu in seen.gpus] or list(seen.unlisted)
    assert any(part in told[0] for part in why.split("|"))


def test_a_gpu_that_is_lost_stays_listed_with_what_it_had() -> None:
    library = FakeNvml([FakeCard("GPU-1", util=1), FakeCard("GPU-2", util=2)])
    gpus = NvmlGpus(library)
    machine(gpus)
    library.cards[0].lost = True
    lost, well = machine(gpus).gpus
    assert lost == Gpu("GPU-1", model=H100, memory_mib=81920 - 512, ails="GPU is lost")
    assert (well.uuid, well.ails, well.utilization_ratio) == ("GPU-2", "", 0.02)


def test_a_gpu_that_was_never_seen_well_cannot_be_listed_and_is_noted() -> None:
    seen = machine(NvmlGpus(FakeNvml([FakeCard(lost=True), FakeCard("GPU-2")])))
    assert [gpu.uuid for gpu in seen.gpus] == ["GPU-2"]
    assert seen.unlisted == ("GPU number 0: GPU is lost",)


def test_a_critical_event_counts_against_its_gpu_from_then_on() -> None:
    library = FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2")])
    gpus = NvmlGpus(library)
    machine(gpus)
    library.xids.append((library.cards[1], 79))
    for _ in range(2):
        told = [(gpu.xid, gpu.ails) for gpu in machine(gpus).gpus]
        assert told == [(0, ""), (79, "critical event XID 79")]


def test_an_event_that_a_program_caused_leaves_the_gpu_well() -> None:
    library = FakeNvml([FakeCard()])
    library.xids.append((library.cards[0], 31))
    (gpu,) = machine(NvmlGpus(library)).gpus
    assert (gpu.xid, gpu.ails) == (0, "")


def test_an_event_that_an_earlier_process_heard_still_counts() -> None:
    (gpu,) = machine(NvmlGpus(FakeNvml([FakeCard("GPU-1")]), xids={"GPU-1": 48})).gpus
    assert (gpu.xid, gpu.ails) == (48, "critical event XID 48")


def test_a_library_older_than_a_function_just_does_not_tell() -> None:
    class Older(FakeNvml):
        def __getattribute__(self, name: str) -> object:
            if name in {"nvmlDeviceGetRemappedRows", "nvmlDeviceGetPowerUsage"}:
                raise AttributeError(name)
            return super().__getattribute__(name)

    (gpu,) = machine(NvmlGpus(Older([FakeCard("GPU-1", power_mw=1)]))).gpus
    assert (gpu.ails, gpu.power_w) == ("", None)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        pytest.param(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "install", id="no library"),
        pytest.param(pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "kernel module", id="no driver"),
        pytest.param(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart", id="replaced"),
    ],
)
def test_without_a_driver_there_is_no_reading_and_a_remedy(number: int, remedy: str) -> None:
    seen = NvmlGpus(FakeNvml(broken=Error(number))).read()
    assert isinstance(seen, NotRead)
    assert remedy in seen.why


def test_a_driver_that_goes_away_is_begun_anew() -> None:
    library = FakeNvml([FakeCard()])
    gpus = NvmlGpus(library)
    machine(gpus)
    library.broken = Error(pynvml.NVML_ERROR_UNKNOWN)
    assert isinstance(gpus.read(), NotRead)
    library.broken = None
    assert len(machine(gpus).gpus) == 1
    assert (library.begun, library.ended) == (2, 1)


@pytest.mark.parametrize(
    ("modes", "one_process"),
    [
        pytest.param([3, 3], True, id="all"),
        pytest.param([3, 0], False, id="some"),
        pytest.param([NOT_SUPPORTED], False, id="not told"),
        pytest.param([], False, id="no GPU"),
    ],
)
def test_a_node_takes_one_process_a_gpu_only_if_all_do(
    modes: list[object], one_process: bool
) -> None:
    cards = [FakeCard(f"GPU-{index}", compute_mode=mode) for index, mode in enumerate(modes)]
    assert machine(NvmlGpus(FakeNvml([*cards]))).one_process is one_process


def test_the_real_library_says_why_it_cannot_be_used_or_lists_gpus() -> None:
    """With or without a driver on the machine that runs this."""
    gpus = NvmlGpus()
    seen = gpus.read()
    gpus.close()
    if isinstance(seen, NotRead):
        assert seen.why.startswith("nvml: ")
    else:
        assert all(gpu.uuid and gpu.memory_mib > 0 for gpu in seen.gpus)


def test_no_function_of_the_stand_in_is_one_that_the_library_lacks() -> None:
    ours = {name for name in vars(FakeNvml) if name.startswith("nvml")}
    assert len(ours) > 5
    assert all(callable(getattr(pynvml, name)) for name in ours)
