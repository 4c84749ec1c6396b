# SPDX-License-Identifier: Apache-2.0
"""Pods that are asked beside the ticks: how often, how many at once, and what is not believed."""

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from time import thread_time

import pytest

from autoscaler.adapters.engines.growth import Look
from autoscaler.adapters.engines.page import Page, page_of
from autoscaler.adapters.engines.scraper import TRIED_PER_S, EngineScraper, Room
from autoscaler.adapters.plain_http import Answer, At, NoAnswer
from autoscaler.core.signals import Measure, NoReading
from tests.adapters.builders import a_service_id
from tests.fakes import FakeClock

SERVICE = a_service_id()
GONE = a_service_id("gone")


@dataclass
class Pods:
    """Pods on one port, each a path; `waiting` is what each tells, None: it fails."""

    waiting: dict[str, int | None]
    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    hanging: asyncio.Event | None = None

    async def serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await reads.readuntil(b"\r\n\r\n")
                pod = request.split()[1].decode().lstrip("/")
                self.asked[pod] += 1
                if self.hanging is not None:
                    await self.hanging.wait()
                writes.write(self._page(self.waiting[pod]))
        except (asyncio.IncompleteReadError, ConnectionError):
            writes.close()

    def _page(self, waiting: int | None) -> bytes:
        if waiting is None:
            return b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"
        body = b"vllm:num_requests_waiting %d\n" % waiting
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def places(self) -> dict[str, At]:
        return {pod: At("127.0.0.1", self.port, f"/{pod}") for pod in self.waiting}


@dataclass
class Scraped:
    """A scraper that runs, its pods, and a clock that the test moves."""

    scraper: EngineScraper
    pods: Pods
    clock: FakeClock

    def expect(self) -> None:
        self.scraper.expect(SERVICE, self.pods.places())

    def waiting(self, pod: str) -> float | None:
        look = self.scraper.look(SERVICE, pod)
        return look.page.total(Measure.WAITING) if isinstance(look, Look) else None

    def why(self, pod: str) -> str:
        look = self.scraper.look(SERVICE, pod)
        return look.why if isinstance(look, NoReading) else ""


@pytest.fixture
async def scraped() -> AsyncIterator[Scraped]:
    pods, clock = Pods({}), FakeClock(100.0)
    server = await asyncio.start_server(pods.serve, "127.0.0.1", 0)
    pods.port = server.sockets[0].getsockname()[1]
    scraper = EngineScraper(clock=clock, random=Random(7))
    running = asyncio.create_task(scraper.run())
    yield Scraped(scraper, pods, clock)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    server.close()
    await server.wait_closed()


