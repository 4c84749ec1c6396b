# SPDX-License-Identifier: Apache-2.0
"""Demand of a service whose requests pass the activator only now and then: who is believed."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from autoscaler.adapters.activators import IN_TOKENS
from autoscaler.adapters.engines.growth import Look, followed_up
from autoscaler.adapters.engines.page import read_page
from autoscaler.adapters.kubernetes.demand import KubernetesDemand
from autoscaler.adapters.plain_http import At
from autoscaler.core.keepalive import is_quiet
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId
from autoscaler.ports import SourceHealth
from tests.adapters.builders import a_service_id
from tests.adapters.kubernetes.waiting import until
from tests.fakes import FakeClock, WallClock

SERVICE = a_service_id()
AT = At("10.0.0.1", 8080, "/metrics")
HELD, IN_FLIGHT, WAITING = Measure.HELD, Measure.IN_FLIGHT, Measure.WAITING
REQUESTS, TOKENS = Measure.REQUESTS_TOTAL, Measure.TOKENS_TOTAL
SECONDS, HELD_SECONDS = Measure.REQUEST_SECONDS_TOTAL, Measure.HELD_SECONDS_TOTAL


def our_worker(running: float = 0, came: float = 0, spent_s: float = 0, waiting: float = 0) -> str:
    return (
        f"tidegate_worker_requests_in_flight {running}\n"
        f"tidegate_worker_requests_arrived_total {came}\n"
        f"tidegate_worker_request_seconds_total {spent_s}\n"
        f"tidegate_worker_queue_depth {waiting}\n"
    )


def vllm(running: float = 0, waiting: float = 0, ended: float = 0, tokens: float = 0) -> str:
    return (
        f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
        f"vllm:request_success_total {ended}\nvllm:generation_tokens_total {tokens}\n"
    )


def triton(ended: float) -> str:
    return f"nv_inference_request_success {ended}\nnv_inference_pending_request_count 0\n"


def kserve(ended: float, begun: float | None = None) -> str:
    begun = ended if begun is None else begun
    return (
        f"request_preprocess_seconds_count {begun}\nrequest_predict_seconds_count {ended}\n"
        "process_cpu_seconds_total 1.5\n"
    )


@dataclass
class FakeLooks:
    """Pods whose pages a test writes; an exception's words where one fails."""

    clock: FakeClock
    pages: dict[str, str | ConnectionError] = field(default_factory=dict)
    seen: dict[str, Look] = field(default_factory=dict)
    expected: Mapping[str, At] = field(default_factory=dict)

    def expect(self, service: ServiceId, places: Mapping[str, At]) -> None:
        self.expected = places

    def look(self, service: ServiceId, pod_id: str) -> Look | NoReading:
        text = self.pages[pod_id]
        page = NoReading(str(text)) if isinstance(text, ConnectionError) else read_page(text)
        if isinstance(page, NoReading):
            return page
        before = self.seen.get(pod_id)
        if before is None or before.at_s < self.clock.at_s:
            self.seen[pod_id] = followed_up(page, at_s=self.clock.at_s, before=before)
        return self.seen[pod_id]

    def health(self) -> SourceHealth:
        return SourceHealth("fake", why=None, age_s=None, asked=0, failed=0)

    async def run(self) -> None:
        """Nothing to do: pages are read when they are asked for."""


class World:
    """One service: its pods' pages and its activators. `seconds` lets time pass, then looks."""

    def __init__(self) -> None:
        self.clock = FakeClock(100.0)
        self.last: Measures = {}
        self.activators: Demand | NoReading = Demand(str(SERVICE))
        self.speaking = 1.0
        self.looks = FakeLooks(self.clock)
        self.placeless: set[str] = set()
        self.counted = 0  # by an engine, where a test goes on counting
        self.demand = KubernetesDemand(
            clock=self.clock,
            demand_of=lambda _: self.activators,
            heard_at_s=lambda: self.clock.at_s - 0.2,
            share_ratio=lambda: self.speaking,
            ready_pods=self._ready_pods,
            engines=self.looks,
        )

    def _ready_pods(self, _: ServiceId) -> Mapping[str, At | None]:
        return {pod: None if pod in self.placeless else AT for pod in self.looks.pages}

    async def seconds(self, after_s: float = 1.0, /, **pages: str | ConnectionError) -> Measures:
        """What is measured after some time, when the ready pods tell this."""
        self.clock.at_s += after_s
        self.looks.pages = dict(pages)
        self.last = (await self.demand.measure([SERVICE]))[SERVICE]
        return self.last

    async def rise(
        self, measure: Measure, after_s: float = 1.0, /, **pages: str | ConnectionError
    ) -> float:
        """By how much a total rises from one look to the next."""
        before = value(self.last, measure)
        return value(await self.seconds(after_s, **pages), measure) - before


