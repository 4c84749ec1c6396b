# SPDX-License-Identifier: Apache-2.0
"""Metrics of model servers: what is recognised, how it is summed, and every way a scrape fails."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.adapters.engines.asking import EngineMetrics
from autoscaler.adapters.engines.growth import SERIES_MOST, Growth, Look, followed_up
from autoscaler.adapters.engines.page import SCRAPE_MAX_BYTES, Page, read_page, recognised
from autoscaler.adapters.engines.table import ENGINES, Engine
from autoscaler.adapters.plain_http import At
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId
from serving import exposition
from serving.telemetry import ModelCounts, Telemetry
from tests.adapters.builders import a_service_id
from tests.fakes import FakeClock

SAMPLES = Path(
    os.environ.get("TIDEGATE_METRICS_SAMPLES")
    or Path(__file__).parents[3] / "shared" / "data" / "metrics"
)

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


IN, WAITS, CAME, SPENT = (
    Measure.IN_FLIGHT,
    Measure.WAITING,
    Measure.REQUESTS_TOTAL,
    Measure.REQUEST_SECONDS_TOTAL,
)
TOKENS, PROMPTS, KV = Measure.TOKENS_TOTAL, Measure.PROMPT_TOKENS_TOTAL, Measure.KV_USED


def told(page: str) -> tuple[str, dict[Measure, float]]:
    """The engine, and what it tells."""
    read = read_page(page)
    assert isinstance(read, Page), read
    sums = {measure: read.total(measure) for measure in Measure}
    return read.engine.name, {
        measure: value for measure, value in sums.items() if value is not None
    }


@pytest.mark.parametrize(
    ("page", "engine", "tells"),
    [
        pytest.param(
            "# HELP tidegate_worker_queue_depth Requests.\n"
            "# TYPE tidegate_worker_queue_depth gauge\n"
            'tidegate_worker_queue_depth{model="a"} 2\n'
            'tidegate_worker_queue_depth{model="b"} 3.0\n'
            'tidegate_worker_requests_in_flight{model="a"} 4\n'
            'tidegate_worker_requests_in_flight{model="b"} 4\n'
            'tidegate_worker_requests_arrived_total{model="a"} 70\n'
            'tidegate_worker_request_seconds_total{model="a"} 12.5\n'
            'nv_inference_request_success{model="a",version="1"} 66\n'
            'nv_inference_pending_request_count{model="a",version="1"} 2\n',
            "tidegate worker",
            {IN: 8, WAITS: 5, CAME: 70, SPENT: 12.5},
            id="the bundled worker, summed over its models, whatever else it exposes",
        ),
        pytest.param(
            'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
            'vllm:num_requests_running{engine="1",model_name="m"} 4.0\n'
            'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
            'vllm:num_requests_waiting{engine="1",model_name="m"} 1.0\n'
            'vllm:num_requests_waiting_by_reason{reason="capacity"} 9.0\n'
            'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 7.0\n'
            'vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 1.0\n'
            'vllm:generation_tokens_total{engine="0",model_name="m"} 10.0\n'
            'vllm:generation_tokens_total{engine="1",model_name="m"} 5.0\n'
            'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
            'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25\n',
            "vLLM",
            {IN: 10, WAITS: 3, CAME: 8, TOKENS: 15, KV: 0.375},
            id="vLLM, summed over its data-parallel engines, and the mean of their KV use",
        ),
        pytest.param(
            'sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 6\n'
            'sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 6\n'
            'sglang:num_queue_reqs{dp_rank="0",tp_rank="0"} 4\n'
            'sglang:num_queue_reqs{dp_rank="0",tp_rank="1"} 4\n'
            'sglang:num_queue_reqs{dp_rank="1",tp_rank="0"} 1\n'
            'sglang:e2e_request_latency_seconds_count{is_streaming="true"} 3\n'
            'sglang:e2e_request_latency_seconds_count{is_streaming="false"} 2\n'
            'sglang:generation_tokens_total{model_name="m"} 7.557572e+06\n',
            "SGLang",
            {IN: 11, WAITS: 5, CAME: 5, TOKENS: 7557572},
            id="SGLang, tensor-parallel ranks counted once",
        ),
        pytest.param(
            'sglang:num_running_reqs{tp_rank="0"} 0\nsglang:num_queue_reqs{tp_rank="0"} 0\n',
            "SGLang",
            {IN: 0, WAITS: 0, CAME: 0, TOKENS: 0, PROMPTS: 0},
            id="SGLang before its first request: totals are not exposed yet",
        ),
        pytest.param(
            'sglang:num_running_reqs{priority=""} 5\n'
            'sglang:num_running_reqs{priority="1"} 2\n'
            'sglang:num_running_reqs{priority="9"} 3\n'
            'sglang:num_queue_reqs{priority=""} 1\n'
            "sglang:num_decode_transfer_queue_reqs 4\n"
            "sglang:num_requests_total 8\nsglang:e2e_request_latency_seconds_count 7\n",
            "SGLang",
            {IN: 10, WAITS: 1, CAME: 8},
            id="SGLang, a whole and its parts by priority, and what is on its way",
        ),
        pytest.param(
            "tgi_batch_current_size 5\ntgi_queue_size 3\ntgi_request_count 150\n"
            'tgi_request_generated_tokens_bucket{le="50"} 5\n'
            "tgi_request_generated_tokens_sum 95\ntgi_request_generated_tokens_count 5\n",
            "TGI",
            {IN: 8, WAITS: 3, CAME: 150, TOKENS: 95},
            id="TGI, tokens as the sum of a histogram",
        ),
        pytest.param(
            "tgi_batch_current_size 0\ntgi_queue_size 0\ntgi_request_generated_tokens_sum 95\n",
            "TGI",
            {IN: 0, WAITS: 0, TOKENS: 95},
            id="a total that is missing beside another one is not 0",
        ),
        pytest.param(
            "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"
            "llamacpp:prompt_tokens_total 9\nllamacpp:tokens_predicted_total 64\n",
            "llama.cpp",
            {IN: 3, WAITS: 1, TOKENS: 64, PROMPTS: 9},
            id="llama.cpp, which counts no requests",
        ),
        pytest.param(
            'nv_inference_request_success{model="m",version="1"} 40\n'
            'nv_inference_request_failure{model="m",reason="OTHER",version="1"} 2\n'
            'nv_inference_request_duration_us{model="m",version="1"} 1e6\n'
            'nv_inference_pending_request_count{model="m",version="1"} 3\n',
            "Triton",
            {WAITS: 3, CAME: 42},
            id="Triton, which does not tell what runs",
        ),
        pytest.param(
            'request_preprocess_seconds_count{model_name="m"} 7.0\n'
            'request_predict_seconds_bucket{le="0.005",model_name="m"} 1.0\n'
            'request_predict_seconds_count{model_name="m"} 7.0\n'
            'request_predict_seconds_sum{model_name="m"} 0.5\n',
            "KServe's Python server",
            {CAME: 7},
            id="KServe's Python server, which tells what ended",
        ),
        pytest.param(
            "vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"
            "vllm:num_requests_swapped 4\nvllm:gpu_cache_usage_perc 0.75\n",
            "vLLM",
            {IN: 7, WAITS: 2, KV: 0.75},
            id="vLLM V0, whose swapped requests neither run nor wait",
        ),
        pytest.param(
            'num_requests_running{model_name="m"} 2\nnum_requests_waiting{model_name="m"} 1\n'
            'request_success_total{model_name="m"} 5\nrequest_failure_total{model_name="m"} 1\n'
            'gpu_cache_usage_perc{model_name="m"} 0.5\n',
            "NIM",
            {IN: 3, WAITS: 1, CAME: 6, KV: 0.5},
            id="NIM, which can prove that it is idle",
        ),
        pytest.param(
            'trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 2\n'
            'trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 0\n'
            'trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.5\n',
            "trtllm-serve",
            {IN: 2, WAITS: 0, CAME: 0, TOKENS: 0, PROMPTS: 0, KV: 0.5},
            id="trtllm-serve before its first request has ended",
        ),
        pytest.param(
            'trtllm_request_success_total{finished_reason="stop",model_name="m"} 4\n'
            'trtllm_kv_cache_utilization{model_name="m"} 0.5\n',
            "trtllm-serve",
            {CAME: 4, KV: 0.5},
            id="an older trtllm-serve, which cannot prove that it is idle",
        ),
        pytest.param(
            'nv_trt_llm_request_metrics{model="m",request_type="active"} 5\n'
            'nv_trt_llm_request_metrics{model="m",request_type="scheduled"} 3\n',
            "Triton with TensorRT-LLM",
            {IN: 5, WAITS: 2},
            id="an older TensorRT-LLM backend, where who is not scheduled waits",
        ),
        pytest.param(
            'ray_serve_deployment_queued_queries{deployment="d"} 4\n'
            'ray_serve_deployment_request_counter{deployment="d"} 9\n'
            'ray_serve_deployment_request_counter_total{deployment="d"} 9\n'
            'ray_serve_replica_processing_queries{deployment="d"} 0\n',
            "Ray Serve",
            {WAITS: 4, CAME: 9},
            id="Ray Serve, which hears of its replicas too late to prove that nothing runs",
        ),
        pytest.param(
            'ts_inference_requests_total{model_name="m",} 3.0\n',
            "TorchServe",
            {CAME: 3},
            id="TorchServe, which does not tell what runs",
        ),
    ],
)
def test_an_engine_is_recognised_by_what_it_exposes(
    page: str, engine: str, tells: dict[Measure, float]
) -> None:
    """What is in it, what waits of that, what came, and how long that took, where it tells."""
    assert told(page) == (engine, tells)


@pytest.mark.parametrize(
    ("sample", "engine", "tells"),
    [
        pytest.param(
            "vllm_v0_real",
            "vLLM",
            {IN: 8, WAITS: 5, CAME: 6, TOKENS: 2546, PROMPTS: 90, KV: 0.0026235242675994863},
            id="vLLM V0",
        ),
        pytest.param(
            "sglang_v04_real_doc",
            "SGLang",
            {IN: 2988, WAITS: 2826, CAME: 11228, TOKENS: 7557572, PROMPTS: 8128902, KV: 0.28},
            id="SGLang 0.4, overloaded",
        ),
        pytest.param(
            "tgi_llmtop_fixture",
            "TGI",
            {IN: 8, WAITS: 3, CAME: 150, TOKENS: 12500, PROMPTS: 18000},
            id="TGI",
        ),
        pytest.param(
            "llamacpp_2025_real",
            "llama.cpp",
            {IN: 0, WAITS: 0, TOKENS: 3469, PROMPTS: 6886, KV: 0.491063},
            id="llama.cpp of 2025",
        ),
        pytest.param(
            "triton_trtllm_backend",
            "Triton with TensorRT-LLM",
            {IN: 2, WAITS: 1, KV: 0.4875},
            id="TensorRT",
        ),
        pytest.param("torchserve", "TorchServe", {CAME: 3}, id="TorchServe"),
    ],
)
def test_what_servers_really_expose_is_read(
    sample: str, engine: str, tells: dict[Measure, float]
) -> None:
    """Pages as they were taken from servers."""
    page = SAMPLES / f"{sample}.txt"
    if not page.exists():
        pytest.skip(f"{page} is not there: samples of servers' metrics are kept beside the project")
    assert told(page.read_text()) == (engine, tells)


def test_pages_of_other_programs_are_no_pages_of_an_engine() -> None:
    """Metrics of GPUs, or of a program that nobody knows, prove nothing."""
    for name in ("DCGM_FI_DEV_GPU_UTIL", "node_load1", "my_vllm:num_requests_running"):
        assert isinstance(read_page(f"{name} 1\n"), NoReading)


def test_a_label_that_tells_an_engine_is_a_whole_label() -> None:
    """Triton's vLLM has `version`; `model_version` could be anybody's."""
    assert told('vllm:num_requests_waiting{model_version="1"} 2\n')[0] == "vLLM"
    assert told('vllm:num_requests_waiting{model="m",version="1"} 2\n')[0] == "Triton with vLLM"


def test_an_engine_is_recognised_in_an_indented_page_too() -> None:
    """As one that somebody pasted."""
    assert told("  vllm:num_requests_waiting 2\n\tvllm:num_requests_running 1\n") == (
        "vLLM",
        {IN: 3, WAITS: 2},
    )


def test_the_bundled_worker_exposes_every_name_that_is_read_of_it() -> None:
    """Two packages that do not import one another agree on names."""
    [engine] = [engine for engine in ENGINES if engine.key == "tidegate"]
    page = exposition.text(Telemetry({"iris": ModelCounts()})).decode()
    assert told(page) == (engine.name, dict.fromkeys(engine.samples, 0.0))


def test_an_engine_is_known_by_the_names_of_its_own() -> None:
    """A page with any of its numbers is its page, unless one earlier in the table fits too."""
    for engine in ENGINES:
        labels = f'{{{engine.known_label}="1"}}' if engine.known_label else ""
        for known_by in engine.known_by:
            page = f"{known_by}something{labels} 1\n"
            assert recognised(page, among=[engine]) is engine


@pytest.mark.parametrize("value", [2.0**64 - 1, 9223372036854775794, "NaN", "+Inf", -1])
def test_a_number_that_stands_for_unknown_is_no_reading(value: float | str) -> None:
    """Programs that know nothing write the largest number they have; what else is told counts."""
    page = read_page(f"vllm:num_requests_waiting {value}\nvllm:kv_cache_usage_perc 0.5\n")
    assert isinstance(page, Page)
    assert isinstance(page.values[Measure.WAITING], NoReading)
    assert page.total(KV) == 0.5


def test_more_than_the_whole_is_no_part_of_it() -> None:
    """A percentage where a ratio is expected would look like a full cache for ever."""
    page = read_page("vllm:kv_cache_usage_perc 62\n")
    assert isinstance(page, Page)
    assert page.values[KV] == NoReading("vllm:kv_cache_usage_perc is 62, more than the whole")


def test_one_unknown_part_makes_the_sum_unknown() -> None:
    """Half of the engines' queues would look like a short queue."""
    page = read_page(
        'vllm:num_requests_waiting{engine="0"} 5\nvllm:num_requests_waiting{engine="1"} NaN\n'
    )
    assert isinstance(page, Page)
    assert page.values[WAITS] == NoReading("vllm:num_requests_waiting is nan")


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
        Measure.PROMPT_TOKENS_TOTAL: Reading(0.0, 100.0, "engine metrics"),
        Measure.KV_USED: Reading(0.0, 100.0, "engine metrics"),
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
        pytest.param(zips, "not the gzip that it says", id="compressed unasked"),
        pytest.param("", "no metric of a known engine", id="nothing"),
        pytest.param("<html>queue: 5</html>", "a web page, not", id="HTML"),
        pytest.param("tidegate_worker_queue_depth\n", "Prometheus' text format", id="no value"),
        pytest.param(f"{waits(7)}x", "cut off: it does not end with", id="cut off"),
        pytest.param("tidegate_worker_queue_depth many\n", "Prometheus' text", id="a word"),
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


