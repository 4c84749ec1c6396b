# SPDX-License-Identifier: Apache-2.0
"""A tick observes everything once, decides, acts once and says what it did."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest

from autoscaler.adapters.memory import InMemoryStore
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import Target
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.signals import Measure, Measures, Reading, ServiceId, Signal
from autoscaler.core.zero import ZeroState
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView
from tests.builders import A_SERVICE, a_policy, a_reading, replicas
from tests.fakes import FakeClock, FakeCluster, FakeRoutes, FakeSource

OTHER = ServiceId("local", "digits")


def a_view(service: ServiceId = A_SERVICE, *, scale: int = 0, **policy: object) -> ServiceView:
    return ServiceView(service, a_policy(**policy), 1, scale, replicas(scale))


def held(count: float, *, at_s: float = 0.0, total: float | None = None) -> Measures:
    """What an activator tells that holds `count` requests."""
    return {
        Measure.HELD: a_reading(count, at_s=at_s),
        Measure.IN_FLIGHT: a_reading(0, at_s=at_s),
        Measure.REQUESTS_TOTAL: a_reading(count if total is None else total, at_s=at_s),
        Measure.REQUEST_SECONDS_TOTAL: a_reading(0, at_s=at_s),
        Measure.HELD_SECONDS_TOTAL: a_reading(0, at_s=at_s),
    }


class World:
    """A loop and the fakes around it."""

    def __init__(self, *views: ServiceView, holds: bool = True) -> None:
        self.cluster = FakeCluster(*views)
        self.source = FakeSource({view.service: held(0) for view in views})
        self.routes = FakeRoutes(holds=holds)
        self.store = InMemoryStore()
        self.clock = FakeClock()
        self.loop = ControlLoop(
            cluster=self.cluster,
            sources=[self.source],
            routes=self.routes,
            store=self.store,
            clock=self.clock,
        )

    async def tick_at(self, at_s: float, only: Collection[ServiceId] | None = None) -> None:
        self.clock.at_s = at_s
        self.source.measures = {
            service: {
                m: replace(seen, at_s=at_s)
                for m, seen in measures.items()
                if isinstance(seen, Reading)
            }
            for service, measures in self.source.measures.items()
        }
        await self.loop.tick(only)


async def test_what_is_held_wakes_a_service_with_enough_replicas() -> None:
    """Twenty requests held for replicas that carry eight ask for three at once, not for one."""
    world = World(a_view())
    await world.tick_at(0)
    world.source.measures[A_SERVICE] = held(20)
    await world.tick_at(1)
    assert world.cluster.scaled == [(A_SERVICE, 3)]
    assert world.routes.announced[A_SERVICE][0] == ZeroState.WAKING


async def test_held_requests_for_text_wake_as_many_replicas_as_their_tokens_need() -> None:
    """Of two services with a target for tokens alone, the one whose work is large wakes larger."""
    tokens = Target(Signal.TOKENS_PER_S, 1000.0)
    world = World(a_view(targets=(tokens,)), a_view(OTHER, targets=(tokens,)))
    await world.tick_at(0)
    for service, asked in ((A_SERVICE, 18_000), (OTHER, 600)):
        world.source.measures[service] = {
            **held(20),
            Measure.HELD_OUTPUT_TOKENS: a_reading(asked),
            Measure.OUTPUT_TOKENS_ASKED_TOTAL: a_reading(asked),
        }
    await world.tick_at(1)
    assert world.cluster.scaled == [(A_SERVICE, 3), (OTHER, 1)]


async def test_all_services_are_asked_about_at_once() -> None:
    """A source is asked once a tick, however many services there are."""
    world = World(a_view(), a_view(OTHER))
    await world.tick_at(0)
    assert world.source.asked == [frozenset({A_SERVICE, OTHER})]


async def test_a_tick_for_one_service_leaves_the_others_alone() -> None:
    """News of one service costs nothing for the rest."""
    world = World(a_view(), a_view(OTHER))
    await world.tick_at(0, only=[A_SERVICE])
    assert world.source.asked == [frozenset({A_SERVICE})]
    assert set(world.loop.records) == {A_SERVICE}


async def test_a_decision_is_dropped_when_the_service_changed_meanwhile() -> None:
    """The object's generation moved on between the look and the act: nothing is done, and told."""
    world = World(a_view())
    world.source.measures[A_SERVICE] = held(20)

    class ChangesMeanwhile(FakeSource):
        async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
            view = world.cluster.views[A_SERVICE]
            world.cluster.views[A_SERVICE] = replace(view, generation=view.generation + 1)
            return {}

    loop = ControlLoop(
        cluster=world.cluster,
        sources=[world.source, ChangesMeanwhile()],
        routes=world.routes,
        store=world.store,
        clock=world.clock,
    )
    await loop.tick()
    assert world.cluster.scaled == []
    assert "generation 1 is past" in str(loop.records[A_SERVICE][-1].refused)


