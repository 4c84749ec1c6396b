# SPDX-License-Identifier: Apache-2.0
"""The hub's view of its activators, with activators that are played line by line."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from autoscaler.adapters.activators import IN_TOKENS, STALE_S, ActivatorHub, ActivatorSignalSource
from autoscaler.channel import (
    Hello,
    Lines,
    Listening,
    Report,
    Routes,
    decode_routes,
    encode_hello,
    encode_report,
)
from autoscaler.core.routes import Demand, Endpoint, Route
from autoscaler.core.signals import Measure, NoReading, Reading, ServiceId
from autoscaler.errors import GiveUp

PATIENCE_S = 10.0


@dataclass
class PlayedActivator:
    """Says what it is told to say, and keeps the last table it was handed."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    table: Routes = field(default_factory=lambda: Routes(0, ()))
    tables: int = 0

    async def listen(self) -> None:
        lines = Lines()
        while data := await self.reader.read(1 << 16):
            for line in lines.feed(data):
                self.table = decode_routes(line)
                self.tables += 1

    def say(self, *demand: Demand, waking: tuple[str, ...] = (), **more: Any) -> None:
        listening = tuple(Listening(r.service, r.port or 4000) for r in self.table.routes)
        report = Report(more.pop("version", self.table.version), demand, listening, waking, **more)
        self.writer.write(encode_report(report))

    def route(self, service: str = "m") -> Route:
        return {route.service: route for route in self.table.routes}[service]

    def slots(self, service: str = "m") -> list[int | None]:
        return [endpoint.slots for endpoint in self.route(service).endpoints]


