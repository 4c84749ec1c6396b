# SPDX-License-Identifier: Apache-2.0
"""One child process: how it starts and ends, its log, and the processes kept beside replicas."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autoscaler.adapters.local import process
from autoscaler.adapters.local.guard import Guard
from autoscaler.adapters.local.kept import KeptProcess
from autoscaler.adapters.local.process import (
    LOG_KEPT_BYTES,
    LOG_MAX_BYTES,
    ChildProcess,
    Exit,
    FreePorts,
    Launch,
    exit_of,
    last_words,
)
from autoscaler.adapters.local.replicas import Site
from autoscaler.errors import GiveUp
from tests.adapters.machine import BRISK, alive, eventually
from tests.fakes import WallClock


@pytest.fixture
def guard() -> Iterator[Guard]:
    """A guard that ends with the test, and whatever the test left with it."""
    guard = Guard()
    yield guard
    guard.close()


def a_launch(tmp_path: Path, script: str) -> Launch:
    return Launch(("sh", "-c", script), log=tmp_path / "child.log")


@pytest.mark.parametrize(
    ("status", "ended", "words"),
    [
        pytest.param(0, Exit(code=0), "exit code 0", id="well"),
        pytest.param(3, Exit(code=3), "exit code 3", id="with a code"),
        pytest.param(-9, Exit(by="SIGKILL"), "killed by SIGKILL", id="by a signal"),
        pytest.param(-250, Exit(by="signal 250"), "killed by signal 250", id="by an unknown one"),
    ],
)
def test_an_end_is_told_in_words(status: int, ended: Exit, words: str) -> None:
    """A code or a signal's name, as a person says it."""
    assert exit_of(status) == ended
    assert str(ended) == words


@pytest.mark.parametrize("kernel", ["tells of exits", "must be asked"])
async def test_an_exit_is_noticed_and_reaped(
    kernel: str, tmp_path: Path, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a pidfd, and where there is none by looking; no zombie stays either way."""
    if kernel == "must be asked" and sys.platform == "linux":

        def forbidden(pid: int, flags: int = 0) -> int:
            raise PermissionError("not in this sandbox")

        monkeypatch.setattr(os, "pidfd_open", forbidden)
    child = ChildProcess(a_launch(tmp_path, "exit 3"), guard=guard)
    assert await child.exit == Exit(code=3)
    assert not psutil.pid_exists(child.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find such a process")
async def test_what_a_process_leaves_in_a_session_of_its_own_ends_with_it(
    tmp_path: Path, guard: Guard
) -> None:
    """It may hold the GPU; and it takes nothing along that another process has left."""
    left = tmp_path / "left"
    script = f"setsid sh -c 'echo $$ > {left}.part; mv {left}.part {left}; exec sleep 600' & {{}}"
    other = ChildProcess(a_launch(tmp_path, "setsid sleep 600 & exec sleep 600"), guard=guard)
    wait = f"while ! [ -e {left} ]; do sleep 0.02; done; exit 3"
    child = ChildProcess(a_launch(tmp_path, script.format(wait)), guard=guard)
    await child.exit
    await eventually(lambda: not alive(int(left.read_text())), what="what was left is gone")
    assert alive(other.pid)
    assert not other.ended
    await other.stop(grace_s=5.0)


async def test_stopping_what_has_ended_does_nothing(tmp_path: Path, guard: Guard) -> None:
    """Its number may be another's by then."""
    child = ChildProcess(a_launch(tmp_path, "exit 0"), guard=guard)
    await child.exit
    assert await child.stop(grace_s=0.0) == Exit(code=0)


async def test_a_stopped_process_is_ended_too(tmp_path: Path, guard: Guard) -> None:
    """One that was halted by SIGSTOP does not act on SIGTERM, but SIGKILL ends it."""
    child = ChildProcess(a_launch(tmp_path, "exec sleep 600"), guard=guard)
    os.kill(child.pid, signal.SIGSTOP)
    await child.stop(grace_s=0.1)
    assert not psutil.pid_exists(child.pid)


async def test_a_process_inherits_no_file_of_ours(tmp_path: Path, guard: Guard) -> None:
    """Only its three standard files: a listening port of ours must not outlive us in a child."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        child = ChildProcess(a_launch(tmp_path, "exec sleep 600"), guard=guard)
    try:
        # The dynamic linker holds a library open for a moment; what was inherited would stay.
        started = psutil.Process(child.pid)
        await eventually(lambda: started.num_fds() == 3, what="three open files and no more")
    finally:
        await child.stop(grace_s=5.0)


async def test_a_log_that_cannot_be_written_is_named(tmp_path: Path, guard: Guard) -> None:
    """The log is at fault, not the command."""
    (tmp_path / "child.log").mkdir()
    with pytest.raises(GiveUp, match="its log cannot be written"):
        ChildProcess(a_launch(tmp_path, "exit 0"), guard=guard)


async def test_a_command_that_may_not_be_run_is_named(tmp_path: Path, guard: Guard) -> None:
    """A file without the right to be executed is told from one that is missing."""
    (tmp_path / "serve").write_text("#!/bin/sh\n")
    with pytest.raises(GiveUp, match="is it executable"):
        ChildProcess(Launch((str(tmp_path / "serve"),), log=tmp_path / "log"), guard=guard)


async def test_a_log_is_kept_within_bounds(
    tmp_path: Path, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grew too long keeps its last part beside it, and the process goes on writing."""
    monkeypatch.setattr(process, "LOG_MAX_BYTES", 1000)
    monkeypatch.setattr(process, "LOG_KEPT_BYTES", 100)
    more = tmp_path / "more"
    script = f"yes | head -c 2000; while ! [ -e {more} ]; do sleep 0.02; done; echo last; sleep 600"
    launch = a_launch(tmp_path, script)
    child = ChildProcess(launch, guard=guard)
    await eventually(lambda: os.stat(launch.log).st_size == 2000, what="it wrote a lot")
    child.bound_log()
    assert os.stat(launch.log).st_size == 0
    assert os.stat(tmp_path / "child.log.1").st_size == 100
    os.close(os.open(more, os.O_CREAT))
    await eventually(lambda: last_words(launch.log) == "last", what="it writes on")
    assert os.stat(launch.log).st_size == 5
    await child.stop(grace_s=5.0)
    assert LOG_KEPT_BYTES < LOG_MAX_BYTES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(b"", "", id="an empty log"),
        pytest.param(b"\n\n  \n", "", id="nothing but blanks"),
        pytest.param(b"one\nValueError: two\n\n", "ValueError: two", id="the last line with words"),
        pytest.param(b"no end of line", "no end of line", id="a line not ended"),
        pytest.param(b"\x1b[31mred\x1b[0m\a alert", "red  alert", id="no colours or bells"),
        pytest.param(b"caf\xe9", "caf�", id="not UTF-8"),
        pytest.param(b"x" * 9000, "x" * 199 + "…", id="shortened"),
    ],
)
def test_the_last_words_of_a_log(text: bytes, words: str, tmp_path: Path) -> None:
    """One line that can stand in a reason."""
    (tmp_path / "log").write_bytes(text)
    assert last_words(tmp_path / "log") == words