def test_an_engine_that_makes_up_labels_all_the_time_fills_no_memory() -> None:
    """What is remembered of a replica is bounded, and what grows is told all the same."""
    growth = Growth()
    for look in range(20):
        counters = {frozenset({("s", f"{look}.{n}")}): 0.0 for n in range(SERIES_MOST // 4)}
        growth.add("one", {frozenset({("s", "lasts")}): float(look), **counters})
    assert len(growth.last["one"]) <= SERIES_MOST
    assert growth.total == 19


def an_engine(
    running: float = 0, waiting: float = 0, *, prompt: float = 0, predicted: float = 0
) -> Page:
    """One that counts no requests and totals no time."""
    page = read_page(
        f"llamacpp:requests_processing {running}\nllamacpp:requests_deferred {waiting}\n"
        f"llamacpp:prompt_tokens_total {prompt}\nllamacpp:tokens_predicted_total {predicted}\n"
    )
    assert isinstance(page, Page)
    return page


def followed(*pages: tuple[float, Page]) -> Look:
    """The last of several looks at one replica, each with its time."""
    look = None
    for at_s, page in pages:
        look = followed_up(page, at_s=at_s, before=look)
    assert look is not None
    return look


def test_time_that_an_engine_does_not_total_is_its_level_over_time() -> None:
    """From look to look, on the line between the two."""
    look = followed((10.0, an_engine(2, 1)), (11.0, an_engine(5)), (12.5, an_engine(5)))
    assert look.page.total(SPENT) == 4.0 + 7.5


def test_nobody_knows_the_level_of_a_time_without_looks() -> None:
    """A gap adds nothing, rather than a guess."""
    look = followed((10.0, an_engine(5)), (11.0, an_engine(5)), (60.0, an_engine(5)))
    assert look.page.total(SPENT) == 5.0


@pytest.mark.parametrize(
    ("pages", "came"),
    [
        pytest.param([an_engine(), an_engine()], 0, id="nothing came"),
        pytest.param(
            [an_engine(), an_engine(prompt=5)], 1, id="one came and went between two looks"
        ),
        pytest.param(
            [an_engine(prompt=7), an_engine(1, prompt=9), an_engine(1, prompt=9, predicted=50)],
            0,
            id="while one runs, what is in flight says so",
        ),
        pytest.param(
            [an_engine(prompt=7), an_engine(1, prompt=9), an_engine(prompt=9, predicted=90)],
            1,
            id="one was seen running, and is counted when it ends",
        ),
        pytest.param([an_engine(prompt=700), an_engine(prompt=3)], 1, id="it began anew"),
    ],
)
def test_a_request_that_no_counter_counts_is_told_by_what_it_stirs(
    pages: list[Page], came: float
) -> None:
    """Else one between two looks would be missed, and the service put to sleep."""
    look = followed(*enumerate(pages))
    assert look.page.total(CAME) == came


NUMBERS = st.sampled_from(
    ["NaN", "-1", "1e999", "+Inf", "0x1f", "1_0", "1 2", "18446744073709551615"]
)


@given(st.text() | NUMBERS, st.sampled_from(ENGINES), st.sampled_from(["", "{", '{a="b"} ', " "]))
def test_no_text_is_read_as_anything_but_finite_numbers(
    text: str, engine: Engine, between: str
) -> None:
    """Whatever a port that is no engine's may answer: a page of numbers, or no reading."""
    page = read_page(f"{text}\n{engine.lines[0].name}{between}{text}\n")
    if isinstance(page, Page):
        for measure in Measure:
            assert 0.0 <= (page.total(measure) or 0.0) < inf


async def test_kv_use_is_summed_over_the_replicas(scraped: Scraped) -> None:
    """With the share of those that tell: another engine beside does not."""
    measures = await scraped.look(
        one="vllm:kv_cache_usage_perc 0.5\n", two="vllm:kv_cache_usage_perc 0.75\n", three=""
    )
    assert measures[KV] == Reading(1.25, 100.0, "engine metrics", 2 / 3)


async def test_a_replica_that_missed_a_look_is_made_up_for(scraped: Scraped) -> None:
    """What it generated meanwhile is added once it answers again."""
    await scraped.look(one=vllm(tokens=10))
    missed = await scraped.look(one=refuses)
    assert isinstance(missed[Measure.TOKENS_TOTAL], NoReading)
    again = await scraped.look(one=vllm(tokens=50))
    assert again[Measure.TOKENS_TOTAL] == Reading(40.0, 100.0, "engine metrics")
