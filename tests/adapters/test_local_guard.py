# SPDX-License-Identifier: Apache-2.0
"""No orphan: a controller killed without warning takes everything that it started with it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from autoscaler.adapters.local.guard import groups_left
from tests.adapters.machine import TOY, alive, eventually

CONTROLLER = (sys.executable, str(Path(__file__).with_name("controller.py")))


@contextmanager
def a_controller(
    state_dir: Path, *command: str, replicas: int = 1
) -> Iterator["subprocess.Popen[bytes]"]:
    """A controller process; the caller is to kill it."""
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(  # noqa: S603  the test's own script
        (*CONTROLLER, str(state_dir), str(replicas), *command),
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    ) as controller:
        try:
            yield controller
        finally:
            controller.kill()


async def pids_of(state_dir: Path) -> dict[str, int]:
    pids = state_dir / "pids"
    await eventually(pids.exists, what="the controller's replicas are ready")
    known: dict[str, int] = json.loads(pids.read_text())
    return known


async def test_a_controller_killed_with_9_leaves_no_process(tmp_path: Path) -> None:
    """Replicas that ignore SIGTERM, their children, the kept activator and the guard: all gone."""
    child_pid_file = tmp_path / "child"
    command = (*TOY, "--ignore-term", "--child-pid-file", str(child_pid_file))
    with a_controller(tmp_path, *command, replicas=2) as controller:
        pids = await pids_of(tmp_path)
        everything = [*pids.values(), int(child_pid_file.read_text())]
        assert len(everything) == 5
        assert all(alive(pid) for pid in everything)
        controller.kill()
        await eventually(
            lambda: not any(alive(pid) for pid in everything), what="everything is gone"
        )


async def test_a_controller_whose_whole_group_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """A Ctrl-C or a kill of the terminal's group reaches neither replicas nor guard by itself."""
    with a_controller(tmp_path, *TOY) as controller:
        pids = await pids_of(tmp_path)
        os.killpg(controller.pid, signal.SIGKILL)
        await eventually(
            lambda: not any(alive(pid) for pid in pids.values()), what="everything is gone"
        )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find such a process")
async def test_a_process_that_left_its_group_is_found_too(tmp_path: Path) -> None:
    """What made a session of its own still carries the controller's mark."""
    child_pid_file = tmp_path / "child"
    command = (*TOY, "--child-leaves", "--child-pid-file", str(child_pid_file))
    with a_controller(tmp_path, *command) as controller:
        await pids_of(tmp_path)
        child = int(child_pid_file.read_text())
        controller.kill()
        await eventually(lambda: not alive(child), what="the child is gone")


async def test_a_guard_that_was_killed_is_replaced_and_knows_all_groups(tmp_path: Path) -> None:
    """Killing the guard first and the controller afterwards leaves nothing either."""
    with a_controller(tmp_path, *TOY) as controller:
        pids = await pids_of(tmp_path)
        first = pids.pop("guard")
        os.kill(first, signal.SIGKILL)
        second = await eventually(lambda: guard_of(controller.pid, but=first), what="a new guard")
        controller.kill()
        await eventually(
            lambda: not any(alive(pid) for pid in [*pids.values(), second]),
            what="everything is gone",
        )


def guard_of(controller: int, *, but: int) -> int | None:
    """The guard among a controller's children."""
    for child in psutil.Process(controller).children():
        if child.pid != but and any(part.endswith("guard.py") for part in child.cmdline()):
            return child.pid
    return None


@pytest.mark.parametrize(
    ("lines", "left", "in_good_order"),
    [
        pytest.param([], set(), False, id="nothing was said"),
        pytest.param(["+ 5\n", "+ 6\n"], {5, 6}, False, id="all that were named"),
        pytest.param(["+ 5\n", "+ 6\n", "- 5\n"], {6}, False, id="not those released"),
        pytest.param(["- 5\n", "+ 5\n"], {5}, False, id="a number that came back"),
        pytest.param(["+ 5\n", "+ 123"], {5}, False, id="not a number cut off in the middle"),
        pytest.param(["+ 5\n", "- 5\n", ".\n"], set(), True, id="a goodbye"),
    ],
)
def test_the_guard_kills_what_was_named_and_not_released(
    lines: list[str], left: set[int], in_good_order: bool
) -> None:
    """The pipe's lines say what is left when it ends."""
    assert groups_left(lines) == (left, in_good_order)
