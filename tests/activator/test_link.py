# SPDX-License-Identifier: Apache-2.0
"""The activator's way to the controller: found, lost, and found again where it has moved to."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autoscaler.activator.app import Activator, Settings
from autoscaler.activator.link import Address
from autoscaler.adapters.activators import ActivatorHub
from autoscaler.channel import Hello
from autoscaler.core.routes import Demand, Route
from tests.activator.peers import until

ROUTE = Route("m", "127.0.0.1", 0)


class Elected:
    """A controller that the test moves about."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self._news = asyncio.Event()

    def lead(self, address: Address | None) -> None:
        self.address = address
        self._news.set()
        self._news = asyncio.Event()

    async def moves(self, address: Address | None) -> None:
        while self.address is None or self.address == address:
            await self._news.wait()


@dataclass
class Cluster:
    """Controllers on TCP, one activator, and who leads."""

    token: Path
    elected: Elected = field(default_factory=Elected)
    hellos: list[Hello] = field(default_factory=list)
    hubs: list[ActivatorHub] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def controller(self, *, refuses: str | None = None) -> ActivatorHub:
        async def vouch(hello: Hello) -> str | None:
            self.hellos.append(hello)
            return refuses

        hub = ActivatorHub(authenticate=vouch, lives=lambda hello: True)
        await hub.start(("127.0.0.1", 0))
        hub.publish({"m": ROUTE})
        self.hubs.append(hub)
        return hub

    def activator(self) -> Activator:
        settings = Settings(pod="activator-1", bearer=self.token, grace_s=0.1)
        one = Activator(settings, controller=self.elected, descriptors=1024)
        self.tasks.append(asyncio.create_task(one.run()))
        return one

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for hub in self.hubs:
            await hub.stop()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    token = tmp_path / "token"
    token.write_text("first\n")
    cluster = Cluster(token)
    yield cluster
    await cluster.close()


async def test_an_activator_finds_the_leader_as_soon_as_there_is_one(cluster: Cluster) -> None:
    one = cluster.activator()
    hub = await cluster.controller()
    cluster.elected.lead(("127.0.0.1", hub.port))
    await until(lambda: hub.held_by("m"), "following the leader")
    assert one.link.up
    assert (cluster.hellos[0].pod, cluster.hellos[0].bearer) == ("activator-1", "first")


async def test_the_token_is_read_anew_at_each_hello(cluster: Cluster) -> None:
    cluster.activator()
    hub = await cluster.controller()
    port = hub.port
    cluster.elected.lead(("127.0.0.1", port))
    await until(lambda: hub.held_by("m"))
    cluster.token.write_text("second")
    await hub.stop()
    again = await cluster.controller()
    cluster.elected.lead(("127.0.0.1", again.port))
    await until(lambda: again.held_by("m"))
    assert [hello.bearer for hello in cluster.hellos] == ["first", "second"]


async def test_when_another_leads_the_one_before_is_left_at_once(cluster: Cluster) -> None:
    """Also when the old one still talks: it does not know yet that it has lost the Lease."""
    cluster.activator()
    old, new = await cluster.controller(), await cluster.controller()
    cluster.elected.lead(("127.0.0.1", old.port))
    await until(lambda: old.held_by("m"))
    cluster.elected.lead(("127.0.0.1", new.port))
    await until(lambda: new.held_by("m"), "following the new leader")
    await until(lambda: not old._processes, "leaving the old one")
    assert isinstance(new.demand("m"), Demand)


async def test_a_lease_that_nobody_holds_is_no_reason_to_leave(cluster: Cluster) -> None:
    one = cluster.activator()
    hub = await cluster.controller()
    cluster.elected.lead(("127.0.0.1", hub.port))
    await until(lambda: hub.held_by("m"))
    cluster.elected.lead(None)
    hub.publish({"m": ROUTE, "n": Route("n", "127.0.0.1", 0)})
    await until(lambda: hub.held_by("n"), "still being told")
    assert one.link.up


async def test_a_controller_that_refuses_is_tried_again_with_the_token_of_then(
    cluster: Cluster,
) -> None:
    one = cluster.activator()
    hub = await cluster.controller(refuses="the token has expired")
    cluster.elected.lead(("127.0.0.1", hub.port))
    await until(lambda: cluster.hellos)
    cluster.token.write_text("fresh")
    await until(lambda: cluster.hellos[-1].bearer == "fresh", "another try")
    assert not one.desks


async def test_without_a_token_file_it_says_so_and_tries_again(cluster: Cluster) -> None:
    cluster.token.unlink()
    cluster.activator()
    hub = await cluster.controller()
    cluster.elected.lead(("127.0.0.1", hub.port))
    await asyncio.sleep(0)
    assert not cluster.hellos
    cluster.token.write_text("late")
    await until(lambda: hub.held_by("m"))


async def test_routes_stay_in_force_when_the_leader_is_gone_for_good(cluster: Cluster) -> None:
    one = cluster.activator()
    hub = await cluster.controller()
    cluster.elected.lead(("127.0.0.1", hub.port))
    await until(lambda: hub.held_by("m"))
    await hub.stop()
    await until(lambda: not one.link.up)
    cluster.elected.lead(None)
    assert one.desks["m"].port