def value(measures: Measures, measure: Measure) -> float:
    seen = measures[measure]
    assert isinstance(seen, Reading), seen
    return seen.value


def share(measures: Measures, measure: Measure) -> float:
    seen = measures[measure]
    assert isinstance(seen, Reading), seen
    return seen.share_ratio


DOWN = ConnectionError("http://10.0.0.1:8080/metrics failed: nothing listens there")


async def test_the_tokens_that_are_held_are_what_activators_tell() -> None:
    """For the part of them that speaks; the engine's own tokens are another matter."""
    world = World()
    await world.seconds()
    world.activators = Demand(
        str(SERVICE), held=1, held_output_tokens=40, output_tokens_asked_total=90
    )
    world.speaking = 0.5
    measures = await world.seconds()
    assert value(measures, Measure.HELD_OUTPUT_TOKENS) == 40
    assert value(measures, Measure.OUTPUT_TOKENS_ASKED_TOTAL) == 90
    assert share(measures, Measure.HELD_OUTPUT_TOKENS) == 0.5
    world.activators = NoReading("no activator speaks")
    measures = await world.seconds()
    assert measures[Measure.HELD_OUTPUT_TOKENS] == NoReading("no activator speaks")


async def test_without_a_ready_pod_the_activators_know_the_whole() -> None:
    """Every request passes them: held, in flight, and nothing else is anywhere."""
    world = World()
    await world.seconds()
    world.activators = Demand(
        str(SERVICE),
        held=3,
        in_flight=1,
        requests_total=7,
        held_seconds_total=2.0,
        request_seconds_total=2.5,
    )
    measures = await world.seconds()
    at_s = world.clock.at_s - 0.2
    assert measures == {
        HELD: Reading(3, at_s, "demand"),
        IN_FLIGHT: Reading(1, at_s, "demand"),
        REQUESTS: Reading(7, at_s, "demand"),
        SECONDS: Reading(2.5, at_s, "demand"),
        HELD_SECONDS: Reading(2.0, at_s, "demand"),
        **dict.fromkeys(IN_TOKENS, Reading(0.0, at_s, "demand")),
    }


async def test_without_a_word_of_activators_nothing_is_known_of_a_sleeping_service() -> None:
    """Rule D1: it may be that requests wait."""
    world = World()
    world.activators = NoReading("no activator is connected")
    measures = await world.seconds()
    assert set(measures) == {HELD, IN_FLIGHT, REQUESTS, SECONDS, HELD_SECONDS, *IN_TOKENS}
    assert set(measures.values()) == {NoReading("no activator is connected")}


async def test_half_of_the_activators_speak_for_half() -> None:
    """Only with pods that tell everything does the rest not matter."""
    world = World()
    world.speaking = 0.5
    asleep = await world.seconds()
    assert share(asleep, IN_FLIGHT) == 0.5
    awake = await world.seconds(a=our_worker())
    assert (share(awake, IN_FLIGHT), share(awake, REQUESTS)) == (1.0, 1.0)
    assert (share(awake, HELD), share(awake, SECONDS)) == (0.5, 0.5)


async def test_requests_that_no_activator_saw_are_demand() -> None:
    """While pods are ready, clients go straight to them."""
    world = World()
    await world.seconds(a=our_worker(came=50, spent_s=10), b=our_worker(came=9))
    measures = await world.seconds(
        a=our_worker(running=4, came=57, spent_s=13.5, waiting=1),
        b=our_worker(running=2, came=12, spent_s=2, waiting=2),
    )
    assert value(measures, IN_FLIGHT) == 6
    assert value(measures, WAITING) == 3
    assert share(measures, IN_FLIGHT) == share(measures, REQUESTS) == 1.0
    later = {"a": our_worker(came=60, spent_s=15), "b": our_worker(came=12, spent_s=3)}
    assert await world.rise(REQUESTS, **later) == 3
    later = {"a": our_worker(came=60, spent_s=18), "b": our_worker(came=12, spent_s=3.5)}
    assert await world.rise(SECONDS, **later) == 3.5
    assert world.demand.in_flight(SERVICE) == {"a": 0, "b": 0}
    assert world.demand.blind(SERVICE) is None


