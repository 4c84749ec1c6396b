# SPDX-License-Identifier: Apache-2.0
"""The hub where anybody may connect: who is heard, who is expected, who has taken whose place."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler.adapters import activators
from autoscaler.adapters.activators import STALE_S, ActivatorHub
from autoscaler.channel import Hello, encode_hello
from autoscaler.core.routes import Backend, Demand, Endpoint, Route
from autoscaler.core.signals import NoReading
from autoscaler.errors import GiveUp
from tests.adapters.test_activators import PlayedActivator, Stage, a_route, an_endpoint

BACKEND = Backend("ns", "m", "http", slots=8)


class ClusterStage(Stage):
    """A hub on TCP that knows its pods by name, each with the bearer `token of NAME`."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))
        self.pods: set[str] = set()
        self.asked: list[str] = []
        self.hub = ActivatorHub(
            now_s=lambda: self.time_s,
            authenticate=self._vouch,
            lives=lambda hello: hello.pod in self.pods,
        )

    async def _vouch(self, hello: Hello) -> str | None:
        self.asked.append(hello.pod)
        return None if hello.bearer == f"token of {hello.pod}" else "the token is not the pod's"

    async def pod(
        self, name: str, *, alias: str = "", bearer: str | None = None
    ) -> PlayedActivator:
        self.pods.add(name)
        played = PlayedActivator(*await asyncio.open_connection("127.0.0.1", self.hub.port))
        vouched = f"token of {name}" if bearer is None else bearer
        hello = Hello(0, 1, 1, alias or f"process of {name}", pod=name, bearer=vouched)
        played.writer.write(encode_hello(hello))
        self.played.append(played)
        self._tasks.append(asyncio.create_task(played.listen()))
        return played

    async def following(self, played: PlayedActivator, *, tables: int = 1, **more: Any) -> None:
        """Have it say that it follows the table that it was sent last."""
        await self.until(lambda: played.tables >= tables)
        played.say(Demand("m"), **more)


@pytest.fixture
async def stage() -> AsyncIterator[ClusterStage]:
    stage = ClusterStage()
    await stage.hub.start(("127.0.0.1", 0))
    yield stage
    await stage.close()


async def test_an_activator_is_served_over_tcp_once_it_is_vouched_for(stage: ClusterStage) -> None:
    stage.hub.publish({"m": a_route(an_endpoint())})
    played = await stage.pod("a")
    played.say(Demand("m", held=2))
    await stage.until(lambda: played.table.routes == (a_route(an_endpoint()),))
    assert stage.hub.demand("m") == Demand("m", held=2)


async def test_who_is_not_vouched_for_hears_nothing_and_is_not_heard(stage: ClusterStage) -> None:
    stage.hub.publish({"m": a_route()})
    thief = await stage.pod("a", bearer="stolen from elsewhere")
    thief.say(Demand("m", held=1000))
    await stage.until(thief.reader.at_eof)
    assert thief.tables == 0
    assert stage.asked == ["a"]
    assert stage.hub.demand("m") == NoReading("no activator is connected")


async def test_who_says_too_much_before_its_hello_is_cut_off(stage: ClusterStage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.hub.port)
    writer.write(b"x" * (activators.HELLO_BYTES + 100_000))
    try:
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    except ConnectionResetError:
        pass
    writer.close()


async def test_a_stop_does_not_wait_for_who_never_says_hello(stage: ClusterStage) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", stage.hub.port)
    await stage.until(lambda: stage.hub._conversations)
    async with asyncio.timeout(2):
        await stage.hub.stop()
    writer.close()


async def test_the_share_is_of_those_that_there_should_be(stage: ClusterStage) -> None:
    stage.hub.expect(3)
    played = await stage.pod("a")
    played.say()
    await stage.until(lambda: stage.hub.share_ratio() > 0)
    assert stage.hub.share_ratio() == pytest.approx(1 / 3)


async def test_activators_are_told_how_many_they_are(stage: ClusterStage) -> None:
    stage.hub.publish({"m": a_route()})
    stage.hub.expect(2)
    played = await stage.pod("a")
    played.say()
    await stage.until(lambda: played.table.activators == 2)
    stage.hub.expect(3)
    await stage.until(lambda: played.table.activators == 3)


async def test_slots_are_dealt_among_pods_as_among_processes(stage: ClusterStage) -> None:
    stage.time_s += STALE_S
    stage.hub.publish({"m": a_route(an_endpoint(5))})
    one = await stage.pod("a")
    one.say(Demand("m"))
    await stage.until(lambda: one.tables)
    two = await stage.pod("b")
    two.say(Demand("m"))
    await stage.until(lambda: two.tables and one.slots() == [4])
    one.say(Demand("m"))
    await stage.until(lambda: two.slots() == [1])


