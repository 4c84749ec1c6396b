# SPDX-License-Identifier: Apache-2.0
"""The agent against an API server that is faked at the socket, and its command."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pynvml
import pytest
from aiohttp import web
from typer.testing import CliRunner

from autoscaler.adapters.kubernetes.resources import Place
from scheduler_extender.adapters.api import Api
from scheduler_extender.core.node_report import GPUS, node_seen
from scheduler_extender.errors import Refused
from scheduler_extender.listening import bound
from scheduler_extender.node_agent import process as agent_process
from scheduler_extender.node_agent.cli import app as command
from scheduler_extender.node_agent.process import Process, _once
from scheduler_extender.node_agent.settings import Settings
from tests.adapters.gpus.fake_nvml import Error
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.scheduler_extender.fakes import a_pod
from tests.scheduler_extender.node_agent.fake_nvml import FakeCard, FakeNvml

NODE = "/api/v1/nodes/n1"


class NodesApiServer(FakeApiServer):
    """Selects pods by their node, and keeps what kind of patch it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    async def _list(self, place: Place, query: dict[str, str], body: Any) -> web.Response:
        selector = query.pop("fieldSelector", "")
        answer = await super()._list(place, query, body)
        page = orjson.loads(answer.body)  # type: ignore[arg-type]
        node = selector.removeprefix("spec.nodeName=")
        page["items"] = [raw for raw in page["items"] if raw["spec"].get("nodeName") == node]
        return web.Response(body=orjson.dumps(page), content_type="application/json")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "PATCH":
            self.kinds.append(request.content_type)
        return await super()._answer(request)

    @property
    def node(self) -> dict[str, Any]:
        return self.objects["", "nodes", "", "n1"]


@pytest.fixture
async def server() -> AsyncIterator[NodesApiServer]:
    api = NodesApiServer()
    await api.up()
    labels = {"nvidia.com/gpu.present": "true"}
    status = {"allocatable": {"cpu": "64", "memory": "256Gi"}}
    meta = {"name": "n1", "labels": labels, "annotations": {"other": "kept"}}
    await api.put(NODE, {"metadata": meta, "spec": {}, "status": status})
    yield api
    await api.down()


@asynccontextmanager
async def running(
    server: NodesApiServer, folder: Path, library: FakeNvml
) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings("n1", server.kubeconfig(folder), "127.0.0.1", 0, every_s=0.01)
    taken = bound(settings.host, settings.port)
    url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    async with Api(settings.kubeconfig) as api, httpx.AsyncClient(base_url=url) as client:
        process = Process(settings, api, taken, library=library)
        task = asyncio.create_task(process.run())
        try:
            yield client
        finally:
            process.stop.set()
            async with asyncio.timeout(10):
                await task


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.01)


async def test_the_report_comes_to_the_node_and_follows_its_gpus(
    server: NodesApiServer, tmp_path: Path
) -> None:
    library = FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2")])
    async with running(server, tmp_path, library):
        await until(lambda: GPUS in server.node["metadata"]["annotations"])
        library.cards[1].lost = True
        await until(lambda: not _healthy(server, 1))
        counted = library.counted
        await until(lambda: library.counted >= counted + 10)
        assert len(server.kinds) == 2
    assert server.node["metadata"]["annotations"]["other"] == "kept"
    assert server.kinds == ["application/merge-patch+json"] * 2
    assert server.asked_for("patch") == [{"fieldManager": "tidegate-node-agent"}] * 2


