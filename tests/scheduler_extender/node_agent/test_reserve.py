# SPDX-License-Identifier: Apache-2.0
"""The process that holds one card: it tells which, and ends when it is told to."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from typer.testing import CliRunner

from scheduler_extender.core.annotations import RESERVED_UUID
from scheduler_extender.errors import GiveUp, Refused
from scheduler_extender.node_agent.cli import app as command
from scheduler_extender.node_agent.reserve import reserve
from scheduler_extender.node_agent.settings import OwnPod
from tests.adapters.gpus.fake_nvml import Error
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.scheduler_extender.node_agent.fake_nvml import FakeCard, FakeNvml

POD = "/api/v1/namespaces/ours/pods/reserved-0-n1"


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    api = FakeApiServer()
    await api.up()
    await api.put(POD, {"metadata": {"annotations": {"other": "kept"}}, "spec": {}})
    yield api
    await api.down()


def notes(server: FakeApiServer) -> dict[str, str]:
    pod: dict[str, Any] = server.objects["", "pods", "ours", "reserved-0-n1"]
    found: dict[str, str] = pod["metadata"]["annotations"]
    return found


def own(server: FakeApiServer, folder: Path) -> OwnPod:
    uid = server.objects["", "pods", "ours", "reserved-0-n1"]["metadata"]["uid"]
    return OwnPod("reserved-0-n1", "ours", uid, server.kubeconfig(folder))


async def told(server: FakeApiServer) -> None:
    async with asyncio.timeout(20):
        while RESERVED_UUID not in notes(server):  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0.01)


async def test_the_card_that_is_seen_is_told_and_held_until_the_end(
    server: FakeApiServer, tmp_path: Path
) -> None:
    stop, library = asyncio.Event(), FakeNvml([FakeCard("GPU-7")])
    holding = asyncio.create_task(reserve(own(server, tmp_path), stop, library=library))
    await told(server)
    assert notes(server) == {"other": "kept", RESERVED_UUID: "GPU-7"}
    assert not holding.done()
    stop.set()
    await holding
    (asked,) = [path for verb, path, _ in server.asked if verb == "patch"]
    assert asked == f"{POD}/status"


async def test_an_api_server_that_does_not_answer_is_asked_again(
    server: FakeApiServer, tmp_path: Path
) -> None:
    server.fail(500, times=1)
    stop, library = asyncio.Event(), FakeNvml([FakeCard("GPU-7")])
    holding = asyncio.create_task(reserve(own(server, tmp_path), stop, library=library))
    await told(server)
    stop.set()
    await holding


@pytest.mark.parametrize(
    ("cards", "says"),
    [
        ([], r"sees 0 GPUs \(none\).*nvidia.com/gpu: 1"),
        ([FakeCard("GPU-1"), FakeCard("GPU-2")], r"sees 2 GPUs \(GPU-1, GPU-2\)"),
        ([FakeCard("GPU-1", lost=True)], r"sees 0 GPUs \(GPU number 0: .*"),
    ],
)
async def test_more_or_fewer_cards_than_one_are_an_error_and_nothing_is_told(
    server: FakeApiServer, tmp_path: Path, cards: list[FakeCard], says: str
) -> None:
    with pytest.raises(GiveUp, match=says):
        await reserve(own(server, tmp_path), asyncio.Event(), library=FakeNvml(list(cards)))
    assert server.asked == []


async def test_a_driver_that_does_not_answer_is_an_error(
    server: FakeApiServer, tmp_path: Path
) -> None:
    library = FakeNvml(broken=Error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    with pytest.raises(GiveUp, match="was not read: nvml"):
        await reserve(own(server, tmp_path), asyncio.Event(), library=library)


async def test_who_may_not_tell_ends_with_the_reason(server: FakeApiServer, tmp_path: Path) -> None:
    server.forbidden.add("pods")
    with pytest.raises(Refused, match="this right"):
        await reserve(own(server, tmp_path), asyncio.Event(), library=FakeNvml([FakeCard("GPU-7")]))


def test_the_command_tells_what_it_was_not_given_and_exits_with_2() -> None:
    result = CliRunner().invoke(command, ["reserve", "--kubeconfig", "/none"], env={"POD_UID": ""})
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    options = ["--pod", "--namespace", "--uid", "--kubeconfig"]
    assert [line.split()[3].removesuffix(":") for line in lines] == options


@pytest.mark.slow
async def test_the_command_says_in_one_line_why_it_holds_nothing(tmp_path: Path) -> None:
    """On a machine without a GPU, or with several, as those are that run tests."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler_extender.node_agent.cli", "reserve"),
        *("--pod", "p", "--namespace", "n", "--uid", "u"),
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith("tidegate node-agent reserve: ")
