# SPDX-License-Identifier: Apache-2.0
"""What the platform asks an activator, and what it does between SIGTERM and its end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from autoscaler.activator.app import Activator, Settings
from autoscaler.activator.health import health_of
from autoscaler.activator.link import FixedController
from autoscaler.channel import Routes
from autoscaler.core.routes import Backend, Route
from tests.activator.peers import PATIENCE_S, Message, Peers, get, until
from tests.activator.test_processes import Rig, a_free_port

LABELS = ("namespace", "service", "port", "outcome")
BACKEND = Backend("ns", "llm", "http")


@pytest.fixture
async def rig(channel: Path) -> AsyncIterator[Rig]:
    rig = Rig(channel)
    await rig.start()
    yield rig
    await rig.close()


async def ask(peers: Peers, port: int, path: str) -> Message:
    return await (await peers.connect(port, get(path))).message()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Activator]:
    """An activator without a controller."""
    settings = Settings(grace_s=0.1)
    one = Activator(settings, controller=FixedController(tmp_path / "nobody"), descriptors=1024)
    running = asyncio.create_task(one.run())
    yield one
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_metrics_tell_each_service_port_apart(one: Activator, peers: Peers) -> None:
    replica = await peers.replica()
    first = Route("ns/llm:http", "127.0.0.1", 0, backend=BACKEND)
    second = Route("m", "127.0.0.1", 0, (replica.endpoint(),))
    await one.follow(Routes(1, (first, second)))
    await peers.connect(one.desks["ns/llm:http"].port, get())
    await (await peers.connect(one.desks["m"].port, get())).message()
    await until(lambda: one.desks["ns/llm:http"].holding.held == 1)
    async with health_of(one, "127.0.0.1", 0) as health:
        answer = await ask(peers, health.port, "/metrics")
    assert (answer.get("content-type") or "").startswith("text/plain")
    seen = {
        (
            sample.name.removeprefix("tidegate_activator_"),
            *(value for label in LABELS if (value := sample.labels.get(label)) is not None),
        ): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert seen["held_requests", "ns", "llm", "http"] == 1
    assert seen["cold_starts_total", "ns", "llm", "http"] == 1
    assert seen["requests_ended_total", "", "m", "", "answered"] == 1
    assert seen["usable_endpoints", "", "m", ""] == 1
    assert seen["client_connections", "ns", "llm", "http"] == 1
    assert (seen["routes",], seen["channel_up",]) == (2, 0)


async def test_it_is_alive_at_once_and_ready_once_it_has_routes(rig: Rig, peers: Peers) -> None:
    port = await a_free_port()
    await rig.hub.stop()
    await rig.activator("0/1", "--health-port", str(port))

    async def answers() -> None:
        while True:
            try:
                assert (await ask(peers, port, "/healthz")).status == 200
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return

    await asyncio.wait_for(answers(), PATIENCE_S)
    unready = await ask(peers, port, "/readyz")
    assert (unready.status, b"routes" in unready.body) == (503, True)
    await rig.hub.start(rig.channel)
    rig.publish()
    await rig.listening()
    assert (await ask(peers, port, "/readyz")).status == 200
    assert (await ask(peers, port, "/elsewhere")).status == 404


async def test_told_to_stop_it_takes_in_clients_until_nobody_is_sent_here_any_more(
    rig: Rig, peers: Peers
) -> None:
    health = await a_free_port()
    activator = await rig.activator(
        "0/1", "--health-port", str(health), "--linger-s", "1", "--grace-s", "5"
    )
    replica = await peers.replica()
    rig.publish(replica.endpoint())
    port = await rig.listening()
    kept = await peers.connect(port, get())
    await kept.message()
    os.kill(activator.pid, signal.SIGTERM)
    await until(lambda: not rig.hub.held_by("m"), "saying that it leaves")
    assert rig.hub.ports("m")[0].port == port, "it has closed its port too soon"
    assert (await ask(peers, health, "/readyz")).status == 503
    assert (await ask(peers, health, "/healthz")).status == 200
    late = await peers.connect(port, get())
    kept.send(get())
    for client in (late, kept):
        answer = await client.message()
        assert (answer.status, answer.get("connection")) == (200, "close")
    assert await asyncio.wait_for(activator.wait(), PATIENCE_S) == 0


async def test_what_comes_while_it_lingers_is_held_for_a_replica_too(
    rig: Rig, peers: Peers
) -> None:
    activator = await rig.activator("0/1", "--linger-s", "0.5", "--grace-s", "30")
    rig.publish()
    port = await rig.listening()
    os.kill(activator.pid, signal.SIGTERM)
    await until(lambda: not rig.hub.held_by("m"))
    client = await peers.connect(port, get())
    await until(lambda: not rig.hub.ports("m")[0].port, "closing its port")
    replica = await peers.replica()
    rig.publish(replica.endpoint())
    assert (await client.message()).status == 200
    assert await asyncio.wait_for(activator.wait(), PATIENCE_S) == 0