async def until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as `condition` holds."""
    try:
        async with asyncio.timeout(10.0):
            while not condition():  # noqa: ASYNC110 - the other side is a socket
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None


async def test_a_pod_is_asked_at_once_and_then_every_second(scraped: Scraped) -> None:
    """On one connection; in between, what it said last is known without asking."""
    scraped.pods.waiting = {"one": 3}
    assert scraped.waiting("one") is None
    scraped.expect()
    await until(lambda: scraped.waiting("one") == 3, "the first look")
    scraped.pods.waiting["one"] = 5
    scraped.clock.at_s += 0.5
    assert scraped.waiting("one") == 3
    scraped.clock.at_s += 0.7
    await until(lambda: scraped.waiting("one") == 5, "the second look")
    assert (scraped.pods.asked["one"], scraped.pods.connections) == (2, 1)


async def test_a_pod_that_fails_is_no_reading_at_once(scraped: Scraped) -> None:
    """What it said a second ago may be over (rule D1); once it answers again it counts again."""
    scraped.pods.waiting = {"one": 3}
    scraped.expect()
    await until(lambda: scraped.waiting("one") == 3, "the first look")
    scraped.pods.waiting["one"] = None
    scraped.clock.at_s += 1.2
    await until(lambda: scraped.waiting("one") is None, "the failure")
    assert scraped.why("one").startswith("one: http://127.0.0.1:")
    assert scraped.why("one").endswith("answered 500")
    scraped.pods.waiting["one"] = 4
    scraped.clock.at_s += 1.2
    await until(lambda: scraped.waiting("one") == 4, "the recovery")


async def test_what_was_said_three_seconds_ago_is_no_reading(scraped: Scraped) -> None:
    """Also while an answer is still awaited."""
    scraped.pods.waiting = {"one": 3}
    scraped.expect()
    await until(lambda: scraped.waiting("one") == 3, "the first look")
    scraped.pods.hanging = asyncio.Event()
    scraped.clock.at_s += 3.1
    assert scraped.why("one").endswith("last answered 3.1 s ago")
    scraped.pods.hanging.set()


async def test_a_pod_that_keeps_failing_is_asked_less_and_less(scraped: Scraped) -> None:
    """Down to once in ten seconds."""
    scraped.pods.waiting = {"one": None}
    scraped.expect()
    asked_at_s = []
    for times in range(1, 7):
        while scraped.pods.asked["one"] < times:
            scraped.clock.at_s += 0.5
            await asyncio.sleep(0.06)  # the scraper looks every 50 ms whose turn it is
        asked_at_s.append(scraped.clock.at_s)
        await until(lambda: "500" in scraped.why("one"), "the answer")
    pauses_s = [after - before for before, after in pairwise(asked_at_s)]
    assert pauses_s[0] < 2.0
    assert 8.0 < pauses_s[-1] < 12.0


async def test_a_pod_that_is_not_expected_any_more_is_not_asked(scraped: Scraped) -> None:
    """And one with the same name at another address is another pod."""
    scraped.pods.waiting = {"one": 1, "two": 2}
    scraped.expect()
    await until(lambda: scraped.waiting("one") and scraped.waiting("two"), "the first looks")
    del scraped.pods.waiting["two"]
    moved = At("127.0.0.1", scraped.pods.port, "/one?again")
    scraped.pods.waiting["one?again"] = 9
    scraped.scraper.expect(SERVICE, {"one": moved})
    assert scraped.waiting("one") is None
    assert scraped.waiting("two") is None
    scraped.clock.at_s += 1.2
    await until(lambda: scraped.waiting("one") == 9, "the pod at its new address")
    assert scraped.pods.asked == {"one": 1, "two": 1, "one?again": 1}


async def test_a_thousand_pods_that_do_not_answer_keep_none_waiting_that_does(
    scraped: Scraped,
) -> None:
    """What fails is tried so many times a second and no more; what answers has its own lane."""
    scraped.pods.waiting = {"one": 1}
    scraped.expect()
    await until(lambda: scraped.waiting("one") == 1, "the first look")
    nobody = {f"gone-{n}": At("127.0.0.1", 1, "/") for n in range(TRIED_PER_S * 10)}
    scraped.scraper.expect(GONE, nobody)
    scraped.pods.waiting["one"] = 2
    scraped.clock.at_s += 1.2
    await until(lambda: scraped.waiting("one") == 2, "the second look")
    tried = [pod for pod in nobody if "nothing listens" in str(scraped.scraper.look(GONE, pod))]
    assert len(tried) <= TRIED_PER_S


async def test_a_service_that_nobody_asks_about_any_more_is_forgotten(scraped: Scraped) -> None:
    """It was deleted, or another controller leads now."""
    scraped.pods.waiting = {"one": 1}
    scraped.expect()
    await until(lambda: scraped.waiting("one") == 1, "the first look")
    scraped.clock.at_s += 61.0
    await until(lambda: scraped.why("one") == "one: not asked yet", "it is forgotten")


async def test_where_there_are_too_many_pods_each_is_asked_less_often_and_that_is_told() -> None:
    """Ten a second may be asked: of forty all have their turn, none twice before."""
    pods, clock = Pods({f"pod-{n}": 1 for n in range(40)}), FakeClock(100.0)
    server = await asyncio.start_server(pods.serve, "127.0.0.1", 0)
    pods.port = server.sockets[0].getsockname()[1]
    scraper = EngineScraper(clock=clock, random=Random(7), begun_per_s=10)
    running = asyncio.create_task(scraper.run())
    scraper.expect(SERVICE, pods.places())
    await until(lambda: len(pods.asked) == 40, "the first looks")
    pods.asked.clear()
    why = ""
    while len(pods.asked) < 40:
        clock.at_s += 0.1
        await asyncio.sleep(0.06)  # the scraper looks every 50 ms whose turn it is
        why = scraper.health().why or why
    assert set(pods.asked.values()) == {1}
    assert clock.at_s > 104.0
    assert "of 40 pods wait to be asked" in why
    assert "more than can be asked every 1 s" in why
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    server.close()


async def test_a_page_that_takes_long_to_read_is_read_less_often() -> None:
    """No pod can have more than a twentieth of a core, whatever it writes."""
    pods, clock = Pods({"one": 1}), FakeClock(100.0)
    server = await asyncio.start_server(pods.serve, "127.0.0.1", 0)
    pods.port = server.sockets[0].getsockname()[1]

    def slowly(at: At, answer: Answer | NoAnswer) -> Page | NoReading:
        ends_s = thread_time() + 0.15
        while thread_time() < ends_s:
            pass
        return page_of(at, answer)

    scraper = EngineScraper(clock=clock, random=Random(7), read=slowly)
    running = asyncio.create_task(scraper.run())
    scraper.expect(SERVICE, pods.places())
    await until(lambda: isinstance(scraper.look(SERVICE, "one"), Look), "the first look")
    while pods.asked["one"] < 2:
        clock.at_s += 0.2
        await asyncio.sleep(0.06)  # the scraper looks every 50 ms whose turn it is
    assert clock.at_s > 102.5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    server.close()


async def test_pods_are_not_all_asked_at_the_same_moment(scraped: Scraped) -> None:
    """A tenth of a second around their time each; the network sees a flow, not a wave."""
    scraped.pods.waiting = {f"pod-{n}": 1 for n in range(50)}
    scraped.expect()
    await until(lambda: len(scraped.pods.asked) == 50, "the first looks")
    await until(lambda: all(scraped.waiting(pod) for pod in scraped.pods.waiting), "the answers")
    before = scraped.pods.asked.total()
    scraped.clock.at_s += 1.0
    await until(lambda: scraped.pods.asked.total() > before, "the first ones")
    await asyncio.sleep(0.12)  # two of the scraper's rounds
    assert 10 < scraped.pods.asked.total() - before < 40


def test_connections_leave_files_to_the_rest_of_the_process() -> None:
    """Whatever the system allows, kept ones and scrapes together are less than all of them."""
    for files in (256, 1024, 20_000, 1 << 20):
        room = Room.of(files)
        assert 0 < room.kept + room.at_once + room.tried_at_once < files
    assert Room.of(1024) == Room(kept=512, at_once=128, tried_at_once=256)
    assert Room.of(resource.RLIM_INFINITY) == Room.of(1 << 20)