class Stage:
    """A hub on a clock that only the test moves, and the activators that connect to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time_s = 1000.0
        self.hub = ActivatorHub(now_s=lambda: self.time_s)
        self.played: list[PlayedActivator] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(
        self, process: int = 0, of: int = 1, *, pid: int | None = None, alias: str = ""
    ) -> PlayedActivator:
        played = PlayedActivator(*await asyncio.open_unix_connection(self.path))
        hello = Hello(process, of, pid or os.getpid(), alias or f"alias-{len(self.played)}")
        played.writer.write(encode_hello(hello))
        self.played.append(played)
        self._tasks.append(asyncio.create_task(played.listen()))
        return played

    async def until(self, condition: Any) -> None:
        end_s = monotonic() + PATIENCE_S
        while not condition():
            assert monotonic() < end_s, "it did not come about"
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        for played in self.played:
            played.writer.close()
        await self.hub.stop()
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path / "channel.sock")
    await stage.hub.start(stage.path)
    yield stage
    await stage.close()


async def a_process(code: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code)


def a_route(*endpoints: Endpoint, service: str = "m", port: int = 4000) -> Route:
    return Route(service, "127.0.0.1", port, endpoints)


def an_endpoint(slots: int | None = None, *, id: str = "r1") -> Endpoint:  # noqa: A002
    return Endpoint(id, "127.0.0.1", 9000, slots=slots)


async def test_an_activator_is_handed_the_table_as_soon_as_it_speaks(stage: Stage) -> None:
    stage.hub.publish({"m": a_route(an_endpoint())})
    played = await stage.connect()
    played.say()
    await stage.until(lambda: played.table.routes == (a_route(an_endpoint()),))


async def test_a_table_that_did_not_change_is_not_sent_again(stage: Stage) -> None:
    played = await stage.connect()
    played.say()
    stage.hub.publish({"m": a_route()})
    await stage.until(lambda: played.table.routes)
    before = played.tables
    stage.hub.publish({"m": a_route()})
    stage.hub.publish({"m": a_route(an_endpoint())})
    await stage.until(lambda: played.route().endpoints)
    assert played.tables == before + 1


async def test_nobody_connected_is_no_reading(stage: Stage) -> None:
    assert stage.hub.demand("m") == NoReading("no activator is connected")


async def test_a_service_nobody_has_reported_on_is_no_reading(stage: Stage) -> None:
    stage.hub.publish({"m": a_route()})
    played = await stage.connect()
    played.say()
    await stage.until(lambda: stage.hub.share_ratio() == 1.0)
    assert stage.hub.demand("m") == NoReading("no activator has reported on m yet")


async def test_silence_becomes_no_reading_and_never_zero(stage: Stage) -> None:
    stage.hub.publish({"m": a_route()})
    played = await stage.connect()
    played.say(Demand("m", held=3))
    await stage.until(lambda: isinstance(stage.hub.demand("m"), Demand))
    stage.time_s += STALE_S + 1
    assert stage.hub.demand("m") == NoReading("no activator has spoken for 4.0 s")


async def test_demand_is_summed_over_processes(stage: Stage) -> None:
    stage.hub.publish({"m": a_route()})
    one, two = await stage.connect(0, 2), await stage.connect(1, 2)
    one.say(Demand("m", held=1, in_flight=2, in_flight_by_endpoint={"r1": 2}, requests_total=10))
    two.say(Demand("m", held=4, in_flight=1, in_flight_by_endpoint={"r1": 1}, requests_total=5))
    await stage.until(
        lambda: (
            stage.hub.demand("m")
            == Demand("m", held=5, in_flight=3, in_flight_by_endpoint={"r1": 3}, requests_total=15)
        )
    )
    assert stage.hub.share_ratio() == 1.0


async def test_totals_keep_what_an_ended_process_had_counted(stage: Stage) -> None:
    stage.hub.publish({"m": a_route()})
    child = await a_process("pass")
    first = await stage.connect(pid=child.pid)
    first.say(Demand("m", held=2, requests_total=10, held_seconds_total=4.0))
    await stage.until(lambda: isinstance(stage.hub.demand("m"), Demand))
    first.writer.close()
    await child.wait()
    second = await stage.connect()
    second.say(Demand("m", held=1, requests_total=3, held_seconds_total=1.0))
    await stage.until(
        lambda: (
            stage.hub.demand("m") == Demand("m", held=1, requests_total=13, held_seconds_total=5.0)
        )
    )


async def test_a_process_that_comes_back_is_not_counted_twice(stage: Stage) -> None:
    stage.hub.publish({"m": a_route()})
    first = await stage.connect(alias="same")
    first.say(Demand("m", requests_total=10))
    await stage.until(lambda: isinstance(stage.hub.demand("m"), Demand))
    first.writer.close()
    await stage.until(lambda: isinstance(stage.hub.demand("m"), NoReading))
    again = await stage.connect(alias="same")
    again.say(Demand("m", requests_total=12))
    await stage.until(lambda: stage.hub.demand("m") == Demand("m", requests_total=12))


async def test_a_process_that_counts_a_service_anew_does_not_lower_its_totals(
    stage: Stage,
) -> None:
    stage.hub.publish({"m": a_route()})
    played = await stage.connect()
    played.say(Demand("m", requests_total=10))
    played.say(Demand("m", requests_total=2))
    await stage.until(lambda: stage.hub.demand("m") == Demand("m", requests_total=12))


async def test_with_a_part_of_the_processes_the_reading_says_for_what_share_it_stands(
    stage: Stage,
) -> None:
    stage.hub.publish({"local/m": a_route(service="local/m")})
    played = await stage.connect(0, 2)
    played.say(Demand("local/m", held=3, requests_total=7))
    source = ActivatorSignalSource(stage.hub)
    service = ServiceId("local", "m")
    await stage.until(lambda: isinstance(stage.hub.demand("local/m"), Demand))
    measures = (await source.measure([service]))[service]
    assert measures[Measure.HELD] == Reading(3.0, 1000.0, "activator", share_ratio=0.5)
    assert measures[Measure.REQUESTS_TOTAL] == Reading(7.0, 1000.0, "activator", share_ratio=0.5)


async def test_tokens_that_are_held_are_those_of_all_and_totals_outlive_a_process(
    stage: Stage,
) -> None:
    stage.hub.publish({"m": a_route()})
    one, two = await stage.connect(0, 2), await stage.connect(1, 2)
    told = Demand("m", requests_total=5, held_output_tokens=30, output_tokens_asked_total=90)
    one.say(told)
    two.say(replace(told, held_open_ended=2, prompt_tokens_total=8, open_ended_total=4))
    source, service = ActivatorSignalSource(stage.hub, key=lambda _: "m"), ServiceId("local", "m")
    await stage.until(lambda: stage.hub.share_ratio() == 1.0)
    measures = (await source.measure([service]))[service]
    assert {m: r.value for m in IN_TOKENS if isinstance(r := measures[m], Reading)} == {
        Measure.HELD_PROMPT_TOKENS: 0,
        Measure.HELD_OUTPUT_TOKENS: 60,
        Measure.HELD_OPEN_ENDED: 2,
        Measure.PROMPT_TOKENS_ARRIVED_TOTAL: 8,
        Measure.OUTPUT_TOKENS_ASKED_TOTAL: 180,
        Measure.OPEN_ENDED_TOTAL: 4,
    }
    one.say(Demand("m", requests_total=1, output_tokens_asked_total=10))  # it began anew
    both = Demand(
        "m",
        requests_total=11,
        held_output_tokens=30,
        held_open_ended=2,
        prompt_tokens_total=8,
        output_tokens_asked_total=190,
        open_ended_total=4,
    )
    await stage.until(lambda: stage.hub.demand("m") == both)


async def test_the_source_says_no_reading_for_every_measure_when_nobody_speaks(
    stage: Stage,
) -> None:
    service = ServiceId("local", "m")
    measures = (await ActivatorSignalSource(stage.hub).measure([service]))[service]
    assert set(measures) == {
        Measure.HELD,
        Measure.IN_FLIGHT,
        Measure.REQUESTS_TOTAL,
        Measure.REQUEST_SECONDS_TOTAL,
        Measure.HELD_SECONDS_TOTAL,
        *IN_TOKENS,
    }
    assert all(isinstance(measure, NoReading) for measure in measures.values())


async def test_a_wake_is_told_at_once(stage: Stage) -> None:
    woken: list[str] = []
    stage.hub.on_wake = woken.append
    stage.hub.publish({"m": a_route()})
    played = await stage.connect()
    played.say(Demand("m", held=1), waking=("m", "unknown"))
    await stage.until(lambda: woken == ["m"])
    assert isinstance(stage.hub.demand("m"), Demand)


async def test_the_path_is_held_only_once_an_activator_follows_the_route_and_listens(
    stage: Stage,
) -> None:
    stage.hub.publish({"m": a_route()})
    assert not stage.hub.held_by("m")
    played = await stage.connect()
    played.say()
    await stage.until(lambda: played.table.routes)
    assert not stage.hub.held_by("m")
    played.say(Demand("m"))
    await stage.until(lambda: stage.hub.held_by("m"))
    stage.hub.publish({"m": a_route(port=4001)})
    assert not stage.hub.held_by("m")
    await stage.until(lambda: played.route().port == 4001)
    played.say(Demand("m"))
    await stage.until(lambda: stage.hub.held_by("m"))
    stage.time_s += STALE_S + 1
    assert not stage.hub.held_by("m")


async def test_processes_share_slots_and_never_hold_more_than_there_are(stage: Stage) -> None:
    stage.hub.publish({"m": a_route(an_endpoint(5), an_endpoint(None, id="r2"))})
    one, two = await stage.connect(0, 2), await stage.connect(1, 2)
    one.say(Demand("m"))
    two.say(Demand("m"))
    await stage.until(lambda: two.tables and one.slots()[0] == 3)
    assert (one.slots(), two.slots()) == ([3, None], [2, None])


async def test_a_slot_moves_to_who_waits_only_after_it_was_given_back(stage: Stage) -> None:
    stage.hub.publish({"m": a_route(an_endpoint(1))})
    one, two = await stage.connect(0, 2), await stage.connect(1, 2)
    one.say(Demand("m"))
    two.say(Demand("m"))
    await stage.until(lambda: two.tables and one.tables and one.slots() == [1])
    assert two.slots() == [0]
    two.say(Demand("m", held=1), waits_s={"m": 0.5})
    await stage.until(lambda: one.slots() == [0])
    one.say(Demand("m", in_flight=1, in_flight_by_endpoint={"r1": 1}))
    two.say(Demand("m", held=1), waits_s={"m": 0.6})
    await stage.until(lambda: stage.hub.demand("m") == Demand("m", 1, 0, 1, {"r1": 1}))
    assert two.slots() == [0]
    one.say(Demand("m"))
    await stage.until(lambda: two.slots() == [1])


async def test_slots_of_a_lost_process_stay_reserved_while_it_lives(stage: Stage) -> None:
    child = await a_process("import time; time.sleep(60)")
    stage.time_s += STALE_S
    stage.hub.publish({"m": a_route(an_endpoint(4))})
    one, two = await stage.connect(0, 2), await stage.connect(1, 2, pid=child.pid)
    one.say(Demand("m"))
    two.say(Demand("m"))
    await stage.until(lambda: two.tables and one.slots() == [3])
    one.say(Demand("m"))
    await stage.until(lambda: two.slots() == [1])
    two.writer.close()
    busy = Demand("m", held=3, in_flight=3, in_flight_by_endpoint={"r1": 3})
    await stage.until(lambda: stage.hub.share_ratio() == 0.5)
    one.say(busy, waits_s={"m": 1.0})
    await stage.until(lambda: stage.hub.demand("m") == busy)
    assert one.slots() == [3]
    child.kill()
    await child.wait()
    one.say(busy, waits_s={"m": 1.1})
    await stage.until(lambda: one.slots() == [4])


async def test_a_newly_started_controller_does_not_hand_out_what_others_may_still_use(
    stage: Stage,
) -> None:
    stage.hub.publish({"m": a_route(an_endpoint(4))})
    one = await stage.connect(0, 2)
    one.say(Demand("m"))
    await stage.until(lambda: one.tables)
    assert one.slots() == [2]
    stage.time_s += STALE_S
    one.say(Demand("m"))
    await stage.until(lambda: one.slots() == [4])


async def test_an_activator_that_talks_nonsense_is_dropped_and_others_are_not(
    stage: Stage,
) -> None:
    stage.hub.publish({"m": a_route()})
    good, bad = await stage.connect(0, 2), await stage.connect(1, 2)
    good.say(Demand("m", held=1))
    bad.writer.write(b"nonsense\n")
    await stage.until(bad.reader.at_eof)
    await stage.until(lambda: stage.hub.demand("m") == Demand("m", held=1))


async def test_the_socket_is_the_owners_alone(stage: Stage) -> None:
    assert stage.path.stat().st_mode & 0o777 == 0o600


async def test_a_second_controller_on_the_same_path_is_refused(stage: Stage) -> None:
    with pytest.raises(GiveUp, match="another controller listens"):
        await ActivatorHub().start(stage.path)


async def test_a_socket_that_a_dead_controller_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    first = ActivatorHub()
    await first.start(path)
    assert first._server is not None
    first._server.close()  # as if killed: nothing is tidied up
    second = ActivatorHub()
    await second.start(path)
    await second.stop()
    assert not path.exists()


async def test_a_path_that_cannot_be_listened_on_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(GiveUp, match="choose a directory"):
        await ActivatorHub().start(tmp_path / "missing" / "channel.sock")
    in_the_way = tmp_path / "file"
    in_the_way.write_text("x")
    with pytest.raises(GiveUp, match="in the way"):
        await ActivatorHub().start(in_the_way)


async def test_an_activator_may_send_until_it_follows_that_an_endpoint_drains(
    stage: Stage,
) -> None:
    """Also a process that lost its connection, or has not said a word since the new table."""
    one, other = await stage.connect(0, 2), await stage.connect(1, 2)
    stage.hub.publish({"m": a_route(an_endpoint())})
    for played in (one, other):
        played.say(version=0)
        await stage.until(lambda played=played: played.tables)
        played.say()
    await stage.until(lambda: stage.hub.held_by("m"))
    assert stage.hub.may_send("m", "r1")

    stage.hub.publish({"m": a_route(replace(an_endpoint(), draining=True))})
    for played in (one, other):
        await stage.until(lambda played=played: played.route().endpoints[0].draining)
        assert stage.hub.may_send("m", "r1")
        played.say()
    await stage.until(lambda: not stage.hub.may_send("m", "r1"))

    stage.hub.publish({"m": a_route(an_endpoint())})
    await stage.until(lambda: not one.route().endpoints[0].draining)
    assert stage.hub.may_send("m", "r1"), "it was recalled"
    stage.hub.publish({"m": a_route()})
    await stage.until(lambda: not other.route().endpoints)
    one.say()
    other.writer.close()
    await stage.until(lambda: stage.hub.share_ratio() < 1)
    assert stage.hub.may_send("m", "r1")
