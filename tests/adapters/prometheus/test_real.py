# SPDX-License-Identifier: Apache-2.0
"""Against a real Prometheus: what it says is read whole, and what it cannot say is no reading."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest

from autoscaler.core.signals import NoReading, Query, Reading, ServiceId, Signal
from autoscaler.errors import RetryLater
from tests.adapters.prometheus.real import WITHIN_S, Pages, RealPrometheus, page
from tests.adapters.prometheus.world import World, vllm

ASKED = (Signal.CONCURRENCY, Signal.QUEUE, Signal.RPS, Signal.TOKENS_PER_S)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    """The source asks in rounds, as it does in a controller."""
    rounds = asyncio.create_task(world.source.run())
    try:
        yield
    finally:
        rounds.cancel()
        with suppress(asyncio.CancelledError):
            await rounds


async def until(holds: Callable[[], Awaitable[object]], world: World) -> None:
    ends_s = time.monotonic() + WITHIN_S
    while not await holds():
        assert time.monotonic() < ends_s, (world.source.health(), await world.measures())
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_thousand_services_cost_one_query_a_signal(
    prometheus: RealPrometheus, pages: Pages
) -> None:
    """Every service gets its own numbers, and Prometheus has counted no more queries than that."""
    services = [ServiceId(f"many-{n % 7}", f"chat-{n}") for n in range(1000)]
    pods = {service: [f"{service.name}-{x}" for x in "ab"] for service in services}
    pages.text = page(
        line
        for n, service in enumerate(services)
        for pod in pods[service]
        for line in vllm(service, pod, running=n, waiting=1)
    )
    world = World(prometheus.url, pods, timeout_s=20.0, window_s=30.0)

    async def told() -> bool:
        await world.source.refresh()
        measures = await world.source.measure(services)
        return all(
            isinstance(of.get(signal), Reading) for of in measures.values() for signal in ASKED
        )

    await until(told, world)
    before = prometheus.queries_answered()
    await world.source.refresh()
    measures = await world.source.measure(services)
    answered = prometheus.queries_answered() - before
    world.client.close()
    assert answered <= len(Signal)
    for n, service in enumerate(services):
        concurrency, queue = (measures[service][s] for s in ASKED[:2])
        assert isinstance(concurrency, Reading)
        assert isinstance(queue, Reading)
        assert (concurrency.value, queue.value) == (2 * (n + 1), 2)
        assert concurrency.share_ratio == 1.0


async def test_levels_are_the_newest_and_rates_are_prometheus_own(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """Ten requests and a hundred tokens a second, three running and two waiting on each pod."""
    world = World(prometheus.url, {chat: ["chat-a", "chat-b"]})
    began_s = time.time()

    async def told() -> bool:
        served = (time.time() - began_s) * 5
        pages.text = page(
            line
            for pod in ("chat-a", "chat-b")
            for line in vllm(chat, pod, running=3, waiting=2, served=served, tokens=served * 10)
        )
        rate = await world.value(Signal.RPS)
        return rate is not None and rate == pytest.approx(10, rel=0.25)

    async with running(world):
        await until(told, world)
        assert await world.value(Signal.CONCURRENCY) == 10
        assert await world.value(Signal.QUEUE) == 4
        assert await world.value(Signal.TOKENS_PER_S) == pytest.approx(100, rel=0.25)


async def test_what_the_exporter_of_gpus_says_of_a_pod_is_the_pods(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """Under its renamed labels; two GPUs are averaged, a slice of one counts, a mark is nothing."""
    active, busy = "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_GPU_UTIL"

    def of(pod: str, uuid: str, **more: str) -> dict[str, str]:
        whose = {"exported_namespace": chat.namespace, "exported_pod": pod}
        return {**whose, "namespace": "gpu", "pod": "dcgm-7", "UUID": uuid, **more}

    pages.text = page(
        [
            (active, of("chat-a", "GPU-1"), 0.2),
            (active, of("chat-a", "GPU-2"), 0.6),
            (busy, of("chat-a", "GPU-1"), 99),
            (active, of("chat-b", "GPU-3", GPU_I_ID="5"), 0.5),
            (busy, of("chat-c", "GPU-4"), 30),
            (active, of("chat-d", "GPU-5"), 2.0**64 - 1),
        ]
    )
    world = World(prometheus.url, {chat: ["chat-a", "chat-b", "chat-c", "chat-d"]})
    async with running(world):
        await until(lambda: world.value(Signal.GPU_UTILIZATION), world)
        seen = await world.seen(Signal.GPU_UTILIZATION)
    assert isinstance(seen, Reading)
    assert seen.value == pytest.approx(0.4 + 0.5 + 0.3)
    assert seen.share_ratio == 0.75


async def test_engines_that_share_names_are_told_apart(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """An older vLLM counts what is swapped out; within Triton, what Triton itself holds back."""
    old, within = ({"namespace": chat.namespace, "pod": pod} for pod in ("chat-a", "chat-b"))
    triton = {**within, "version": "1", "model": "m"}
    pages.text = page(
        [
            ("vllm:num_requests_running", old, 1),
            ("vllm:num_requests_waiting", old, 2),
            ("vllm:num_requests_swapped", old, 4),
            ("vllm:num_requests_running", triton, 10),
            ("vllm:num_requests_waiting", triton, 20),
            ("nv_inference_pending_request_count", triton, 40),
        ]
    )
    world = World(prometheus.url, {chat: ["chat-a", "chat-b"]})
    async with running(world):
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        assert await world.value(Signal.CONCURRENCY) == 77


async def test_a_pod_that_is_scraped_twice_counts_once(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """As behind two Services: only what the scraping added to its labels differs."""
    labels = {"namespace": chat.namespace, "pod": "chat-a"}
    pages.text = page(
        (f"vllm:num_requests_{what}", {**labels, "service": by, "job": by}, 4)
        for by in ("one", "two")
        for what in ("running", "waiting")
    )
    world = World(prometheus.url, {chat: ["chat-a"]})
    async with running(world):
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        assert await world.value(Signal.CONCURRENCY) == 8


async def test_a_pod_that_is_not_there_lowers_the_share(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """One of two is known: enough to rise on, never to fall on."""
    pages.text = page(vllm(chat, "chat-a", running=3))
    world = World(prometheus.url, {chat: ["chat-a", "chat-b"]})
    async with running(world):
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        seen = await world.seen(Signal.CONCURRENCY)
    assert isinstance(seen, Reading)
    assert seen.share_ratio == 0.5


async def test_a_prometheus_that_is_stopped_is_no_reading_until_it_is_back(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """The state says that nobody listens there; the next round after its return reads again."""
    pages.text = page(vllm(chat, "chat-a", running=3))
    world = World(prometheus.url, {chat: ["chat-a"]})
    async with running(world):
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        prometheus.stop()
        await until(lambda: world.why(Signal.CONCURRENCY), world)
        assert "Connection refused" in await world.why(Signal.CONCURRENCY)
        assert "Connection refused" in str(world.source.health().why)
        prometheus.start()
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        assert world.source.health().why is None


async def test_a_prometheus_that_hangs_is_no_reading_until_it_goes_on(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """It accepts connections and answers nobody: a query ends by its time limit, a tick at once."""
    pages.text = page(vllm(chat, "chat-a", running=3))
    world = World(prometheus.url, {chat: ["chat-a"]}, timeout_s=0.5)
    async with running(world):
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        prometheus.freeze()
        await until(lambda: world.why(Signal.CONCURRENCY), world)
        assert "no answer in time" in await world.why(Signal.CONCURRENCY)
        prometheus.thaw()
        await until(lambda: world.value(Signal.CONCURRENCY), world)


async def test_a_series_that_ends_is_no_reading_though_its_rate_goes_on(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """A rate looks back over its window; the time of its newest sample tells that it has ended."""
    world = World(prometheus.url, {chat: ["chat-a"]}, window_s=60.0)
    began_s = time.time()

    async def told() -> bool:
        pages.text = page(vllm(chat, "chat-a", tokens=(time.time() - began_s) * 50))
        return bool(await world.value(Signal.TOKENS_PER_S))

    async with running(world):
        await until(told, world)
        pages.text = ""
        await until(lambda: world.why(Signal.TOKENS_PER_S), world)
        (rate,) = await world.client.query("sum(rate(vllm:generation_tokens_total[60s]))")
        assert rate.value > 0


@pytest.mark.parametrize(
    ("off_s", "words"), [(-200.0, "200 s old"), (60.0, "no series carries its name")]
)
async def test_samples_of_another_time_are_no_reading(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId, off_s: float, words: str
) -> None:
    """A target that stamps its samples by a clock that is minutes off, either way."""
    lines = list(vllm(chat, "chat-a", running=3))
    world = World(prometheus.url, {chat: ["chat-a"]}, stale_after_s=90.0)

    async def told() -> bool:
        pages.text = page(lines, at_s=time.time() + off_s)
        return words in (await world.why(Signal.CONCURRENCY)).replace("201", "200")

    async with running(world):
        await until(told, world)
        scraped = pages.scrapes
        await until(lambda: _after(pages, scraped + 3), world)
        assert await world.value(Signal.CONCURRENCY) is None


async def _tells(world: World, query: Query, wanted: float | str) -> bool:
    """Whether a query gives this value for the whole service, or no reading in these words."""
    seen = await world.seen(query)
    if isinstance(wanted, str):
        return isinstance(seen, NoReading) and wanted in seen.why
    return isinstance(seen, Reading) and (seen.value, seen.share_ratio) == (wanted, 1.0)


async def _past(world: World, service: ServiceId, signal: Signal) -> list[tuple[float, float]]:
    """The last minute; a Prometheus that has no time for it is asked again."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(RetryLater):
                told = await world.source.history([service], signal, window_s=60.0, step_s=5.0)
                return told[service]
            await asyncio.sleep(0.2)


