# SPDX-License-Identifier: Apache-2.0
"""The rounds of a source, and what it makes of answers, with a Prometheus that a test plays."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from autoscaler.adapters.prometheus.client import Sample
from autoscaler.adapters.prometheus.source import QUERIES_PER_ROUND_S, PrometheusSignalSource
from autoscaler.core.signals import NoReading, Query, Reading, ServiceId, Signal
from autoscaler.errors import GiveUp, RetryLater
from autoscaler.prometheus_settings import PrometheusSettings
from tests.fakes import FakeClock

CHAT = ServiceId("team", "chat")
WALL_S = 1_800_000_000.0


class FakeClient:
    """Answers our own questions with nothing, and others as a test says."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.takes_s = 0.0  # for each query of a user
        self.answers: dict[str, Sequence[Sample] | GiveUp | RetryLater] = {}
        self.down: RetryLater | None = None
        self.asked: list[str] = []
        self.was_asked = asyncio.Event()
        self.closed = False

    async def query(self, promql: str) -> list[Sample]:
        self.asked.append(promql)
        self.was_asked.set()
        if self.down is not None:
            raise self.down
        if "tidegate_part" in promql:
            return []
        self._clock.at_s += self.takes_s
        answer = self.answers.get(promql, (Sample({}, 1.0, WALL_S),))
        if isinstance(answer, GiveUp | RetryLater):
            raise answer
        return list(answer)

    async def query_range(
        self, promql: str, *, from_s: float, to_s: float, step_s: float
    ) -> list[Sample]:
        return []

    def close(self) -> None:
        self.closed = True

    def own(self) -> list[str]:
        """The users' queries that were asked, in order."""
        return [promql for promql in self.asked if "tidegate_part" not in promql]


class World:
    def __init__(self, **queries: str) -> None:
        self.clock = FakeClock(100.0)
        self.client = FakeClient(self.clock)
        self.pods: Sequence[str] = ("chat-a", "chat-b")
        self.queries = {ServiceId("team", name): (Query(q),) for name, q in queries.items()}
        self.source = PrometheusSignalSource(
            PrometheusSettings("http://nowhere", refresh_s=60.0),
            clock=self.clock,
            pods=lambda _: self.pods,
            queries=lambda service: self.queries.get(service, ()),
            client=self.client,
            wall_s=lambda: WALL_S,
        )

    async def seen(self, name: str = "chat") -> Reading | NoReading:
        """What the first query of a service gave."""
        service = ServiceId("team", name)
        (query,) = self.queries[service]
        return (await self.source.measure([service]))[service][query]


async def test_before_the_first_round_nothing_is_known() -> None:
    """And that is what is said."""
    world = World(chat="a")
    assert await world.seen() == NoReading("prometheus: not asked yet")
    measures = (await world.source.measure([CHAT]))[CHAT]
    assert measures[Signal.QUEUE] == NoReading("prometheus: not asked yet")


def test_a_source_that_stands_by_knows_of_no_trouble() -> None:
    """Else the metrics of each controller that does not lead would say that it is down."""
    health = World().source.health()
    assert (health.why, health.asked) == (None, 0)


async def test_of_a_service_without_pods_only_its_own_queries_are_told() -> None:
    """There is nothing that Prometheus could know of its replicas."""
    world = World(chat="a")
    world.pods = ()
    await world.seen()
    await world.source.refresh()
    measures = (await world.source.measure([CHAT]))[CHAT]
    assert list(measures) == [Query("a")]
    assert isinstance(measures[Query("a")], Reading)


async def test_a_query_of_many_services_is_asked_once() -> None:
    """Where it says $NAME, once for each."""
    world = World(a="up", b="up", c="x{s='$NAME'}", d="x{s='$NAME'}")
    await world.source.measure(list(world.queries))
    await world.source.refresh()
    assert sorted(world.client.own()) == ["up", "x{s='c'}", "x{s='d'}"]


async def test_a_query_that_fails_is_its_service_s_alone() -> None:
    """The others have their values; the source's health tells of it."""
    world = World(chat="bad", other="good")
    world.client.answers["bad"] = GiveUp("Prometheus refuses the query: bad")
    await world.source.measure(list(world.queries))
    await world.source.refresh()
    assert await world.seen() == NoReading("prometheus: Prometheus refuses the query: bad")
    assert isinstance(await world.seen("other"), Reading)
    health = world.source.health()
    assert health.why == "1 of 2 PromQL targets fail: Prometheus refuses the query: bad"
    assert (health.failed, health.asked) == (1, len(world.client.asked))


async def test_slow_queries_wait_for_one_another_and_nobody_waits_for_them() -> None:
    """What they take of a round comes after all that answers, and each has its turn."""
    slow = [f"slow-{n}" for n in range(9)]
    world = World(**{name: name for name in slow}, chat="quick")
    world.client.takes_s = QUERIES_PER_ROUND_S
    for name in slow:
        world.client.answers[name] = RetryLater("no answer in time", after_s=1.0)
    rounds = []
    for _ in range(12):
        await world.source.measure(list(world.queries))
        world.client.asked.clear()
        await world.source.refresh()
        rounds.append(world.client.own())
    assert all(len(asked) < len(slow) for asked in rounds)
    assert {name for asked in rounds for name in asked} >= set(slow)
    assert [asked[0] for asked in rounds[-3:]] == ["quick"] * 3
    assert isinstance(await world.seen(), Reading)


async def test_a_server_in_trouble_is_asked_no_more_in_that_round() -> None:
    """Four queries at once find out; all others would only wait as well."""
    world = World(**{f"s{n}": f"q{n}" for n in range(50)})
    await world.source.measure(list(world.queries))
    world.client.down = RetryLater("Connection refused", after_s=1.0)
    await world.source.refresh()
    assert len(world.client.asked) <= 4
    assert await world.seen("s0") == NoReading("prometheus: Connection refused")
    assert world.source.health().why == "Connection refused"


async def test_what_was_said_too_long_ago_is_no_reading() -> None:
    """Though no later query has failed."""
    world = World(chat="a")
    await world.seen()
    await world.source.refresh()
    assert isinstance(await world.seen(), Reading)
    world.clock.at_s += 91
    assert await world.seen() == NoReading("prometheus: its newest sample is 91 s old")


async def test_one_of_the_pods_never_passes_for_the_whole() -> None:
    """A vector by pod that has lost a pod speaks for half of them."""
    world = World(chat="x")
    of_a = {"namespace": "team", "pod": "chat-a"}
    world.client.answers["x"] = (Sample(of_a, 3.0, WALL_S),)
    await world.seen()
    await world.source.refresh()
    seen = await world.seen()
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (3.0, 0.5)


async def test_a_new_query_does_not_wait_for_the_next_round() -> None:
    """Somebody has just written it and looks at what becomes of it."""
    world = World()
    rounds = asyncio.create_task(world.source.run())
    await world.client.was_asked.wait()
    world.client.was_asked.clear()
    world.queries[CHAT] = (Query("new"),)
    assert isinstance(await world.seen(), NoReading)
    async with asyncio.timeout(10):
        while "new" not in world.client.asked:
            await world.client.was_asked.wait()
            world.client.was_asked.clear()
    rounds.cancel()
    with suppress(asyncio.CancelledError):
        await rounds
    assert world.client.closed


async def test_a_service_that_nobody_asks_about_costs_no_query() -> None:
    """Its query is forgotten with it."""
    world = World(chat="a")
    await world.seen()
    world.clock.at_s += 61
    await world.source.refresh()
    assert world.client.own() == []
