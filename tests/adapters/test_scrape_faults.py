# SPDX-License-Identifier: Apache-2.0
"""Whatever pods answer, over real sockets: no count falls by it, the reason is told, and it passes.

Counts fall at once here if anything lets them: no window, no tolerance, no limit stands between.
"""

import asyncio
import gzip
from random import Random

import pytest

from autoscaler.adapters.engines.page import SCRAPE_MAX_BYTES
from autoscaler.core.signals import NoReading, Signal
from tests.adapters.scraped_world import TICK_S, Answer, World, a_world, of, vllm
from tests.builders import A_SERVICE

NAMES = ("one", "two", "three", "four")


def says(answer: bytes) -> Answer:
    """A pod that answers so, byte for byte, and hangs up."""

    async def answers(writes: asyncio.StreamWriter) -> None:
        writes.write(answer)
        await writes.drain()
        writes.close()

    return answers


async def resets(writes: asyncio.StreamWriter) -> None:
    writes.transport.abort()


async def never_ends(writes: asyncio.StreamWriter) -> None:
    """A page of more and more lines, as fast as they are taken."""
    writes.write(b"HTTP/1.1 200 OK\r\n\r\n" + vllm(waiting=0).encode())
    while not writes.is_closing():
        writes.write(b"# more\n" * 10_000)
        await writes.drain()


async def drips(writes: asyncio.StreamWriter) -> None:
    """Always a little more to say, never the end."""
    writes.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + vllm(waiting=0).encode())
    while not writes.is_closing():
        writes.write(b"# more\n")
        await writes.drain()
        await asyncio.sleep(0.05)