async def test_metrics_tell_of_gpus_and_of_what_pods_were_given(
    server: NodesApiServer, tmp_path: Path
) -> None:
    notes = {
        "tidegate.dev/gpu-uuids": "GPU-1",
        "tidegate.dev/gpu-mem-mib": "1024",
        "tidegate.dev/gpu-core-percent": "25",
    }
    await server.put("/api/v1/namespaces/ns/pods/w", a_pod("w", annotations=notes, node="n1"))
    await server.put("/api/v1/namespaces/ns/pods/x", a_pod("x", annotations=notes, node="n2"))
    ended = {**a_pod("y", annotations=notes, node="n1"), "status": {"phase": "Succeeded"}}
    await server.put("/api/v1/namespaces/ns/pods/y", ended)
    library = FakeNvml([FakeCard("GPU-1", util=50, uncorrected=1)])
    async with running(server, tmp_path, library) as client:
        await until(lambda: GPUS in server.node["metadata"]["annotations"])
        text = ""
        async with asyncio.timeout(10):
            while "pod_gpu_memory_bytes{" not in text or "gpus_read 1.0" not in text:
                text = (await client.get("/metrics")).text
        ready = await client.get("/readyz")
        health = await client.get("/healthz")
    gpu = '{profile="",uuid="GPU-1"}'
    assert f"tidegate_node_gpu_healthy{gpu} 0.0" in text
    assert f"tidegate_node_gpu_utilization_ratio{gpu} 0.5" in text
    assert f"tidegate_node_gpu_power_watts{gpu}" not in text
    pod = '{namespace="ns",pod="w",uuid="GPU-1"}'
    assert f"tidegate_pod_gpu_memory_bytes{pod} 1.073741824e+09" in text
    assert f"tidegate_pod_gpu_compute_ratio{pod} 0.25" in text
    assert 'pod="x"' not in text
    assert 'pod="y"' not in text
    assert (ready.status_code, health.status_code) == (200, 200)


async def test_a_driver_that_falls_silent_leaves_gpus_that_are_not_healthy(
    server: NodesApiServer, tmp_path: Path
) -> None:
    library = FakeNvml([FakeCard("GPU-1", util=50)])
    async with running(server, tmp_path, library) as client:
        await until(lambda: GPUS in server.node["metadata"]["annotations"])
        library.broken = Error(pynvml.NVML_ERROR_UNKNOWN)
        await until(lambda: not _healthy(server, 0))
        text = ""
        async with asyncio.timeout(10):
            while "gpus_read 0.0" not in text:
                text = (await client.get("/metrics")).text
    assert 'tidegate_node_gpu_healthy{profile="",uuid="GPU-1"} 0.0' in text
    assert "tidegate_node_gpu_utilization_ratio{" not in text


async def test_it_waits_for_an_api_server_and_is_not_ready_before(
    server: NodesApiServer, tmp_path: Path
) -> None:
    server.fail(500, times=3)
    server.held.clear()
    async with running(server, tmp_path, FakeNvml([FakeCard("GPU-1")])) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert "tidegate_node_gpus_read 0.0" in (await client.get("/metrics")).text
        server.held.set()
        await until(lambda: GPUS in server.node["metadata"]["annotations"])


async def test_what_stands_on_the_node_and_is_not_ours_is_replaced(
    server: NodesApiServer, tmp_path: Path
) -> None:
    meta = {"name": "n1", "annotations": {GPUS: "mine"}}
    await server.put(NODE, {**server.node, "metadata": meta})
    async with running(server, tmp_path, FakeNvml([FakeCard("GPU-1")])):
        await until(lambda: server.node["metadata"]["annotations"][GPUS] != "mine")
        await until(lambda: _healthy(server, 0))


async def test_once_writes_once_and_a_second_time_only_a_heartbeat(
    server: NodesApiServer, tmp_path: Path
) -> None:
    settings = Settings("n1", server.kubeconfig(tmp_path), once=True)
    library = FakeNvml([FakeCard("GPU-1")])
    first = await _once(settings, library)
    second = await _once(settings, library)
    assert (first.wrote, second.wrote) == (True, True)
    assert first.text == second.text
    assert _healthy(server, 0)