async def test_what_is_held_counts_beside_what_is_in_the_pods() -> None:
    """One request is in one place at a time."""
    world = World()
    await world.seconds(a=our_worker())
    world.activators = Demand(
        str(SERVICE), held=2, in_flight=1, held_seconds_total=4, request_seconds_total=7
    )
    measures = await world.seconds(a=our_worker(running=1, spent_s=3))
    assert (value(measures, HELD), value(measures, IN_FLIGHT)) == (2, 1)
    assert (value(measures, HELD_SECONDS), value(measures, SECONDS)) == (4, 7)


async def test_a_request_that_a_page_does_not_show_yet_is_in_flight_all_the_same() -> None:
    """The activator has just sent it."""
    world = World()
    world.activators = Demand(str(SERVICE), in_flight=1)
    measures = await world.seconds(a=our_worker())
    assert value(measures, IN_FLIGHT) == 1


async def test_held_requests_are_no_second_burst_when_they_reach_the_pods() -> None:
    """From zero to awake: a hundred arrive, are held, released and answered: a hundred in all."""
    world = World()
    await world.seconds()
    world.activators = Demand(str(SERVICE), held=100, requests_total=100)
    assert value(await world.seconds(), REQUESTS) == 100
    came = []
    for released in (10, 40, 90, 100, 100):
        world.activators = Demand(str(SERVICE), held=100 - released, requests_total=100)
        came.append(value(await world.seconds(a=our_worker(came=released)), REQUESTS))
    assert came == sorted(came)
    assert 100 <= came[-1] <= 105
    world.activators = Demand(str(SERVICE), requests_total=100)
    assert await world.rise(REQUESTS, a=our_worker(came=130)) == 30


async def test_requests_that_never_left_the_activator_hide_none_that_come_later() -> None:
    """Their clients gave up waiting."""
    world = World()
    await world.seconds()
    world.activators = Demand(str(SERVICE), held=500, requests_total=500)
    await world.seconds(a=our_worker())
    world.activators = Demand(str(SERVICE), requests_total=500, cancelled_total=500)
    await world.seconds(a=our_worker())
    await world.seconds(a=our_worker())
    assert await world.rise(REQUESTS, a=our_worker(came=40)) == 40


async def test_time_in_the_pods_takes_over_from_time_in_the_activator_without_a_step() -> None:
    """The signal of concurrency neither jumps nor falls as a service wakes."""
    world = World()
    await world.seconds()
    held_s, inside_s, totals = 0.0, 0.0, []
    for second in range(10):  # ten requests, held for five seconds and then run
        held, running = (10, 0) if second < 5 else (0, 10)
        held_s, inside_s = held_s + held, inside_s + running
        world.activators = Demand(
            str(SERVICE),
            held=held,
            in_flight=running,
            held_seconds_total=held_s,
            request_seconds_total=held_s + inside_s,
        )
        pods = {"a": our_worker(running, came=10, spent_s=inside_s)} if second >= 5 else {}
        totals.append(value(await world.seconds(**pods), SECONDS))
    assert [after - before for before, after in pairwise(totals)] == [10] * 9


async def test_one_that_came_to_a_new_pod_before_it_was_looked_at_is_not_missed() -> None:
    """How much of its counter is old cannot be known; that something came can."""
    world = World()
    await world.seconds(a=our_worker(came=5))
    assert await world.rise(REQUESTS, a=our_worker(came=5), b=our_worker()) == 0
    assert await world.rise(REQUESTS, a=our_worker(came=5), c=our_worker(came=1_000_000)) == 1


async def test_a_counter_that_nobody_could_read_for_long_is_no_burst() -> None:
    """A gap of a second is made up for; after half a minute only that something came is known."""
    world = World()
    await world.seconds(a=our_worker(came=5), b=our_worker())
    await world.seconds(a=DOWN, b=our_worker())
    assert await world.rise(REQUESTS, a=our_worker(came=15), b=our_worker()) == 10
    await world.seconds(30.0, a=DOWN, b=our_worker())
    assert await world.rise(REQUESTS, a=our_worker(came=9_000), b=our_worker()) == 1


