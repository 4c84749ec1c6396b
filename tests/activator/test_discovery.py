# SPDX-License-Identifier: Apache-2.0
"""What an activator makes of what it finds and of what the controller says; and of probes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler.activator import app as activator_app
from autoscaler.activator.app import Activator, Settings
from autoscaler.activator.discovery import Service, endpoints_of
from autoscaler.activator.link import FixedController
from autoscaler.activator.probing import FAILURES, Probe, Standing, passes, probe_of
from autoscaler.channel import Routes
from autoscaler.core.found import Found
from autoscaler.core.routes import Backend, Endpoint, Route
from tests.activator.peers import Line, Message, Peers, Replica, get, ok, until

BACKEND = Backend("ns", "m", "http", probe="tcp", slots=8)
ROUTE = Route("ns/m:http", "127.0.0.1", 0, backend=BACKEND)
READY = Found("pod-1", "10.0.0.1", 8080)
LOADING = replace(READY, ready=False)
ENDING = replace(READY, ready=False, terminating=True)


def told(**more: Any) -> Route:
    return replace(ROUTE, endpoints=(Endpoint("pod-1", "", 0, **more),))


@pytest.mark.parametrize(
    ("route", "found", "passing", "expected"),
    [
        pytest.param(ROUTE, [READY], [], [(4, False)], id="nobody dealt its slots: its own share"),
        pytest.param(told(slots=1), [READY], [], [(1, False)], id="its slots were dealt"),
        pytest.param(told(slots=0), [READY], [], [(0, False)], id="none of its slots are ours"),
        pytest.param(told(), [READY], [], [(None, False)], id="it has no limit"),
        pytest.param(ROUTE, [LOADING], [], [], id="not ready and not answering"),
        pytest.param(ROUTE, [LOADING], [LOADING], [(4, False)], id="not ready, but it answers"),
        pytest.param(ROUTE, [ENDING], [], [(4, True)], id="terminating ones finish what they have"),
        pytest.param(told(slots=3, draining=True), [READY], [], [(3, True)], id="to be emptied"),
        pytest.param(told(slots=3), [], [], [], id="gone from where it was found"),
    ],
)
def test_endpoints_are_found_and_dealt(
    route: Route, found: list[Found], passing: list[Found], expected: list[tuple[Any, bool]]
) -> None:
    endpoints = endpoints_of(route, found, passing=passing, activators=2)
    assert [(e.slots, e.draining) for e in endpoints] == expected
    assert all((e.id, e.host, e.port) == ("pod-1", "10.0.0.1", 8080) for e in endpoints)


def test_the_own_share_is_at_least_one_slot() -> None:
    assert endpoints_of(ROUTE, [READY], activators=100)[0].slots == 1


def test_without_a_known_number_of_slots_there_is_no_limit() -> None:
    route = replace(ROUTE, backend=replace(BACKEND, slots=None))
    assert endpoints_of(route, [READY], activators=2)[0].slots is None


def test_as_long_as_nothing_is_known_the_controllers_word_counts() -> None:
    route = replace(ROUTE, endpoints=(Endpoint("pod-1", "10.9.9.9", 1),))
    assert endpoints_of(route, None) == route.endpoints


@pytest.mark.parametrize(
    ("words", "probe"),
    [
        ("tcp", Probe(8080)),
        ("http:9000:/healthz?x=1", Probe(9000, "/healthz?x=1")),
        ("", None),
        ("http:0:/x", None),
        ("http:70000:/x", None),
        ("http:80:no-slash", None),
        ("http:80:/a b", None),
        ("grpc:80", None),
    ],
)
def test_a_probe_that_is_not_known_here_asks_nobody(words: str, probe: Probe | None) -> None:
    assert probe_of(words, READY) == probe


def test_one_answer_makes_it_usable_and_only_failures_in_a_row_take_that_back() -> None:
    standing = Standing().after(False).after(True)
    assert standing.passes
    for _ in range(FAILURES - 1):
        standing = standing.after(False)
    assert standing.passes
    assert standing.after(True).after(False).passes
    assert not standing.after(False).passes


@pytest.mark.parametrize(
    ("status", "passed"), [(200, True), (302, True), (404, False), (503, False)]
)
async def test_an_http_probe_goes_by_the_status(peers: Peers, status: int, passed: bool) -> None:
    async def answer(request: Message, line: Line) -> None:
        line.send(f"HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n".encode())

    replica = await peers.replica(answer)
    assert await passes(Probe(replica.port, "/ready"), "127.0.0.1") is passed
    assert replica.requests[0].start == "GET /ready HTTP/1.1"


async def test_a_probe_that_hangs_fails_in_time(peers: Peers) -> None:
    async def hang(request: Message, line: Line) -> None:
        await line.rest()

    replica = await peers.replica(hang)
    async with asyncio.timeout(2):
        assert not await passes(Probe(replica.port, "/ready"), "127.0.0.1")


async def test_a_tcp_probe_asks_for_a_connection_alone(peers: Peers) -> None:
    replica = await peers.replica()
    assert await passes(Probe(replica.port), "127.0.0.1")
    await replica.stop()
    assert not await passes(Probe(replica.port), "127.0.0.1")


class PlayedDiscovery:
    """Finds what the test lays out."""

    def __init__(self) -> None:
        self.on_change: Callable[[Service], None] = lambda service: None
        self.followed: list[Backend] = []
        self.listed: tuple[Found, ...] | None = None

    def follow(self, backends: Collection[Backend]) -> None:
        self.followed = list(backends)

    def found(self, backend: Backend) -> tuple[Found, ...] | None:
        return self.listed

    def list(self, *found: Found) -> None:
        self.listed = found
        self.on_change(("ns", "m"))


@dataclass
class Scene:
    """An activator with one route, a played discovery and no controller."""

    one: Activator
    discovery: PlayedDiscovery
    version: int = 0
    running: asyncio.Task[None] | None = None
    lines: list[Line] = field(default_factory=list)

    async def route(self, *endpoints: Endpoint, activators: int = 1, **backend: Any) -> None:
        self.version += 1
        route = replace(ROUTE, endpoints=endpoints, backend=replace(BACKEND, **backend))
        await self.one.follow(Routes(self.version, (route,), activators))

    @property
    def port(self) -> int:
        return self.one.desks[ROUTE.service].port

    async def holds(self, count: int) -> None:
        await until(lambda: self.one.desks[ROUTE.service].holding.held == count, f"{count} held")

    @property
    def usable(self) -> int:
        return self.one.desks[ROUTE.service].holding.usable


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    discovery = PlayedDiscovery()
    one = Activator(
        Settings(grace_s=0.1),
        controller=FixedController(tmp_path / "nobody"),
        descriptors=1024,
        discovery=discovery,
    )
    scene = Scene(one, discovery, running=asyncio.create_task(one.run()))
    yield scene
    assert scene.running is not None
    scene.running.cancel()
    await asyncio.gather(scene.running, return_exceptions=True)


def seen(replica: Replica, **more: Any) -> Found:
    return Found(replica.id, "127.0.0.1", replica.port, **more)


async def test_a_held_request_goes_to_a_pod_as_soon_as_it_is_found(
    scene: Scene, peers: Peers
) -> None:
    await scene.route()
    assert scene.discovery.followed == [BACKEND]
    client = await peers.connect(scene.port, get())
    await scene.holds(1)
    scene.discovery.list(seen(await peers.replica()))
    answer = await client.message()
    assert (answer.status, answer.get("x-cold-start")) == (200, "true")


async def test_a_pod_that_answers_is_used_before_the_platform_calls_it_ready(
    scene: Scene, peers: Peers
) -> None:
    loading = True

    async def load(request: Message, line: Line) -> None:
        if request.target == "/ready" and loading:
            line.send(b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n")
        else:
            line.send(ok())

    replica = await peers.replica(load)
    await scene.route(probe=f"http:{replica.port}:/ready")
    client = await peers.connect(scene.port, get())
    await scene.holds(1)
    scene.discovery.list(seen(replica, ready=False))
    await until(lambda: len(replica.requests) >= 3, "asking again and again")
    assert scene.one.desks[ROUTE.service].holding.held == 1
    loading = False
    assert (await client.message()).status == 200


async def test_a_pod_that_turns_unready_gets_nothing_new_unless_it_answers(
    scene: Scene, peers: Peers
) -> None:
    replica = await peers.replica()
    await scene.route(probe="")
    scene.discovery.list(seen(replica))
    client = await peers.connect(scene.port, get())
    await client.message()
    scene.discovery.list(seen(replica, ready=False))
    assert scene.usable == 0
    client.send(get())
    await scene.holds(1)
    await scene.route(probe="tcp")
    assert (await client.message()).status == 200


async def test_a_pod_that_stops_answering_is_no_longer_used(scene: Scene, peers: Peers) -> None:
    replica = await peers.replica()
    await scene.route()
    scene.discovery.list(seen(replica, ready=False))
    await until(lambda: scene.usable == 1, "the first answer")
    await replica.stop()
    await until(lambda: scene.usable == 0, "failing")


async def test_what_the_controller_drains_gets_nothing_however_ready_it_is(
    scene: Scene, peers: Peers
) -> None:
    replica = await peers.replica()
    scene.discovery.listed = (seen(replica),)
    await scene.route(replace(replica.endpoint(4), draining=True))
    await peers.connect(scene.port, get())
    await scene.holds(1)
    assert not replica.requests


async def test_a_request_in_flight_ends_at_a_pod_that_is_terminating(
    scene: Scene, peers: Peers
) -> None:
    go = asyncio.Event()

    async def slowly(request: Message, line: Line) -> None:
        await go.wait()
        line.send(ok(b"whole"))

    replica = await peers.replica(slowly)
    await scene.route()
    scene.discovery.list(seen(replica))
    client = await peers.connect(scene.port, get())
    await until(lambda: replica.requests)
    scene.discovery.list(seen(replica, ready=False, terminating=True))
    scene.discovery.list()
    go.set()
    assert (await client.message()).body == b"whole"


async def test_unlisted_slots_are_shared_by_as_many_activators_as_there_are(
    scene: Scene, peers: Peers
) -> None:
    scene.discovery.listed = (seen(await peers.replica()),)
    await scene.route(activators=4)
    (endpoint,) = scene.one.desks[ROUTE.service].route.endpoints
    assert endpoint.slots == 2


async def test_it_is_ready_once_its_routes_and_their_endpoints_are_known(scene: Scene) -> None:
    assert "routes" in scene.one.unready_because()
    await scene.route()
    assert "endpoints" in scene.one.unready_because()
    scene.discovery.list()
    assert scene.one.unready_because() == ""
    scene.one.stop()
    assert "stop" in scene.one.unready_because()


async def test_one_service_that_cannot_be_looked_at_does_not_keep_it_unready(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activator_app, "FINDING_S", 0.0)
    await scene.route()
    assert scene.one.unready_because() == ""