async def heads_without_end(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\n")
    while not writes.is_closing():
        writes.write(b"X-More: more\r\n" * 1_000)
        await writes.drain()


CALM = vllm(waiting=0)  # what would let the count fall, if it were believed
BOMB = gzip.compress(CALM.encode() + b"# 0\n" * 10_000_000)
GZIP = "Content-Encoding: gzip\r\n"

FAULTS = [
    pytest.param(says(of("", status="500 Oh")), "answered 500", id="an error"),
    pytest.param(
        says(of("loading model", status="503 Service Unavailable")),
        "answered 503: it is not ready",
        id="a server that is not ready",
    ),
    pytest.param(says(of("", status="401 No")), "answered 401: it wants credentials", id="401"),
    pytest.param(says(of("", status="403 No")), "answered 403: it lets nobody in", id="403"),
    pytest.param(says(of("", status="404 No")), "answered 404: no metrics there", id="404"),
    pytest.param(
        says(of("<a>here</a>", status="302 Found", head="Location: http://192.0.2.1/login\r\n")),
        "answered 302: redirections are not followed to http://192.0.2.1/login",
        id="a redirection",
    ),
    pytest.param(
        says(of("<!DOCTYPE html><p>Sign in", head="Content-Type: text/html\r\n")),
        "answered with a web page, not with metrics",
        id="HTML instead of metrics",
    ),
    pytest.param(
        says(of("Client sent an HTTP request to an HTTPS server.\n", status="400 Bad Request")),
        "it speaks TLS there",
        id="a TLS port that says so in HTTP",
    ),
    pytest.param(says(b"\x15\x03\x03\x00\x02\x02\x46"), "it speaks TLS", id="a TLS port"),
    pytest.param(resets, "failed: ", id="a connection that is reset"),
    pytest.param(says(b""), "so does a port that speaks TLS", id="no answer"),
    pytest.param(says(b"\xff\xfe\x00 what?\r\n\r\n"), "what came is not HTTP", id="not HTTP"),
    pytest.param(says(of(CALM)[:-9]), "broke off", id="a truncated body"),
    pytest.param(
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n" + CALM[:64].encode()),
        "broke off",
        id="a truncated body in chunks",
    ),
    pytest.param(
        says(b"HTTP/1.1 200 OK\r\n\r\n" + CALM[:-9].encode()), "", id="a cut page without a length"
    ),
    pytest.param(never_ends, f"more than {SCRAPE_MAX_BYTES} bytes", id="an endless body"),
    pytest.param(heads_without_end, f"more than {SCRAPE_MAX_BYTES} bytes", id="an endless head"),
    pytest.param(drips, "was not answered within 2.5s", id="a body that drips"),
    pytest.param(
        says(of(BOMB, head=GZIP)),
        f"more than {SCRAPE_MAX_BYTES} bytes came out of its gzip",
        id="a gzip bomb",
    ),
    pytest.param(
        says(of(gzip.compress(CALM.encode())[:-12], head=GZIP)),
        "its gzip broke off",
        id="a truncated gzip",
    ),
    pytest.param(says(of(CALM, head=GZIP)), "not the gzip that it says", id="gzip that is none"),
    pytest.param(
        says(of(CALM, head="Content-Encoding: br\r\n")), "encoded as br", id="another compression"
    ),
    pytest.param("", "no metric of a known engine", id="an empty page"),
    pytest.param(says(of(b"\x00\x01\x02" * 999)), "", id="binary"),
    pytest.param(CALM.replace(" 0\n", " many\n"), "", id="a word for a number"),
]

NONSENSE = [
    pytest.param("NaN", id="NaN"),
    pytest.param("+Inf", id="+Inf"),
    pytest.param("-Inf", id="-Inf"),
    pytest.param("-3", id="negative"),
    pytest.param("18446744073709551615", id="2^64-1"),
    pytest.param("9223372036854775794", id="2^63-14"),
]


async def settled(world: World) -> None:
    await world.ticks(3)
    assert world.counts == [], "calm before the fault"


async def recovers(world: World) -> None:
    """Once all pods answer well again they are believed."""
    for pod in world.pods.answers:
        world.pods.answers[pod] = vllm(waiting=6)
    await world.until_all_answer()
    await world.ticks(3)
    assert world.scale == 12
    assert world.demand.health().why is None


async def test_a_count_falls_when_all_pods_say_that_it_may() -> None:
    """What the other tests here show not to happen would happen."""
    async with a_world(dict.fromkeys(NAMES, vllm())) as world:
        await settled(world)
        world.pods.answers = dict.fromkeys(NAMES, CALM)
        await world.ticks(4)
        assert world.scale == 1


@pytest.mark.parametrize(("fault", "why"), FAULTS)
async def test_no_count_falls_by_a_failed_scrape(fault: Answer, why: str) -> None:
    """Half of the pods fail: the loop goes on, the reason is told, and then they are believed."""
    async with a_world(dict.fromkeys(NAMES, vllm())) as world:
        await settled(world)
        for pod in NAMES[:2]:
            world.pods.answers[pod] = fault
        await world.ticks(2)
        assert world.counts == []
        assert why in world.why("one")
        assert world.why("one").startswith("one: http://127.0.0.1:")
        assert why in str(world.demand.health().why)
        await recovers(world)


async def test_no_count_falls_when_no_pod_answers_any_more() -> None:
    """And the loop says why it holds the count."""
    async with a_world(dict.fromkeys(NAMES, vllm())) as world:
        await settled(world)
        world.pods.answers = dict.fromkeys(NAMES, resets)
        await world.ticks(3)
        assert world.counts == []
        assert "D1 hold 4: queue not fully read" in world.last.because
        await recovers(world)


@pytest.mark.parametrize("number", NONSENSE)
async def test_no_count_moves_by_a_level_that_cannot_be(number: str) -> None:
    """Not down, as if it were nothing, and not up, as if it were much."""
    async with a_world(dict.fromkeys(NAMES, vllm())) as world:
        await settled(world)
        world.pods.answers["one"] = vllm(waiting=number)
        await world.ticks(3)
        assert world.counts == []
        assert world.last.current == world.last.replicas == 4
        assert "D1 hold 4" in str(world.last.because)
        await recovers(world)


async def counting(world: World, *, ticks: int, first: int, one: str | None = None) -> None:
    """Each pod generates ten tokens a tick; `one`: what the first pod shows instead."""
    for tokens in range(first, first + 10 * ticks, 10):
        world.pods.answers = dict.fromkeys(NAMES, vllm(tokens=tokens))
        if one is not None:
            world.pods.answers["one"] = vllm(tokens=one)
        await world.ticks(1)


TEN_A_TICK = {Signal.TOKENS_PER_S: 12 / TICK_S}  # of twelve that a replica may carry


@pytest.mark.parametrize("number", NONSENSE)
async def test_no_count_moves_by_a_counter_that_cannot_be(number: str) -> None:
    """Neither when it comes nor when the counter is itself again."""
    async with a_world(dict.fromkeys(NAMES, vllm()), targets=TEN_A_TICK) as world:
        await counting(world, ticks=5, first=7000)
        await counting(world, ticks=2, first=7050, one=number)
        await counting(world, ticks=4, first=7070)
        assert world.counts == []


async def test_a_counter_that_begins_anew_has_grown_by_what_it_shows() -> None:
    """An engine that restarts in its pod: the count neither falls nor jumps."""
    async with a_world(dict.fromkeys(NAMES, vllm()), targets=TEN_A_TICK) as world:
        await counting(world, ticks=5, first=7000)
        await counting(world, ticks=5, first=10)
        assert world.counts == []


async def test_no_count_falls_while_30_of_100_scrapes_fail() -> None:
    """200 pods, each scrape failing at random in another way: what is not read is not zero."""
    random = Random(11)
    faults = [says(of("", status="500 Oh")), resets, says(of(CALM)[:-9]), vllm(waiting="NaN")]
    well = vllm()

    async def at_random(writes: asyncio.StreamWriter) -> None:
        answer = random.choice(faults) if random.random() < 0.3 else well
        if isinstance(answer, str):
            writes.write(of(answer))
        else:
            await answer(writes)

    async with a_world({f"pod-{n}": at_random for n in range(200)}) as world:
        await world.ticks(12)
        health = world.demand.health()
        assert health.failed > 0.15 * health.asked
        assert world.counts == []
        world.pods.answers = dict.fromkeys(world.pods.answers, well)
        await world.until_all_answer()
        await world.ticks(4)
        assert world.counts == []


async def test_a_scrape_that_failed_once_does_not_lower_the_mean_afterwards() -> None:
    """The window still holds what only some of the pods said, when all of them speak again."""
    async with a_world(dict.fromkeys(NAMES, vllm())) as world:
        await settled(world)
        for _ in range(3):
            world.pods.answers = {**dict.fromkeys(NAMES, vllm()), "one": resets}
            await world.ticks(1)
            world.pods.answers = dict.fromkeys(NAMES, vllm())
            await world.ticks(1)
        await world.ticks(2)
        assert world.counts == []


async def test_a_pod_that_is_gone_leaves_nothing_behind() -> None:
    """What it had waiting is over with it: three replicas with two waiting in each are enough."""
    async with a_world(dict.fromkeys(NAMES, vllm(waiting=2))) as world:
        await settled(world)
        gone = world.pods.places()["four"]
        world.pods.answers["four"] = resets
        await world.ticks(1)
        assert str(gone) in str(world.demand.health().why)
        del world.pods.answers["four"]
        await world.ticks(4)
        assert world.scale == 3
        assert world.scraper.look(A_SERVICE, "four") == NoReading("four: not asked yet")
        assert world.demand.health().why is None
