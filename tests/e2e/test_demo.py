# SPDX-License-Identifier: Apache-2.0
"""`tidegate demo` in a plain pipe, as CI and newcomers without a terminal run it."""

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import TIDEGATE, free_port


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_goes_from_zero_to_many_and_back_and_loses_nothing(tmp_path: Path) -> None:
    """One JSON object on stdout, the same in the report file, and everything it promises in it."""
    report_file = tmp_path / "demo-report.json"
    done = subprocess.run(  # noqa: S603  our own command
        [*TIDEGATE, "demo", "--json", "--report", str(report_file), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report == json.loads(report_file.read_text())
    assert report["sent"] == report["answered"] > 1000
    assert report["lost"] == 0
    for service in report["services"].values():
        path = service["replica_path"]
        assert path[0] == path[-1] == 0
        assert max(path) >= 2
        assert service["cold_start_s"]["count"] >= 2
        assert 0 < service["cold_start_s"]["p50"] <= service["cold_start_s"]["p95"]
    assert "held" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_demo_that_is_stopped_takes_its_controller_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Also when the terminal is closed: nothing of it may go on running."""
    with subprocess.Popen(  # noqa: S603  our own command
        [*TIDEGATE, "demo", "--report", str(tmp_path / "report"), "--port", str(free_port())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as demo:
        assert demo.stderr is not None
        while b"requests of" not in demo.stderr.readline():  # the traffic begins
            assert demo.poll() is None
        everything = psutil.Process(demo.pid).children(recursive=True)
        assert len(everything) >= 2
        demo.send_signal(number)
        assert demo.wait(60) == 130
        assert b"Traceback" not in demo.stderr.read()
    _, alive = psutil.wait_procs(everything, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "65530"], "--port"),
        (["--port", "-1"], "--port"),
        (["--report", "/nowhere/report.json"], "--report: /nowhere/report.json: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_before_the_wait(options: list[str], words: str) -> None:
    """One line and exit 2, not a traceback a minute later."""
    done = subprocess.run(  # noqa: S603  our own command
        [*TIDEGATE, "demo", *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_without_a_verb_there_is_help() -> None:
    """As it is, not behind the prefix of an error."""
    done = subprocess.run(TIDEGATE, capture_output=True, text=True, timeout=60)  # noqa: S603
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: tidegate")
    assert "worker" in done.stderr