async def test_an_engine_that_began_anew_counts_from_zero() -> None:
    """Its container was restarted within the pod."""
    world = World()
    await world.seconds(a=our_worker(came=900))
    assert await world.rise(REQUESTS, a=our_worker(came=4)) == 4


async def test_activators_that_began_anew_are_no_burst() -> None:
    """One of several went away and took its count along."""
    world = World()
    world.activators = Demand(str(SERVICE), requests_total=2_000_000)
    await world.seconds()
    world.activators = Demand(str(SERVICE), requests_total=1_000_000)
    assert await world.rise(REQUESTS) == 1


async def test_a_pod_that_is_silent_proves_nothing() -> None:
    """What the others say may raise a count and never lower it."""
    world = World()
    await world.seconds(a=our_worker(), b=our_worker())
    measures = await world.seconds(a=our_worker(running=3), b=DOWN)
    for measure in (IN_FLIGHT, REQUESTS, SECONDS, WAITING):
        assert share(measures, measure) == 0.5
    assert value(measures, IN_FLIGHT) == 3
    assert world.demand.blind(SERVICE) is None


async def test_pods_that_are_all_silent_make_the_controller_blind() -> None:
    """What the activators see stands for nothing but itself, and there is a reason to tell."""
    world = World()
    await world.seconds(a=our_worker(), b=our_worker())
    world.activators = Demand(str(SERVICE), in_flight=2, requests_total=4)
    measures = await world.seconds(a=DOWN, b=DOWN)
    assert (value(measures, IN_FLIGHT), share(measures, IN_FLIGHT)) == (2, 0.0)
    assert share(measures, REQUESTS) == share(measures, SECONDS) == 0.0
    assert (value(measures, HELD), share(measures, HELD)) == (0, 1.0)
    assert measures[WAITING] == NoReading(str(DOWN))
    assert world.demand.blind(SERVICE) == str(DOWN)


async def test_neither_pods_nor_activators_say_a_word() -> None:
    """No reading at all (rule D1)."""
    world = World()
    world.activators = NoReading("no activator is connected")
    measures = await world.seconds(a=DOWN)
    assert not [seen for seen in measures.values() if isinstance(seen, Reading)]


async def test_pods_that_tell_raise_a_count_also_while_no_activator_speaks() -> None:
    """Nothing falls on it, since what is held is not known."""
    world = World()
    world.activators = NoReading("no activator is connected")
    await world.seconds(a=our_worker())
    measures = await world.seconds(a=our_worker(running=9, came=9, spent_s=9))
    assert (value(measures, IN_FLIGHT), value(measures, SECONDS)) == (9, 9)
    assert share(measures, SECONDS) == 0.0
    assert measures[HELD] == NoReading("no activator is connected")


async def test_a_pod_without_a_place_of_metrics_makes_the_controller_blind() -> None:
    """Nobody speaks of its queue; the reason says what to do."""
    world = World()
    world.placeless = {"a"}
    measures = await world.seconds(a="never asked")
    assert set(measures) == {HELD, IN_FLIGHT, REQUESTS, SECONDS, HELD_SECONDS, *IN_TOKENS}
    assert share(measures, IN_FLIGHT) == 0.0
    assert "annotate the pods with prometheus.io/port" in (world.demand.blind(SERVICE) or "")
    assert world.looks.expected == {}


async def test_an_engine_that_does_not_tell_what_runs_makes_the_controller_blind() -> None:
    """Its count of ended requests is a rate, and no proof that nothing runs."""
    world = World()
    await world.seconds(a=triton(10))
    measures = await world.seconds(a=triton(14))
    assert share(measures, IN_FLIGHT) == 0.0
    assert share(measures, REQUESTS) == 1.0
    assert world.demand.blind(SERVICE) == "Triton does not tell how many requests run"
    assert await world.rise(REQUESTS, a=triton(17)) == 3


async def test_an_engine_that_is_proven_to_do_nothing_may_be_put_to_sleep() -> None:
    """How busy it is when it does something only the activator sees."""
    world = World()
    await world.seconds(a=kserve(10))
    measures = await world.seconds(a=kserve(10))
    assert share(measures, IN_FLIGHT) == 0.0
    assert value(measures, Measure.WORKING) == 0
    assert world.demand.blind(SERVICE) is None
    before = value(measures, REQUESTS)
    assert is_quiet(await world.seconds(a=kserve(10)), requests_before=before)
    assert not is_quiet(await world.seconds(a=kserve(10, begun=11)), requests_before=before)
    assert not is_quiet(await world.seconds(a=kserve(11)), requests_before=before)


