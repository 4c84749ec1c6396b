# SPDX-License-Identifier: Apache-2.0
"""One port for several services: the Host of each request picks the desk."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from autoscaler.activator.app import Activator, Settings
from autoscaler.activator.link import FixedController
from autoscaler.channel import Routes
from autoscaler.core.routes import Endpoint, Route
from tests.activator.peers import Front, Peers, get, until


@dataclass
class House:
    """An activator without a controller: the test tells it its routes."""

    one: Activator
    version: int = 0
    routes: dict[str, Route] = field(default_factory=dict)

    async def route(self, name: str, *endpoints: Endpoint, **more: Any) -> None:
        """Serve the headless service `name` of namespace `ns`, or what `more` says."""
        hosts = more.pop(
            "hosts", (name, f"{name}.ns", f"{name}.ns.svc.cluster.local", f"{name}:80")
        )
        self.routes[name] = Route(name, "127.0.0.1", 0, endpoints, hosts=hosts, **more)
        await self.tell()

    async def forget(self, name: str) -> None:
        del self.routes[name]
        await self.tell()

    async def tell(self) -> None:
        self.version += 1
        await self.one.follow(Routes(self.version, tuple(self.routes.values())))

    @property
    def port(self) -> int:
        return next(desk.port for desk in self.one.desks.values() if desk.route.hosts)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    settings = Settings(pod="activator-7", grace_s=0.1)
    one = Activator(settings, controller=FixedController(tmp_path / "nobody"), descriptors=1024)
    running = asyncio.create_task(one.run())
    yield House(one)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def ask(host: str, path: str = "/x", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode()


@pytest.mark.parametrize(
    "host", ["a", "A", "a:80", "a:8080", "a.ns", "a.ns.svc.cluster.local.", "a.ns:8080"]
)
async def test_a_service_is_found_by_each_of_its_names(
    house: House, peers: Peers, host: str
) -> None:
    a, b = await peers.replica(id="ra"), await peers.replica(id="rb")
    await house.route("a", a.endpoint())
    await house.route("b", b.endpoint())
    client = await peers.connect(house.port, ask(host))
    assert (await client.message()).status == 200
    assert (len(a.requests), len(b.requests)) == (1, 0)


async def test_the_services_share_one_port(house: House) -> None:
    await house.route("a")
    await house.route("b")
    ports = {desk.port for desk in house.one.desks.values()}
    assert len(ports) == 1
    assert 0 not in ports


async def test_each_request_of_a_connection_goes_where_its_own_host_says(
    house: House, peers: Peers
) -> None:
    a, b = await peers.replica(id="ra"), await peers.replica(id="rb")
    await house.route("a", a.endpoint())
    await house.route("b", b.endpoint())
    client = await peers.connect(house.port)
    for host in ("a", "a", "b", "a"):
        client.send(ask(host))
        assert (await client.message()).status == 200
    assert (len(a.requests), len(b.requests)) == (3, 1)
    assert sum(len(desk.clients) for desk in house.one.desks.values()) == 1


async def test_at_zero_only_the_service_asked_for_is_woken(house: House, peers: Peers) -> None:
    await house.route("a")
    await house.route("b")
    await peers.connect(house.port, ask("b"))
    await until(lambda: house.one.desks["b"].holding.held == 1)
    report = house.one.report()
    assert report is not None
    assert report.waking == ("b",)


@pytest.mark.parametrize(
    ("path", "told"),
    [("/v1/chat/completions", lambda error: error["message"]), ("/x", lambda error: error)],
)
async def test_an_unknown_host_is_told_so_in_the_shape_of_its_protocol(
    house: House, peers: Peers, path: str, told: Any
) -> None:
    await house.route("a")
    client = await peers.connect(house.port, ask("nobody.ns", path))
    answer = await client.message()
    assert answer.status == 404
    assert "'nobody.ns'" in told(orjson.loads(answer.body)["error"])
    await client.closed()


async def test_a_name_that_two_services_claim_is_neithers(house: House, peers: Peers) -> None:
    await house.route("one", hosts=("a", "a.one"))
    await house.route("two", hosts=("a", "a.two"))
    answer = await (await peers.connect(house.port, ask("a"))).message()
    assert (answer.status, b"NAME.NAMESPACE" in answer.body) == (404, True)
    answer = await (await peers.connect(house.port, ask("a.two", "/healthz"))).message()
    assert (answer.status, answer.get("x-tidegate-service")) == (200, "two")


async def test_a_host_that_moves_to_another_service_is_followed_on_open_connections(
    house: House, peers: Peers
) -> None:
    a, b = await peers.replica(id="ra"), await peers.replica(id="rb")
    await house.route("a", a.endpoint(), hosts=("x", "a"))
    await house.route("b", b.endpoint(), hosts=("b",))
    client = await peers.connect(house.port, ask("x"))
    await client.message()
    house.routes["a"] = Route("a", "127.0.0.1", 0, (a.endpoint(),), hosts=("a",))
    await house.route("b", b.endpoint(), hosts=("b", "x"))
    client.send(ask("x"))
    await client.message()
    assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_a_service_that_goes_takes_only_its_own_clients_with_it(
    house: House, peers: Peers
) -> None:
    b = await peers.replica(id="rb")
    await house.route("a")
    await house.route("b", b.endpoint())
    port = house.port
    held = await peers.connect(port, ask("a"))
    other = await peers.connect(port, ask("b"))
    await other.message()
    await until(lambda: house.one.desks["a"].holding.held == 1)
    await house.forget("a")
    assert (await held.message()).status == 503
    other.send(ask("b"))
    assert (await other.message()).status == 200
    assert (await (await peers.connect(port, ask("a"))).message()).status == 404
    await house.forget("b")
    await other.closed()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await peers.connect(port)


async def test_a_probe_names_the_service_that_its_host_asks_for(house: House, peers: Peers) -> None:
    await house.route("a")
    client = await peers.connect(house.port, ask("a.ns", headers="X-Tidegate-Probe: 1\r\n"))
    answer = await client.message()
    assert answer.get("x-tidegate-activator") == "activator-7"
    assert answer.get("x-tidegate-service") == "a"


async def test_http_2_is_told_to_go_away_for_it_names_no_host_that_is_read(
    house: House, peers: Peers
) -> None:
    await house.route("a")
    client = await peers.connect(house.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9)
    said = await client.rest()
    assert said[9 + 3] == 7, "a GOAWAY frame follows the empty SETTINGS"


async def test_where_the_port_is_a_services_own_the_host_does_not_matter(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, ask("whatever.example"))
    assert (await client.message()).status == 200
    client.send(get())
    assert (await client.message()).status == 200