async def _after(pages: Pages, scrapes: int) -> bool:
    return pages.scrapes >= scrapes


async def test_users_own_queries_are_asked_once_and_read_as_they_mean_it(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """A scalar or a sum is the service's; a series of each pod speaks for that pod."""
    pages.text = page(
        [
            ("depth", {"namespace": chat.namespace, "pod": "chat-a"}, 3),
            ("depth", {"namespace": chat.namespace, "pod": "chat-b"}, 4),
            ("depth", {"namespace": chat.namespace, "pod": "other-x"}, 50),
            ("depth", {"namespace": "else", "pod": "chat-a"}, 500),
            ("topic", {"queue": "a"}, 6),
            ("topic", {"queue": "b"}, 7),
            ("lonely", {"namespace": chat.namespace, "pod": "broker-0"}, 8),
            ("ingress", {"namespace": "edge", "pod": "nginx-0"}, 9),
        ]
    )
    expected: dict[str, float | str] = {
        "scalar(sum(depth))": 557,
        'sum(depth{namespace="$NAMESPACE", pod=~"$NAME-.+"})': 7,
        "depth": 7,
        'sum by (pod) (depth{namespace="$NAMESPACE"})': 7,
        "ingress": 9,
        "sum(lonely)": 8,
        "sum(absent)": "gives no series",
        "topic": "gave 2 series; aggregate it with sum()",
        "lonely": "one series of broker-0, which is none of the service's ready pods",
        "sum(depth": "Prometheus refuses the query: ",
        "-sum(topic)": "negative",
        "sum(topic) / 0": "inf",
        "topic[1m]": "a range such as x[1m]",
        'label_replace(vector(0), "a", "b", "", "") * NaN': "nan",
        '"words"': "a text",
    }
    queries = [Query(promql) for promql in expected]
    world = World(prometheus.url, {chat: ["chat-a", "chat-b"]}, *queries)
    async with running(world):
        await until(lambda: world.value(queries[0]), world)
        await until(lambda: world.value(queries[3]), world)
        for query in queries:
            wanted = expected[query.promql]
            await until(partial(_tells, world, query, wanted), world)
        assert "PromQL targets fail" in str(world.source.health().why)


async def test_the_last_minutes_can_be_had_after_a_restart(
    prometheus: RealPrometheus, pages: Pages, chat: ServiceId
) -> None:
    """Each with its age, and only where every pod told it."""
    signal = Signal.CONCURRENCY
    pages.text = page(vllm(chat, "chat-a", running=3))
    world = World(prometheus.url, {chat: ["chat-a"]})
    async with running(world):
        await until(lambda: world.value(Signal.CONCURRENCY), world)
        scraped = pages.scrapes
        await until(lambda: _after(pages, scraped + 3), world)
        past = await _past(world, chat, signal)
        world.pods[chat] = ["chat-a", "chat-b"]
        half = await _past(world, chat, signal)
    assert {value for _, value in past} == {3}
    ages = [age_s for age_s, _ in past]
    assert ages == sorted(ages, reverse=True)
    assert -1 <= ages[-1] <= ages[0] <= 61
    assert half == []
