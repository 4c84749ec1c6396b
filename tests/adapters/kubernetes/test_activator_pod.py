# SPDX-License-Identifier: Apache-2.0
"""The activator as a pod: its command, an API server, and a controller that holds the Lease."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autoscaler.adapters.activators import ActivatorHub
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES, LEASES
from autoscaler.channel import Hello
from autoscaler.core.routes import Backend, Route
from tests.activator.peers import PATIENCE_S, Message, Peers, Replica, get, until
from tests.activator.test_processes import a_free_port
from tests.adapters.kubernetes.fake_api_server import FakeApiServer

ROUTE = Route(
    "ns/llm:http",
    "192.0.2.1",  # not an address of ours: where a pod listens is its own to say
    0,
    backend=Backend("ns", "llm", "http", probe="tcp", slots=4),
)


@dataclass
class Cluster:
    """An API server, controllers, and one activator pod on 127.0.0.1."""

    folder: Path
    server: FakeApiServer = field(default_factory=FakeApiServer)
    hubs: list[ActivatorHub] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    health_port: int = 0
    process: asyncio.subprocess.Process | None = None

    async def controller(self) -> ActivatorHub:
        """One more controller, which takes the Lease."""

        async def vouch(hello: Hello) -> str | None:
            self.hellos.append(hello)
            return None

        hub = ActivatorHub(authenticate=vouch, lives=lambda hello: True)
        await hub.start(("127.0.0.1", 0))
        hub.publish({ROUTE.service: ROUTE})
        self.hubs.append(hub)
        lease = {
            "metadata": {"annotations": {"tidegate.dev/channel": f"127.0.0.1:{hub.port}"}},
            "spec": {"holderIdentity": f"controller-{len(self.hubs)}"},
        }
        await self.server.put(LEASES.path("tidegate", "tidegate-controller"), lease)
        return hub

    async def activator(self) -> asyncio.subprocess.Process:
        self.health_port = await a_free_port()
        token = self.folder / "token"
        token.write_text("the token")
        args = [
            *("--platform", "kubernetes", "--kubeconfig", str(self.server.kubeconfig(self.folder))),
            *("--token", str(token), "--health-port", str(self.health_port), "--linger-s", "0"),
        ]
        pod = {"POD_NAME": "activator-1", "POD_NAMESPACE": "tidegate", "POD_IP": "127.0.0.1"}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "autoscaler.cli", "activator", *args), env=os.environ | pod
        )
        return self.process

    async def slice(self, replica: Replica, **conditions: Any) -> None:
        endpoint = {
            "addresses": ["127.0.0.1"],
            "conditions": conditions,
            "targetRef": {"kind": "Pod", "name": replica.id},
        }
        await self.server.put(
            ENDPOINT_SLICES.path("ns", "llm-1"),
            {
                "metadata": {"labels": {"kubernetes.io/service-name": "llm"}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": replica.port, "protocol": "TCP"}],
                "endpoints": [endpoint],
            },
        )

    async def health(self, peers: Peers, path: str) -> Message:
        return await (await peers.connect(self.health_port, get(path))).message()

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        for hub in self.hubs:
            await hub.stop()
        await self.server.down()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    peers = Peers()
    yield peers
    await peers.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    await cluster.server.up()
    yield cluster
    await cluster.close()


async def test_a_pod_holds_finds_and_goes_on_without_controller_and_api_server(
    cluster: Cluster, peers: Peers
) -> None:
    hub = await cluster.controller()
    woken: list[str] = []
    hub.on_wake = woken.append
    process = await cluster.activator()
    await until(lambda: hub.held_by(ROUTE.service), "following the leader")
    (holder,) = hub.holders(ROUTE.service)
    assert (holder.pod, holder.bearer) == ("activator-1", "the token")
    port = hub.ports(ROUTE.service)[0].port

    client = await peers.connect(port, get())
    await until(lambda: woken == [ROUTE.service], "the wake")
    replica = await peers.replica(id="llm-0")
    await cluster.slice(replica, ready=False)
    answer = await client.message()
    assert (answer.status, answer.get("x-cold-start")) == (200, "true")
    await cluster.slice(replica, ready=True)
    assert (await cluster.health(peers, "/readyz")).status == 200

    next_one = await cluster.controller()
    await until(lambda: next_one.held_by(ROUTE.service), "following the next leader")
    await next_one.stop()
    await cluster.server.down()
    for _ in range(3):
        client.send(get())
        assert (await client.message()).status == 200
    probe = await peers.connect(port, get("/", "X-Tidegate-Probe: 1\r\n"))
    assert (await probe.message()).get("x-tidegate-activator") == "activator-1"

    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0


async def test_a_pod_that_does_not_know_its_name_says_what_is_missing() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler.cli", "activator", "--platform", "kubernetes"),
        env={name: value for name, value in os.environ.items() if name != "POD_NAME"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 2
    assert "POD_NAME is not set" in stderr.decode()
