# SPDX-License-Identifier: Apache-2.0
"""Whatever befalls Prometheus, no count falls, the decision says why, and it is over at once."""

import threading
from collections.abc import Iterator

import pytest

from autoscaler.adapters.memory import InMemoryStore
from autoscaler.core.policy import ServicePolicy, Target
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.signals import Measure, Query, ServiceId, Signal
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView
from tests.adapters.prometheus.between import (
    Between,
    Spoil,
    after,
    by_clock,
    cut_off,
    saying,
    untouched,
    with_more,
)
from tests.adapters.prometheus.real import Pages, RealPrometheus, page, wait_for
from tests.adapters.prometheus.world import World
from tests.builders import a_policy, a_reading
from tests.fakes import FakeClock, FakeCluster, FakeRoutes, FakeSource

PODS = ("chat-a", "chat-b", "chat-c", "chat-d")
REFRESHED_EVERY = 10  # ticks
NOTHING_HELD = (Measure.HELD, Measure.IN_FLIGHT, Measure.HELD_SECONDS_TOTAL)


def view(service: ServiceId, policy: ServicePolicy) -> ServiceView:
    replicas = tuple(Replica(pod, ReplicaState.READY, 0.0, 0.0) for pod in PODS)
    return ServiceView(service, policy, 1, len(PODS), replicas)


class Watched:
    """A loop over one service of four replicas that has load for one, in virtual time."""

    def __init__(self, url: str, service: ServiceId, target: Target) -> None:
        policy = a_policy(targets=(target,), min_replicas=1)
        self.clock = FakeClock(1000.0)
        self.world = World(url, {service: PODS}, *policy.queries, clock=self.clock, timeout_s=0.5)
        self.cluster = FakeCluster(view(service, policy))
        self.service = service
        held = FakeSource({service: {m: a_reading(0) for m in NOTHING_HELD}})
        self.loop = ControlLoop(
            cluster=self.cluster,
            sources=[held, self.world.source],
            routes=FakeRoutes(),
            store=InMemoryStore(),
            clock=self.clock,
        )

    async def ticks(self, count: int) -> None:
        for n in range(count):
            self.clock.at_s += 1.0
            if n % REFRESHED_EVERY == 0:
                await self.world.source.refresh()
            await self.loop.tick()

    @property
    def because(self) -> str:
        """What the last decision says."""
        return "; ".join(self.loop.records[self.service][-1].decision.because)


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    hung = threading.Event()
    yield hung
    hung.set()


SIGNAL = Target(Signal.KV, 0.8)
QUERY = Target(Query('sum(vllm:kv_cache_usage_perc{namespace="$NAMESPACE"})'), 0.8)


@pytest.fixture
async def told(prometheus: RealPrometheus, pages: Pages, chat: ServiceId) -> ServiceId:
    """A service of whose pods Prometheus knows that they have next to nothing to do."""
    pages.text = page(
        ("vllm:kv_cache_usage_perc", {"namespace": chat.namespace, "pod": pod}, 0.1) for pod in PODS
    )
    scraped = pages.scrapes
    await wait_for(lambda: pages.scrapes >= scraped + 2, "two scrapes")  # the first one is stored
    return chat


HTML = "<!doctype html><title>Sign in</title>"
OUTAGES: dict[str, tuple[Spoil, str]] = {
    "503": (saying(503, '{"status":"error","error":"starting up"}'), "answered 503: starting up"),
    "500 in HTML": (saying(500, HTML), "answered 500"),
    "another page": (saying(200, HTML), "not Prometheus' JSON; check the url"),
    "a login page": (saying(302, "", Location="/login"), "answered 302"),
    "no login": (saying(401, "no"), "answered 401; check the login"),
    "not found": (saying(404, "404 page not found"), "answered 404"),
    "other JSON": (saying(200, '{"status":"success","data":[]}'), "not Prometheus' JSON"),
    "in part": (with_more(warnings=["store gw-3 unreachable"]), "in part: store gw-3 unreachable"),
    "partial flag": (with_more(isPartial=True), "in part"),
    "cut off": (cut_off, "not Prometheus' JSON"),
    "ahead": (by_clock(3600.0), "its clock is 3600 s ahead of this machine's"),
    "behind": (by_clock(-3600.0), "its clock is 3600 s behind this machine's"),
}


async def stands_through(watched: Watched, why: str) -> None:
    """Four replicas stay, longer than the window, and every decision says why."""
    for _ in range(7):
        await watched.ticks(REFRESHED_EVERY)
        assert watched.cluster.scaled == []
        assert why in watched.because
    assert why in str(watched.world.source.health().why)


async def recovers(watched: Watched) -> None:
    """The next round reads again."""
    await watched.ticks(1)
    assert "D3 keep 4: " in watched.because
    assert watched.world.source.health().why is None


async def falls(watched: Watched) -> None:
    """What is too much is gone once a whole window was seen."""
    await watched.ticks(70)
    assert watched.cluster.scaled == [(watched.service, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outage", "target"),
    [*((outage, SIGNAL) for outage in OUTAGES), ("503", QUERY), ("in part", QUERY)],
    ids=[*OUTAGES, "503 to a query", "in part to a query"],
)
async def test_an_answer_that_is_not_whole_lowers_nothing(
    between: Between, told: ServiceId, outage: str, target: Target
) -> None:
    """The count stays through minutes of it, and falls only a whole window afterwards."""
    watched = Watched(between.url, told, target)
    await watched.ticks(30)
    assert "D3 keep 4: " in watched.because
    between.spoil, why = OUTAGES[outage]
    await watched.ticks(1)
    await stands_through(watched, why)
    between.spoil = untouched
    await recovers(watched)
    if outage == "503":
        await falls(watched)
    watched.world.client.close()


@pytest.mark.slow
async def test_a_prometheus_that_is_slow_lowers_nothing_and_stops_no_tick(
    between: Between, told: ServiceId, hung: threading.Event
) -> None:
    """It answers after half a minute: much too late."""
    watched = Watched(between.url, told, SIGNAL)
    await watched.ticks(1)
    between.spoil = after(hung)
    await watched.ticks(1)
    for _ in range(3):
        await watched.ticks(REFRESHED_EVERY)
        assert "no answer in time" in watched.because
    watched.clock.at_s += 200  # longer than any window
    await watched.ticks(1)
    assert watched.cluster.scaled == []
    hung.set()
    between.spoil = untouched
    await recovers(watched)
    watched.world.client.close()


@pytest.mark.slow
async def test_a_prometheus_that_is_gone_lowers_nothing(
    prometheus: RealPrometheus, told: ServiceId
) -> None:
    """It was there when the window began; nobody listens for minutes; it is started again."""
    watched = Watched(prometheus.url, told, SIGNAL)
    await watched.ticks(30)
    assert "D3 keep 4: " in watched.because
    prometheus.stop()
    await watched.ticks(1)
    await stands_through(watched, "Connection refused")
    prometheus.start()
    await recovers(watched)
    await falls(watched)
    watched.world.client.close()