async def test_a_platform_that_cannot_be_asked_costs_one_tick_only() -> None:
    """Nothing is decided blindly, and the next tick goes on as if nothing had been."""
    world = World(a_view(scale=2))
    await world.tick_at(0)
    world.cluster.down = "connection refused"
    await world.tick_at(1)
    world.cluster.down = None
    await world.tick_at(2)
    assert world.cluster.scaled == []
    assert len(world.loop.records[A_SERVICE]) == 2


async def test_decisions_in_a_row_that_say_the_same_are_kept_as_the_first_and_the_newest() -> None:
    """Of a service at rest the first and the newest are kept; each change is."""
    world = World(a_view(scale=2))
    for at_s in range(100):
        await world.tick_at(at_s)
    kept = [record.decision.at_s for record in world.loop.records[A_SERVICE]]
    assert (kept[0], kept[-1]) == (0, 99)
    assert len(kept) < 10
    world.source.measures[A_SERVICE] = held(40)
    await world.tick_at(100)
    await world.tick_at(101)
    changed = [r.decision.at_s for r in world.loop.records[A_SERVICE] if r.decision.changes]
    assert 100 in changed


async def test_sleep_needs_an_activator_in_the_path() -> None:
    """Idle long enough, a service still keeps its replica until an activator is proven there."""
    world = World(a_view(scale=1, scale_to_zero_after=10.0), holds=False)
    for at_s in range(40):
        await world.tick_at(at_s)
    assert world.cluster.scaled == []
    world.routes.holds = True
    await world.tick_at(40)
    assert world.cluster.scaled == [(A_SERVICE, 0)]


async def test_an_active_service_is_not_asked_to_be_held() -> None:
    """While replicas serve, the activator is not called into the path."""
    world = World(a_view(scale=1, scale_to_zero_after=10.0))
    world.routes.stands = False
    for at_s in range(5):
        await world.tick_at(at_s)
    assert world.routes.asked_to_hold == []


@pytest.mark.parametrize(("settings", "releases"), [({}, True), ({"dry_run": True}, False)])
async def test_the_path_is_left_once_an_active_service_has_settled(
    settings: dict[str, Any], releases: bool
) -> None:
    """Warm requests go straight to the replicas; a dry run moves no path either."""
    world = World(a_view(scale=1, **settings))
    for at_s in range(5):
        await world.tick_at(at_s)
    assert (A_SERVICE in world.routes.released) is releases


async def test_lead_times_are_learned_and_outlive_the_loop() -> None:
    """A start of 32 s is remembered by the next controller on the same store."""
    world = World(a_view(scale=1))
    view = world.cluster.views[A_SERVICE]
    starting = Replica("r0", ReplicaState.STARTING, 10.0)
    world.cluster.views[A_SERVICE] = replace(view, replicas=(starting,))
    await world.tick_at(11)
    ready = Replica("r0", ReplicaState.READY, 10.0, 42.0)
    world.cluster.views[A_SERVICE] = replace(view, replicas=(ready,))
    await world.tick_at(42)
    assert world.loop.lead_times(A_SERVICE) == LeadTimes((32.0,))
    assert await world.store.load() == {A_SERVICE: LeadTimes((32.0,))}


async def test_a_service_that_is_gone_is_forgotten() -> None:
    """Neither its memory nor its decisions stay behind."""
    world = World(a_view())
    await world.tick_at(0)
    world.cluster.views.clear()
    await world.tick_at(1)
    assert world.loop.records == {}


@pytest.mark.parametrize("how", ["paused", "dry_run"])
async def test_a_halted_service_keeps_its_path(how: str) -> None:
    """The activator is not brought into it, however long there is no replica that is ready."""
    world = World(replace(a_view(scale=1), policy=a_policy(**{how: True}), replicas=()))
    for at_s in range(3):
        await world.tick_at(float(at_s))
    assert world.routes.asked_to_hold == world.routes.released == []


@pytest.mark.parametrize("how", ["paused", "dry_run"])
async def test_a_halted_service_is_decided_but_not_touched(how: str) -> None:
    """The decision says what would be asked for; nothing is asked for."""
    view = a_view()
    world = World(replace(view, policy=a_policy(**{how: True})))
    world.source.measures[A_SERVICE] = held(20)
    for at_s in range(3):
        await world.tick_at(at_s)
    assert world.cluster.scaled == []
    assert "3 would be asked for" in "; ".join(world.loop.records[A_SERVICE][-1].decision.because)


async def test_a_later_source_speaks_for_what_earlier_ones_do_not() -> None:
    """Sources complete each other: held from the activator, waiting from the engines."""
    world = World(a_view(scale=1, scale_to_zero_after=5.0))
    engines = FakeSource({A_SERVICE: {Measure.WAITING: a_reading(3)}})
    loop = ControlLoop(
        cluster=world.cluster,
        sources=[world.source, engines],
        routes=world.routes,
        store=world.store,
        clock=world.clock,
    )
    for at_s in itertools.islice(itertools.count(), 30):
        world.clock.at_s = float(at_s)
        await loop.tick()
    assert world.cluster.scaled == []  # three wait inside a replica: that is no idleness