async def test_slots_of_a_lost_pod_stay_reserved_until_the_platform_says_it_is_gone(
    stage: ClusterStage,
) -> None:
    stage.time_s += STALE_S
    stage.hub.expect(2)
    stage.hub.publish({"m": a_route(an_endpoint(2))})
    one = await stage.pod("a")
    one.say(Demand("m"))
    await stage.until(lambda: one.tables)
    two = await stage.pod("b")
    two.say(Demand("m"))
    await stage.until(lambda: two.tables and one.slots() == [1])
    one.say(Demand("m"))
    await stage.until(lambda: two.slots() == [1])
    two.writer.close()
    await stage.until(lambda: stage.hub.share_ratio() == 0.5)
    busy = Demand("m", held=3, in_flight=1, in_flight_by_endpoint={"r1": 1})
    one.say(busy, waits_s={"m": 1.0})
    await stage.until(lambda: stage.hub.demand("m") == busy)
    assert one.slots() == [1]
    stage.pods.discard("b")
    one.say(busy, waits_s={"m": 1.1})
    await stage.until(lambda: one.slots() == [2])


async def test_a_container_that_restarted_takes_the_place_of_the_one_before(
    stage: ClusterStage,
) -> None:
    """The pod is there all the time, so only the new process tells that the old one has ended."""
    stage.time_s += STALE_S
    stage.hub.publish({"m": a_route(an_endpoint(4))})
    before = await stage.pod("a", alias="before")
    before.say()
    await stage.until(lambda: before.tables and before.slots() == [4])
    before.say(Demand("m", in_flight=4, in_flight_by_endpoint={"r1": 4}, requests_total=9))
    await stage.until(lambda: isinstance(stage.hub.demand("m"), Demand))
    after = await stage.pod("a", alias="after")
    after.say(Demand("m", requests_total=1))
    await stage.until(lambda: after.tables and after.slots() == [4])
    assert stage.hub.demand("m") == Demand("m", requests_total=10)


async def test_only_activators_that_follow_the_route_and_stay_are_sent_requests(
    stage: ClusterStage,
) -> None:
    stage.hub.publish({"m": a_route()})
    one, two = await stage.pod("a"), await stage.pod("b")
    for played in (one, two):
        played.say()
    await stage.following(one)
    await stage.until(lambda: [h.pod for h in stage.hub.holders("m")] == ["a"])
    await stage.following(two)
    await stage.until(lambda: len(stage.hub.holders("m")) == 2)
    one.say(Demand("m"), leaving=True)
    await stage.until(lambda: [h.pod for h in stage.hub.holders("m")] == ["b"])
    assert stage.hub.held_by("m")


async def test_an_endpoint_that_was_never_listed_may_be_sent_to_by_who_finds_it_itself(
    stage: ClusterStage,
) -> None:
    route = replace(a_route(), backend=BACKEND)
    stage.hub.publish({"m": route})
    played = await stage.pod("a")
    played.say()
    await stage.following(played)
    await stage.until(lambda: stage.hub.held_by("m"))
    assert stage.hub.may_send("m", "pod-1")


async def test_it_may_be_sent_to_until_the_activator_follows_that_it_drains(
    stage: ClusterStage,
) -> None:
    route = replace(a_route(), backend=BACKEND)
    stage.hub.publish({"m": route})
    played = await stage.pod("a")
    played.say()
    await stage.following(played)
    await stage.until(lambda: stage.hub.held_by("m"))
    drains = Endpoint("pod-1", "10.0.0.1", 80, draining=True)
    stage.hub.publish({"m": replace(route, endpoints=(drains,))})
    assert stage.hub.may_send("m", "pod-1")
    await stage.following(played, tables=2)
    await stage.until(lambda: not stage.hub.may_send("m", "pod-1"))
    stage.hub.publish({"m": replace(route, endpoints=(drains,), state="draining")})
    assert not stage.hub.may_send("m", "pod-1"), "it drained all the time"
    stage.hub.publish({"m": route})
    assert stage.hub.may_send("m", "pod-1"), "it is no longer kept from it"


async def test_until_an_activator_follows_this_controller_it_may_send_anywhere(
    stage: ClusterStage,
) -> None:
    """It goes on with the routes of the controller before, which may have listed anything."""
    stage.hub.publish({"m": Route("m", "0.0.0.0", 20000)})  # noqa: S104
    played = await stage.pod("a")
    played.say(version=0)
    await stage.until(lambda: played.tables)
    assert stage.hub.may_send("m", "r1")
    played.say(Demand("m"))
    await stage.until(lambda: not stage.hub.may_send("m", "r1"))


async def test_an_address_that_is_taken_says_what_to_do(stage: ClusterStage) -> None:
    with pytest.raises(GiveUp, match="name another address"):
        await ActivatorHub().start(("127.0.0.1", stage.hub.port))