async def sampled(
    world: World,
    seconds: int,
    *,
    counted: int,
    passed: int,
    tunnels: int = 0,
    tunnels_total: int = 0,
) -> None:
    """So much comes each second, for so long; what passes an activator takes half a second."""
    for _ in range(seconds):
        before = world.activators
        assert isinstance(before, Demand)
        world.activators = replace(
            before,
            requests_total=before.requests_total + passed,
            answered_total=before.answered_total + passed,
            request_seconds_total=before.request_seconds_total + passed / 2,
            tunnels=tunnels,
            tunnels_total=tunnels_total,
        )
        world.counted += counted
        await world.seconds(a=triton(world.counted), b=triton(0))


async def test_what_passes_an_activator_is_a_sample_of_what_an_engine_counts() -> None:
    """One of four passes, each takes 0.5 s: of 8 a second 4 are in flight, and a count may fall."""
    world = World()
    await sampled(world, 60, counted=8, passed=2)
    before = value(world.last, SECONDS)
    await sampled(world, 1, counted=8, passed=2)
    assert value(world.last, SECONDS) - before == 4
    assert share(world.last, SECONDS) == 1.0
    assert share(world.last, IN_FLIGHT) == 0.0, "it proves nothing, and the activator is needed"
    before = value(world.last, SECONDS)
    await sampled(world, 1, counted=20, passed=20)
    assert value(world.last, SECONDS) - before == 10, "what passed is there"
    await world.seconds(a=triton(world.counted), b=DOWN)
    assert share(world.last, SECONDS) == 0.5
    await world.seconds(a=DOWN, b=DOWN)
    await sampled(world, 1, counted=8, passed=2)
    assert share(world.last, SECONDS) == 1.0, "a missed look is made up for"


async def test_what_activators_tell_is_as_old_as_their_word() -> None:
    """At the time of a scrape a second of theirs would be 0.9 s or 1.1 s, and a rate swing."""
    world = World()
    await world.seconds(a=triton(1))
    told = (await world.seconds(a=triton(1)))[SECONDS]
    assert isinstance(told, Reading)
    assert told.at_s == world.clock.at_s - 0.2
    told = (await world.seconds(a=vllm(running=1)))[SECONDS]
    assert isinstance(told, Reading)
    assert told.at_s == world.clock.at_s


async def test_a_sample_with_a_hole_is_none() -> None:
    """What a pod counted that was not read for long is lost, so that the rate would be too low."""
    world = World()
    await sampled(world, 60, counted=8, passed=2)
    for _ in range(7):
        await world.seconds(a=triton(world.counted), b=DOWN)
    await sampled(world, 3, counted=8, passed=2)
    assert share(world.last, SECONDS) == 0.0
    await sampled(world, 40, counted=8, passed=2)
    assert share(world.last, SECONDS) == 1.0


async def test_connections_of_which_only_bytes_are_seen_are_no_sample() -> None:
    """An HTTP/2 connection is one request for as long as it lasts, whatever goes through it."""
    world = World()
    await sampled(world, 60, counted=8, passed=2)
    await sampled(world, 1, counted=8, passed=2, tunnels=1, tunnels_total=1)
    assert share(world.last, SECONDS) == 0.0
    await sampled(world, 60, counted=8, passed=2, tunnels=1, tunnels_total=1)
    assert share(world.last, SECONDS) == 0.0
    await sampled(world, 60, counted=8, passed=2, tunnels=0, tunnels_total=1)
    assert share(world.last, SECONDS) == 1.0


async def test_what_was_held_before_it_was_sent_on_is_not_counted_twice() -> None:
    """600 that waited are sent on; then 10 a second come, each for half a second: 5 in flight."""
    world = World()
    world.activators = Demand(str(SERVICE), held=600, requests_total=600)
    await world.seconds(a=triton(0), b=triton(0))
    world.counted = 600
    world.activators = Demand(
        str(SERVICE), requests_total=600, answered_total=600, request_seconds_total=300.0
    )
    await sampled(world, 40, counted=10, passed=10)
    before = value(world.last, SECONDS)
    await sampled(world, 1, counted=10, passed=10)
    assert value(world.last, SECONDS) - before < 15


