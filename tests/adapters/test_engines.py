# SPDX-License-Identifier: Apache-2.0
"""Metrics of model servers: what is recognised, how it is summed, and every way a scrape fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from autoscaler.adapters.engines.asking import EngineMetrics
from autoscaler.adapters.engines.growth import Growth
from autoscaler.adapters.engines.page import SCRAPE_MAX_BYTES, Page, read_page
from autoscaler.adapters.engines.table import ENGINES
from autoscaler.adapters.plain_http import At
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId
from tests.adapters.builders import a_service_id
from tests.fakes import FakeClock

Answer = str | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Replicas:
    """Servers of metrics on one port: each replica is a path, and answers as the test says."""

    answers: dict[str, Answer] = field(default_factory=dict)
    port: int = 0

    async def serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        request = await reads.readuntil(b"\r\n\r\n")
        answer = self.answers[request.split()[1].decode().lstrip("/")]
        try:
            if isinstance(answer, str):
                writes.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + answer.encode())
            else:
                await answer(writes)
            await writes.drain()
        except ConnectionError:
            return
        finally:
            writes.close()

    def places(self) -> dict[ServiceId, dict[str, At]]:
        return {
            a_service_id(): {name: At("127.0.0.1", self.port, f"/{name}") for name in self.answers}
        }


@dataclass
class Scraped:
    """A source, the replicas it asks, and one question to it."""

    source: EngineMetrics
    replicas: Replicas
    clock: FakeClock

    async def look(self, **answers: Answer) -> Measures:
        self.replicas.answers = answers
        return (await self.source.measure([a_service_id()]))[a_service_id()]


@pytest.fixture
async def scraped() -> AsyncIterator[Scraped]:
    replicas, clock = Replicas(), FakeClock(100.0)
    server = await asyncio.start_server(replicas.serve, "127.0.0.1", 0)
    replicas.port = server.sockets[0].getsockname()[1]
    source = EngineMetrics(replicas.places, clock=clock)
    yield Scraped(source, replicas, clock)
    server.close()


def vllm(waiting: float | str = 0, tokens: float | str = 0) -> str:
    return f"vllm:num_requests_waiting {waiting}\nvllm:generation_tokens_total {tokens}\n"


def waits(queued: float) -> str:
    return f'tidegate_worker_queue_depth{{model="iris"}} {queued}\n'


@pytest.mark.parametrize(
    ("page", "engine", "waiting", "tokens"),
    [
        pytest.param(
            "# HELP tidegate_worker_queue_depth Requests.\n"
            "# TYPE tidegate_worker_queue_depth gauge\n"
            'tidegate_worker_queue_depth{model="a"} 2\n'
            'tidegate_worker_queue_depth{model="b"} 3.0\n',
            "tidegate worker",
            5.0,
            None,
            id="the bundled worker, summed over its models",
        ),
        pytest.param(
            'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
            'vllm:num_requests_waiting{engine="1",model_name="m"} 1.0\n'
            'vllm:num_requests_waiting_by_reason{reason="capacity"} 9.0\n'
            'vllm:generation_tokens_total{engine="0",model_name="m"} 10.0\n'
            'vllm:generation_tokens_total{engine="1",model_name="m"} 5.0\n',
            "vLLM",
            3.0,
            15.0,
            id="vLLM, summed over its data-parallel engines",
        ),
        pytest.param(
            'sglang:num_queue_reqs{dp_rank="0",tp_rank="0"} 4\n'
            'sglang:num_queue_reqs{dp_rank="0",tp_rank="1"} 4\n'
            'sglang:num_queue_reqs{dp_rank="1",tp_rank="0"} 1\n'
            'sglang:generation_tokens_total{model_name="m"} 7.557572e+06\n',
            "SGLang",
            5.0,
            7557572.0,
            id="SGLang, tensor-parallel ranks counted once",
        ),
        pytest.param(
            "tgi_queue_size 3\n"
            'tgi_request_generated_tokens_bucket{le="50"} 5\n'
            "tgi_request_generated_tokens_sum 95\ntgi_request_generated_tokens_count 5\n",
            "TGI",
            3.0,
            95.0,
            id="TGI, tokens as the sum of a histogram",
        ),
        pytest.param(
            "llamacpp:requests_deferred 1\nllamacpp:tokens_predicted_total 64\n",
            "llama.cpp",
            1.0,
            64.0,
            id="llama.cpp",
        ),
    ],
)
def test_an_engine_is_recognised_by_what_it_exposes(
    page: str, engine: str, waiting: float, tokens: float | None
) -> None:
    """Its queue, and its tokens where it counts them."""
    read = read_page(page)
    assert isinstance(read, Page)
    assert read.engine.name == engine
    totals = {
        measure: sum(series.values())
        for measure, series in read.values.items()
        if not isinstance(series, NoReading)
    }
    expected = {Measure.WAITING: waiting, Measure.TOKENS_TOTAL: tokens}
    assert totals == {measure: value for measure, value in expected.items() if value is not None}


def test_an_engine_is_known_by_the_names_of_its_own() -> None:
    """Else what is exposed could not tell them apart; `nv_inference_*` has more than one user."""
    for engine in ENGINES:
        if engine.name != "Triton with TensorRT-LLM":
            assert all(line.name.startswith(engine.known_by) for line in engine.lines)


async def test_a_service_is_the_sum_of_its_replicas(scraped: Scraped) -> None:
    """With the time of the look, and for all of them."""
    measures = await scraped.look(one=waits(2), two=waits(5))
    assert measures == {Measure.WAITING: Reading(7.0, 100.0, "engine metrics", 1.0)}


async def test_an_answer_may_come_in_chunks(scraped: Scraped) -> None:
    """Their sizes are no part of the page."""
    measures = await scraped.look(one=chunks)
    assert measures[Measure.WAITING] == Reading(42.0, 100.0, "engine metrics", 1.0)


async def test_a_service_without_metrics_is_left_out(scraped: Scraped) -> None:
    """This source does not speak of it."""
    scraped.replicas.answers = {"one": waits(1)}
    other = a_service_id("other")
    assert set(await scraped.source.measure([other, a_service_id()])) == {a_service_id()}
    assert await scraped.source.measure([other]) == {}


async def test_a_service_that_was_never_up_says_nothing(scraped: Scraped) -> None:
    """Which engine it has is not known before a first answer."""
    assert await scraped.look() == {}


async def test_nothing_waits_in_a_service_without_replicas(scraped: Scraped) -> None:
    """That is known, not missing: a service at zero has an empty queue and its old total."""
    await scraped.look(one=vllm(waiting=3, tokens=10))
    await scraped.look(one=vllm(waiting=3, tokens=25))
    asleep = await scraped.look()
    assert asleep == {
        Measure.WAITING: Reading(0.0, 100.0, "engine metrics"),
        Measure.TOKENS_TOTAL: Reading(15.0, 100.0, "engine metrics"),
    }


async def hangs(writes: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def drips(writes: asyncio.StreamWriter) -> None:
    """Ends never, but always has a little more to say."""
    writes.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writes.write(b"# more\n")
        await writes.drain()
        await asyncio.sleep(0.05)


async def floods(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\n\r\n" + waits(1).encode())
    while True:
        writes.write(b"# more\n" * 10_000)
        await writes.drain()


async def refuses(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")


async def redirects(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n")


async def hangs_up(writes: asyncio.StreamWriter) -> None:
    writes.transport.abort()


async def babbles(writes: asyncio.StreamWriter) -> None:
    writes.write(b"\xff\xfe\x00 what?\r\n\r\n")


async def breaks_off(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + waits(1).encode())


async def chunks(writes: asyncio.StreamWriter) -> None:
    """In pieces that end in the middle of a line, as servers without a length send it."""
    writes.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b"tidegate_worker_queue_", b"depth 4", b"2\n"):
        writes.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    writes.write(b"0\r\n\r\n")


async def zips(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(hangs, "was not answered within 1s", id="no answer"),
        pytest.param(drips, "was not answered within 1s", id="an answer without end, slowly"),
        pytest.param(floods, f"more than {SCRAPE_MAX_BYTES} bytes", id="an answer without end"),
        pytest.param(breaks_off, "broke off", id="the connection breaks in the middle"),
        pytest.param(refuses, "answered 500", id="an error of the server"),
        pytest.param(redirects, "answered 302", id="a redirection is not followed"),
        pytest.param(hangs_up, "failed: ", id="the connection breaks"),
        pytest.param(babbles, "failed: ", id="not HTTP"),
        pytest.param(zips, "no metric of a known engine", id="compressed unasked"),
        pytest.param("", "no metric of a known engine", id="nothing"),
        pytest.param("<html>queue: 5</html>", "no metric of a known engine", id="HTML"),
        pytest.param("tidegate_worker_queue_depth", "Prometheus' text format", id="no value"),
        pytest.param('tidegate_worker_queue_depth{a="b 1', "Prometheus' text format", id="cut off"),
        pytest.param("tidegate_worker_queue_depth many", "Prometheus' text format", id="a word"),
        pytest.param(waits(float("nan")), "queue_depth is nan", id="NaN"),
        pytest.param(waits(float("inf")), "queue_depth is inf", id="infinity"),
        pytest.param(waits(-1) + waits(5), "queue_depth is -1", id="negative"),
    ],
)
async def test_a_failed_scrape_is_no_reading(scraped: Scraped, answer: Answer, why: str) -> None:
    """Never 0 (rule D1), with the replica and the reason; once it answers again it counts again."""
    first = await scraped.look(broken=answer)
    waiting = first[Measure.WAITING]
    assert isinstance(waiting, NoReading)
    assert waiting.why.startswith("broken: ")
    assert why in waiting.why

    partly = await scraped.look(broken=answer, sound=waits(4))
    assert partly[Measure.WAITING] == Reading(4.0, 100.0, "engine metrics", 0.5)

    mended = await scraped.look(broken=waits(1), sound=waits(4))
    assert mended[Measure.WAITING] == Reading(5.0, 100.0, "engine metrics", 1.0)


async def test_a_replica_that_does_not_listen_is_no_reading(scraped: Scraped) -> None:
    """As one that is gone between the look at the routes and the scrape."""
    scraped.replicas.port = 1
    measures = await scraped.look(gone="")
    assert isinstance(measures[Measure.WAITING], NoReading)


async def test_a_measure_that_stopped_being_exposed_is_no_reading(scraped: Scraped) -> None:
    """The other measures of the same page still count."""
    await scraped.look(one=vllm(waiting=1, tokens=5))
    measures = await scraped.look(one="vllm:num_requests_waiting 2\n")
    assert measures[Measure.WAITING] == Reading(2.0, 100.0, "engine metrics")
    assert measures[Measure.TOKENS_TOTAL] == NoReading(
        "one: vllm:generation_tokens_total is not exposed"
    )


async def test_all_replicas_are_asked_at_once(scraped: Scraped) -> None:
    """None answers before all have been asked, and still all are heard in time."""
    everyone = asyncio.Barrier(20)

    async def together(writes: asyncio.StreamWriter) -> None:
        await everyone.wait()
        writes.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + waits(1).encode())

    measures = await scraped.look(**{f"r{n}": together for n in range(20)})
    assert measures[Measure.WAITING] == Reading(20.0, 100.0, "engine metrics", 1.0)


@pytest.mark.parametrize(
    ("looks", "total"),
    [
        pytest.param([{"one": {"a": 100}}], 0, id="the first sight adds nothing"),
        pytest.param([{"one": {"a": 100}}, {"one": {"a": 130}}], 30, id="then its increase"),
        pytest.param([{"one": {"a": 100}}, {"one": {"a": 7}}], 7, id="a restart begins at 0"),
        pytest.param(
            [{"one": {"a": 5}}, {"one": {"a": 5, "b": 3}}], 3, id="a new series of a known replica"
        ),
        pytest.param(
            [{"one": {"a": 5, "b": 9}}, {"one": {"a": 6}}, {"one": {"a": 6, "b": 11}}],
            3,
            id="a series that was away",
        ),
        pytest.param(
            [{"one": {"a": 5}}, {"one": {"a": 9}}, {}, {"two": {"a": 50}}, {"two": {"a": 51}}],
            5,
            id="replicas that go and come",
        ),
    ],
)
def test_a_total_never_falls(looks: list[dict[str, dict[str, float]]], total: float) -> None:
    """Whatever restarts, comes or goes, only real increases are added."""
    growth, before = Growth(), 0.0
    for look in looks:
        growth.forget_all_but(look)
        for replica, counters in look.items():
            growth.add(replica, {frozenset({("s", s)}): v for s, v in counters.items()})
        assert growth.total >= before
        before = growth.total
    assert growth.total == total


async def test_a_replica_that_missed_a_look_is_made_up_for(scraped: Scraped) -> None:
    """What it generated meanwhile is added once it answers again."""
    await scraped.look(one=vllm(tokens=10))
    missed = await scraped.look(one=refuses)
    assert isinstance(missed[Measure.TOKENS_TOTAL], NoReading)
    again = await scraped.look(one=vllm(tokens=50))
    assert again[Measure.TOKENS_TOTAL] == Reading(40.0, 100.0, "engine metrics")