def test_a_log_that_is_gone_has_no_last_words(tmp_path: Path) -> None:
    """A reason is given without them."""
    assert last_words(tmp_path / "gone") == ""


def test_no_port_is_given_twice_in_a_row() -> None:
    """Two replicas that start at once do not race for one port."""
    ports = FreePorts()
    given = [ports.take("127.0.0.1") for _ in range(100)]
    assert len(set(given)) == len(given)


async def test_a_kept_process_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    """It says how it ended, and ends for good when told to."""
    site = Site(clock=WallClock(), log_dir=tmp_path, timings=BRISK)
    kept = KeptProcess("activator", ("sh", "-c", "echo ready; exec sleep 600"), site=site)
    kept.start()
    first = await eventually(lambda: kept.pid, what="it runs")
    await eventually(lambda: last_words(tmp_path / "activator.log") == "ready", what="it spoke")
    os.kill(first, signal.SIGKILL)
    second = await eventually(lambda: kept.pid if kept.pid != first else None, what="it is back")
    assert kept.why == "killed by SIGKILL: ready"
    assert kept.starts == 2
    await kept.stop()
    assert not alive(second)
    assert kept.pid is None
    site.guard.close()


async def test_a_kept_process_that_cannot_start_says_so_and_is_tried_again(tmp_path: Path) -> None:
    """It may work later, after a person mended it."""
    site = Site(clock=WallClock(), log_dir=tmp_path, timings=BRISK)
    kept = KeptProcess("activator", ("no-such-activator",), site=site)
    kept.start()
    await eventually(lambda: kept.starts >= 3, what="it is tried again")
    assert kept.why.startswith("cannot start 'no-such-activator': no such command")
    await kept.stop()
    site.guard.close()