async def test_a_request_that_only_an_activator_sees_is_activity() -> None:
    """On a route that the engine does not count it may be; then nothing proves idleness."""
    world = World()
    for _ in range(30):
        await world.seconds(a=kserve(10))
    quiet = value(world.last, REQUESTS)
    assert is_quiet(world.last, requests_before=quiet)
    world.activators = Demand(
        str(SERVICE), requests_total=1, answered_total=1, request_seconds_total=0.1
    )
    after = await world.seconds(a=kserve(10))
    assert value(after, REQUESTS) > quiet
    assert isinstance(after[Measure.WORKING], NoReading)
    now = await world.seconds(a=kserve(10))
    assert not is_quiet(now, requests_before=value(after, REQUESTS))
    await world.seconds(a=kserve(11))
    counted = value(world.last, REQUESTS)
    assert is_quiet(await world.seconds(a=kserve(11)), requests_before=counted), "it was counted"


async def test_requests_that_never_went_on_are_none_that_an_engine_misses() -> None:
    """Those that were refused or expired while the service woke do not keep it awake."""
    world = World()
    await world.seconds(a=kserve(10))
    world.activators = Demand(str(SERVICE), requests_total=90, overflow_total=50, expired_total=40)
    await world.seconds(a=kserve(10))
    quiet = value(world.last, REQUESTS)
    assert is_quiet(await world.seconds(a=kserve(10)), requests_before=quiet)


async def test_nothing_for_long_is_no_proof_while_a_request_has_not_ended() -> None:
    """A count falls as little as it sleeps."""
    world = World()
    await world.seconds(a=kserve(10))
    for _ in range(700):
        await world.seconds(a=kserve(10))
    assert share(world.last, SECONDS) == 1.0
    await world.seconds(a=kserve(10, begun=11))
    assert share(world.last, SECONDS) == 0.0


async def test_vllm_tells_all_but_time_which_is_its_level_over_time() -> None:
    """What waits in it is in flight too."""
    world = World()
    await world.seconds(a=vllm(running=2, waiting=1))
    measures = await world.seconds(a=vllm(running=4, waiting=1, ended=3, tokens=70))
    assert value(measures, IN_FLIGHT) == 5
    assert value(measures, WAITING) == 1
    assert value(measures, TOKENS) == 70
    assert value(measures, SECONDS) == 4.0
    assert await world.rise(REQUESTS, a=vllm(ended=8)) == 5


async def test_an_engine_that_counts_no_requests_proves_that_some_came_and_not_how_many() -> None:
    """A rate of requests made of that may not lower a count."""
    world = World()
    page = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n"
    idle = f"{page}llamacpp:prompt_tokens_total 1\nllamacpp:tokens_predicted_total 1\n"
    stirred = f"{page}llamacpp:prompt_tokens_total 9\nllamacpp:tokens_predicted_total 1\n"
    await world.seconds(a=idle)
    before = await world.seconds(a=idle)
    after = await world.seconds(a=stirred)
    assert value(after, REQUESTS) > value(before, REQUESTS)
    assert share(after, REQUESTS) == 0.0
    assert share(after, IN_FLIGHT) == 1.0
    assert world.demand.blind(SERVICE) is None


async def test_idleness_is_proven_by_pods_that_tell_that_nothing_came() -> None:
    """And by nothing less: one request anywhere between two looks, and it is not."""
    world = World()
    await world.seconds(a=our_worker(came=5), b=our_worker(came=5))

    async def quiet(a: str | ConnectionError, b: str | ConnectionError) -> bool:
        before = value(world.last, REQUESTS)
        return is_quiet(await world.seconds(a=a, b=b), requests_before=before)

    assert await quiet(our_worker(came=5), our_worker(came=5))
    assert not await quiet(our_worker(came=6), our_worker(came=5))
    assert await quiet(our_worker(came=6), our_worker(came=5))
    assert not await quiet(our_worker(1, came=6), our_worker(came=5))
    assert not await quiet(our_worker(came=6), DOWN)
    world.activators = Demand(str(SERVICE), held=1)
    assert not await quiet(our_worker(came=6), our_worker(came=5))


async def test_a_service_that_went_to_sleep_has_an_empty_queue_and_its_old_totals() -> None:
    """That is known, not missing."""
    world = World()
    await world.seconds(a=vllm())
    await world.seconds(a=vllm(tokens=25, waiting=3))
    asleep = await world.seconds()
    assert (value(asleep, WAITING), share(asleep, WAITING)) == (0, 1.0)
    assert (value(asleep, TOKENS), share(asleep, TOKENS)) == (25, 1.0)


