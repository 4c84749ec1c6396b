# SPDX-License-Identifier: Apache-2.0
"""A worker in a pod with a share of GPUs: it sees just those, or does not start."""

import os
from pathlib import Path

import pynvml
import pytest

from serving.core.share import MEMORY_MIB, UUIDS, Share, Unreadable, mismatch, no_room, share_of
from serving.gpus import VISIBLE, WrongGpus, keep_to
from tests.adapters.gpus.fake_nvml import LOST, Error, FakeCard, FakeNvml
from tests.serving.processes import ended, events, ready_worker

NO_DRIVER = Error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
MIB = 2**20


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a share changes in it is taken back."""
    monkeypatch.setenv(VISIBLE, "7")


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, None),
        ({MEMORY_MIB: "5"}, None),
        ({UUIDS: "GPU-a,GPU-b", MEMORY_MIB: "12288"}, Share(("GPU-a", "GPU-b"), 12288)),
        ({UUIDS: "GPU-a"}, Share(("GPU-a",))),
        ({UUIDS: "GPU-a", MEMORY_MIB: "0"}, Share(("GPU-a",))),
        ({UUIDS: "", MEMORY_MIB: ""}, Share(())),
    ],
    ids=["none", "half", "two GPUs", "no memory told", "compute alone", "bound by another hand"],
)
def test_a_share_is_what_the_environment_says(
    environment: dict[str, str], share: Share | None
) -> None:
    assert share_of(environment) == share


@pytest.mark.parametrize("text", ["12Gi", "-1", "1.5", "²"])
def test_memory_that_is_no_number_is_told_with_its_name(text: str) -> None:
    read = share_of({UUIDS: "GPU-a", MEMORY_MIB: text})
    assert isinstance(read, Unreadable)
    assert f"{MEMORY_MIB}: {text!r}" in read.why


def test_what_is_missing_and_what_is_too_much_is_named() -> None:
    assert not mismatch(Share(("GPU-b", "GPU-a")), ["GPU-a", "GPU-b"])
    assert not mismatch(Share(()), [])
    why = mismatch(Share(("GPU-a", "GPU-b")), ["GPU-b", "GPU-c"])
    assert "gives this pod GPU-a, GPU-b" in why
    assert "GPU-a cannot be seen" in why
    assert "GPU-c can be seen and belong to others" in why


def test_models_that_fill_their_share_fit_and_one_byte_more_does_not() -> None:
    limit = Share(("GPU-a", "GPU-b"), 2).memory_bytes
    assert limit == 4 * MIB
    assert not no_room(MIB, taken_bytes=3 * MIB, limit_bytes=limit)
    assert "1.0 MiB are left of the 4.0 MiB" in no_room(
        MIB + 1, taken_bytes=3 * MIB, limit_bytes=limit
    )
    assert not no_room(10**18, taken_bytes=0, limit_bytes=None)


def test_cuda_is_shown_the_gpus_of_the_share_and_the_driver_is_let_go() -> None:
    split = FakeCard("GPU-b", instances=[FakeCard("MIG-1")])
    nvml = FakeNvml([FakeCard("GPU-a"), split])
    keep_to(Share(("GPU-a", "MIG-1"), 1000), nvml)
    assert os.environ[VISIBLE] == "GPU-a,MIG-1"
    assert nvml.begun == nvml.ended == 1


def test_a_pod_that_was_given_nothing_may_see_nothing() -> None:
    with pytest.raises(WrongGpus, match="gives this pod no GPU, but GPU-a can be seen"):
        keep_to(Share(()), FakeNvml([FakeCard("GPU-a")]))
    assert os.environ[VISIBLE] == ""


def test_without_a_driver_there_is_nothing_to_take_and_the_log_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keep_to(Share(("GPU-a",), 1000), FakeNvml(broken=NO_DRIVER))
    assert '"event":"no driver","granted":["GPU-a"]' in capsys.readouterr().err


@pytest.mark.parametrize(
    "nvml",
    [FakeNvml(broken=Error(pynvml.NVML_ERROR_NO_PERMISSION)), FakeNvml([FakeCard(LOST)])],
    ids=["the driver refuses", "a GPU is lost"],
)
def test_what_cannot_be_checked_is_refused(nvml: FakeNvml) -> None:
    with pytest.raises(WrongGpus, match=r"cannot be checked: .*nvidia-smi"):
        keep_to(Share(("GPU-a",)), nvml)


# Real workers


@pytest.fixture
def granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One card, and 512 MiB of it, on a machine without any."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        monkeypatch.setenv(UUIDS, "GPU-of-the-tests")
        monkeypatch.setenv(MEMORY_MIB, "512")
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has NVIDIA's driver, and no GPU of that name")


@pytest.mark.usefixtures("granted")
def test_a_worker_without_a_driver_serves_on_the_cpu(models: Path, tmp_path: Path) -> None:
    with ready_worker(tmp_path / "stderr", "--model", f"iris={models / 'iris.skops'}") as worker:
        answer = worker.http.post("/v1/models/iris:predict", json={"instances": [[5, 3, 1, 0]]})
        assert answer.json() == {"predictions": [0]}
        assert events(worker.log)[0] == "no driver"


@pytest.mark.usefixtures("granted")
def test_a_model_that_is_larger_than_what_is_left_ends_the_worker_unread(
    models: Path, tmp_path: Path
) -> None:
    """One line says how much there is, and by which annotation to ask for more."""
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(600 * MIB)  # nothing of it is on the disk
    result = ended("--port", "0", "--model", f"m={large}")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("tidegate worker: model 'm' does not load: it takes 600.0 MiB, ")
    assert "512.0 MiB are left of the 512.0 MiB" in line
    assert "tidegate.dev/gpu-memory" in line


def test_memory_that_makes_no_sense_is_one_line(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UUIDS, "GPU-a")
    monkeypatch.setenv(MEMORY_MIB, "12Gi")
    result = ended("--port", "0", "--model", f"iris={models / 'iris.skops'}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"tidegate worker: {MEMORY_MIB}: '12Gi' is no number of MiB")
