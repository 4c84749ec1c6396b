# SPDX-License-Identifier: Apache-2.0
"""Models and a worker that several tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.models import TYPES, write_all
from tests.serving.processes import RunningWorker, ready_worker


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every model of the tests."""
    folder = tmp_path_factory.mktemp("models")
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def worker(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """One worker with every model; no test may change it."""
    arguments = [
        f"sklearn-iris={models / 'iris.skops'}",
        f"add={models / 'add.onnx'}",
        *(f"echo-{t}={models / f'echo-{t}.onnx'}" for t in TYPES),
    ]
    flags = [flag for a in arguments for flag in ("--model", a)]
    log = tmp_path_factory.mktemp("worker") / "stderr"
    with ready_worker(log, "--max-body", "1Mi", *flags) as running:
        yield running
