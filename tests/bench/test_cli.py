# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench activator` as a user runs it: real processes, a very short run."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from autoscaler.bench.cli import checked
from autoscaler.bench.workloads import WORKLOADS
from autoscaler.errors import BadInput

SHORT = ["--duration", "0.2", "--rounds", "1", "--connections", "4"]
SHORTEST = ["--duration", "0.05", "--rounds", "1", "--connections", "4", "--only", "small_json"]
LONGEST_S = 90
EACH = [
    "rps",
    "rps_by_round",
    "bytes_per_s",
    "cpu_us",
    "proxy_core_busy_ratio",
    "rps_per_busy_core",
    "limited_by",
    "p50_ms",
    "p99_ms",
    "errors",
]
ADDED = ["added_p50_ms", "added_p99_ms"]
ABOUT = ["connections", "hardware", "commit", "versions", "seconds", "rounds", "go", "aiohttp"]


def bench(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "autoscaler.bench.cli", "activator", *arguments],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
        env=environment,
    )


@pytest.mark.slow
def test_a_short_run_reports_every_figure_and_no_error() -> None:
    ran = bench(*SHORT, "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["errors"] == 0
    for key in ABOUT:
        assert key in report
    contenders = [
        who for who in ("tidegate", "go", "aiohttp") if not report[who].startswith("skipped")
    ]
    assert "tidegate" in contenders
    for name in WORKLOADS:
        figures = report[name]
        assert figures["direct_rps"] > 0
        for who in contenders:
            for key in EACH:
                assert figures[f"{who}_{key}"] is not None, (name, who, key)
            for key in ADDED:
                assert figures[key if who == "tidegate" else f"{who}_{key}"] is not None
        assert "tidegate_over_go" in figures
    assert report["sse"]["tidegate_events_per_s"] > 0


@pytest.mark.slow
def test_without_go_its_figures_are_null_and_the_report_says_why(tmp_path: Path) -> None:
    ran = bench(*SHORTEST, "--json", path=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["go"] == "skipped: go is not installed"
    assert "go skipped: go is not installed" in report["notes"]
    assert report["small_json"]["go_rps"] is None
    assert report["small_json"]["go_added_p50_ms"] is None
    assert report["small_json"]["tidegate_over_go"] is None
    assert report["small_json"]["tidegate_rps"] > 0
    assert list(WORKLOADS & report.keys()) == ["small_json"]


@pytest.mark.slow
def test_a_go_that_cannot_build_is_reported_and_does_not_end_the_run(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho this go is broken\nexit 3\n")
    go.chmod(0o755)
    ran = bench(*SHORTEST, "--json", path=str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["go"] == "skipped: `go build` failed: this go is broken"


@pytest.mark.slow
def test_a_person_gets_a_table_on_stdout() -> None:
    ran = bench(*SHORTEST)
    assert ran.returncode == 0, ran.stderr
    assert "small_json" in ran.stdout
    for who in ("direct", "tidegate", "go", "aiohttp"):
        assert f" {who} " in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["told to end", "killed"],
)
def test_a_run_that_is_broken_off_leaves_no_process_behind(
    sent: signal.Signals, status: int
) -> None:
    with broken_off_later() as running:
        deadline_s = time.monotonic() + LONGEST_S
        while not any(
            "autoscaler.app.activator" in command(child) for child in children_of(running)
        ):
            assert time.monotonic() < deadline_s, "no activator was started"
            time.sleep(0.05)
        children = children_of(running)
        running.send_signal(sent)
        assert running.wait(LONGEST_S) == status
    _, alive = psutil.wait_procs(children, timeout=LONGEST_S)
    assert alive == []


@contextmanager
def broken_off_later() -> Iterator[subprocess.Popen[bytes]]:
    """A long run that ends with the block at the latest."""
    arguments = ["activator", "--only", "small_json", "--duration", "10", "--rounds", "1"]
    with tempfile.TemporaryDirectory() as folder:  # a killed run cannot clear up what it wrote
        running = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "autoscaler.bench.cli", *arguments],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": folder},
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait()


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def command(process: psutil.Process) -> str:
    """The command line; empty for a process that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_bad_options_end_with_2_and_one_line_each_on_stderr() -> None:
    ran = bench("--duration", "0", "--connections", "0", "--rounds", "0", "--only", "soap")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        "tidegate bench activator: --duration 0: seconds above 0 and up to 600",
        "tidegate bench activator: --connections 0: a number from 1 to 1024",
        "tidegate bench activator: --rounds 0: a number from 1 to 100",
        f"tidegate bench activator: --only soap: one of {', '.join(WORKLOADS)}",
    ]


@pytest.mark.parametrize("duration_s", [float("nan"), float("inf"), -1.0, 601.0])
def test_a_duration_that_is_no_length_of_time_is_refused(duration_s: float) -> None:
    with pytest.raises(BadInput, match="--duration"):
        checked(duration_s=duration_s, connections=1, rounds=1, only=[])


def test_workloads_run_once_and_in_their_own_order() -> None:
    options = checked(duration_s=1, connections=1, rounds=1, only=["sse", "small_json", "sse"])
    assert options.workloads == ("small_json", "sse")