@pytest.mark.parametrize(
    ("allocatable", "holds", "told"),
    [
        pytest.param({}, 0, "", id="no device plugin"),
        pytest.param({"nvidia.com/gpu": "8"}, 0, "nvidia.com/gpu: 8 here", id="all of the plugin"),
        pytest.param({"nvidia.com/gpu": "8"}, 4, "the agent holds 4", id="some of the plugin"),
        pytest.param({"nvidia.com/gpu": "8"}, 8, "", id="all ours"),
        pytest.param({"nvidia.com/gpu": "7"}, 8, "", id="one is ill"),
        pytest.param({"nvidia.com/gpu": "0"}, 0, "", id="none left"),
        pytest.param({"nvidia.com/mig-1g.10gb": "3"}, 8, "nvidia.com/mig-1g.10gb: 3", id="MIG"),
        pytest.param({"cpu": "64", "memory": "256Gi"}, 0, "", id="nothing of NVIDIA's"),
    ],
)
async def test_gpus_that_the_device_plugin_may_give_to_others_get_no_pods(
    server: NodesApiServer, tmp_path: Path, allocatable: dict[str, str], holds: int, told: str
) -> None:
    await server.put(NODE, {**server.node, "status": {"allocatable": allocatable}})
    settings = Settings("n1", server.kubeconfig(tmp_path), once=True, holds=holds)
    made = await _once(settings, FakeNvml([FakeCard("GPU-1")]))
    assert _healthy(server, 0) == (not told)
    assert all(told in why for _, why in made.report.ill)


async def test_a_device_plugin_that_comes_later_is_noticed(
    server: NodesApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_process, "PODS_S", 0.01)
    async with running(server, tmp_path, FakeNvml([FakeCard("GPU-1")])):
        await until(lambda: GPUS in server.node["metadata"]["annotations"] and _healthy(server, 0))
        await server.put(NODE, {**server.node, "status": {"allocatable": {"nvidia.com/gpu": "1"}}})
        await until(lambda: not _healthy(server, 0))
        await server.put(NODE, {**server.node, "status": {"allocatable": {"nvidia.com/gpu": "0"}}})
        await until(lambda: _healthy(server, 0))


async def test_a_node_that_is_not_there_is_named_with_the_remedy(
    server: NodesApiServer, tmp_path: Path
) -> None:
    settings = Settings("n2", server.kubeconfig(tmp_path), once=True)
    with pytest.raises(Refused, match=re.escape("--node is the name that `kubectl get nodes`")):
        await _once(settings, FakeNvml())


@pytest.mark.slow
async def test_the_command_runs_until_it_is_told_to_end(
    server: NodesApiServer, tmp_path: Path
) -> None:
    """With the library of this machine, whether it finds a driver or not."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scheduler_extender.node_agent.cli", "--node", "n1"),
        *("--kubeconfig", str(server.kubeconfig(tmp_path)), "--listen", "127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            while GPUS not in server.node["metadata"]["annotations"]:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
    finally:
        process.terminate()
        _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert node_seen(server.node).report is not None
    assert said.decode().splitlines()[-1].count("stopped") == 1


def test_the_command_prints_a_report_where_there_is_no_driver_or_one() -> None:
    """Without a node nothing is written, so this needs no cluster."""
    result = CliRunner().invoke(command, ["--once", "--json"], env={"NODE_NAME": ""})
    assert result.exit_code == 0
    report = orjson.loads(result.stdout)
    assert report["version"] == 1
    assert report["cards"] or report["why"]


def test_the_command_tells_every_problem_and_exits_with_2() -> None:
    wrong = ["--json", "--enforcement", "hard", "--every-s", "0", "--kubeconfig", "/none"]
    wrong += ["--holds", "-1"]
    result = CliRunner().invoke(command, wrong, env={"NODE_NAME": ""})
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 6
    assert all(line.startswith("tidegate node-agent: --") for line in lines)
    assert any("auto, none, cooperative, mps, dmem" in line for line in lines)


def _healthy(server: NodesApiServer, index: int) -> bool:
    report = node_seen(server.node).report
    return report is not None and report.gpus.cards[index].healthy