async def test_readings_carry_the_time_at_which_the_pods_spoke() -> None:
    """A rate over two pages is taken over the time between the two."""
    world = World()
    measures = await world.seconds(a=our_worker())
    asked_at_s = world.clock.at_s
    world.clock.at_s += 0.4
    world.looks.look = lambda service, pod_id: world.looks.seen[pod_id]  # type: ignore[method-assign]
    again = (await world.demand.measure([SERVICE]))[SERVICE]
    held = {measure: again[measure] for measure in (HELD, HELD_SECONDS, *IN_TOKENS)}
    assert again == dict(measures) | held
    seen = again[REQUESTS]
    assert isinstance(seen, Reading)
    assert seen.at_s == asked_at_s


async def test_pods_are_asked_over_http_beside_the_ticks() -> None:
    """The whole way once: a page served, scraped, read and measured, and then the pod gone."""
    running = 3

    async def serve(reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        await reads.readuntil(b"\r\n\r\n")
        body = our_worker(running, came=8).encode()
        writes.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
        await writes.drain()
        writes.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    place = At("127.0.0.1", server.sockets[0].getsockname()[1], "/metrics")
    clock = WallClock()
    demand = KubernetesDemand(
        clock=clock,
        demand_of=lambda _: Demand(str(SERVICE)),
        heard_at_s=clock.now_s,
        share_ratio=lambda: 1.0,
        ready_pods=lambda _: {"a": place},
    )
    scrapes = asyncio.create_task(demand.run())
    first = (await demand.measure([SERVICE]))[SERVICE]
    assert share(first, IN_FLIGHT) == 0.0
    assert demand.blind(SERVICE) == "a: not asked yet"
    await until(lambda: demand.in_flight(SERVICE) == {"a": 3}, "the first page")
    measures = (await demand.measure([SERVICE]))[SERVICE]
    assert (value(measures, IN_FLIGHT), share(measures, IN_FLIGHT)) == (3, 1.0)
    server.close()
    await until(lambda: demand.blind(SERVICE), "the pod is gone")
    scrapes.cancel()
    await asyncio.gather(scrapes, return_exceptions=True)


async def test_kv_use_is_summed_over_the_pods_that_tell() -> None:
    """And speaks for those alone; a pod whose cache is unknown is not one with an empty cache."""
    world = World()
    half = "vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 0.5\n"
    full = half.replace("0.5", "1.0")
    measures = await world.seconds(a=half, b=full, c=vllm(), d=DOWN)
    assert value(measures, Measure.KV_USED) == 1.5
    assert share(measures, Measure.KV_USED) == 0.5
    unknown = await world.seconds(a=vllm(), b=vllm())
    assert unknown[Measure.KV_USED] == NoReading(
        "vllm:kv_cache_usage_perc is not exposed, nor is vllm:gpu_cache_usage_perc"
    )


async def test_prompt_tokens_are_counted_from_look_to_look() -> None:
    """What a pod had taken in before it was first seen is old."""
    world = World()
    await world.seconds(a="vllm:prompt_tokens_total 900\n")
    page = "vllm:prompt_tokens_total 960\n"
    assert await world.rise(Measure.PROMPT_TOKENS_TOTAL, a=page) == 60


async def test_an_engine_without_a_kv_cache_says_nothing_of_it() -> None:
    """Nobody asks it, so nothing is missing."""
    world = World()
    measures = await world.seconds(a=our_worker())
    assert Measure.KV_USED not in measures
    assert Measure.PROMPT_TOKENS_TOTAL not in measures


async def test_of_two_engines_one_that_has_no_queue_hides_none_of_the_other_s() -> None:
    """As while a new version replaces the old: whichever is named last."""
    world = World()
    for pages in ({"a": vllm(4, waiting=9), "b": kserve(1)}, {"b": kserve(1), "a": DOWN}):
        measures = await world.seconds(**pages)
        assert WAITING in measures
    assert isinstance(measures[WAITING], NoReading)
    measures = await world.seconds(a=vllm(4, waiting=9), b=kserve(1))
    assert (value(measures, WAITING), share(measures, WAITING)) == (9, 0.5)
    assert WAITING not in await world.seconds(b=kserve(1))
