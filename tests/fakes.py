# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the world, each with the shape of a protocol and a record of what it was told."""

import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from autoscaler.core.budget import Room
from autoscaler.core.routes import Demand, Route
from autoscaler.core.signals import Measures, NoReading, ServiceId
from autoscaler.errors import RetryLater
from autoscaler.ports import Refusal, ServiceView, SourceHealth
from scheduler_extender.core.demand import Demand as GpuDemand
from scheduler_extender.core.gpus import Card, Fleet, NodeGpus


class WallClock:
    """The real time, for tests of real processes."""

    def now_s(self) -> float:
        return time.monotonic()


class FakeClock:
    """Stands still until a test moves it."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.at_s = now_s

    def now_s(self) -> float:
        return self.at_s


class FakeActivators:
    """Activators that have no traffic but what a test says; remembers every route table."""

    def __init__(self) -> None:
        self.published: list[Mapping[str, Route]] = []
        self.demands: dict[str, Demand | NoReading] = {}
        self.holding: set[str] = set()
        self.share = 1.0  # the part of the activators that speak
        self.asked = 0  # how often for the demand
        self.follows = True  # whether they follow what was published last

    def publish(self, routes: Mapping[str, Route]) -> None:
        self.published.append(routes)

    def demand(self, service: str) -> Demand | NoReading:
        self.asked += 1
        return self.demands.get(service, Demand(service))

    def share_ratio(self) -> float:
        return self.share

    def may_send(self, service: str, endpoint: str) -> bool:
        return not self.follows

    def held_by(self, service: str) -> bool:
        return service in self.holding

    def route(self, service: str) -> Route:
        """The last word on one service."""
        return self.published[-1][service]


class FakeCluster:
    """Services of which a test says how they stand; remembers every count it was asked for."""

    def __init__(self, *views: ServiceView) -> None:
        self.views = {view.service: view for view in views}
        self.scaled: list[tuple[ServiceId, int]] = []
        self.down: str | None = None  # why it cannot be asked

    async def services(self) -> Mapping[ServiceId, ServiceView]:
        if self.down is not None:
            raise RetryLater(self.down, after_s=1.0)
        return dict(self.views)

    async def scale(self, service: ServiceId, replicas: int, *, generation: int) -> Refusal | None:
        view = self.views[service]
        if generation != view.generation:
            return Refusal(f"generation {generation} is past")
        self.scaled.append((service, replicas))
        self.views[service] = replace(view, scale=replicas, generation=generation + 1)
        return None


class FakeSource:
    """A signal source with the numbers that a test sets."""

    name = "fake"

    def __init__(self, measures: Mapping[ServiceId, Measures] | None = None) -> None:
        self.measures = dict(measures or {})
        self.asked: list[frozenset[ServiceId]] = []

    def health(self) -> SourceHealth:
        return SourceHealth(self.name, why=None, age_s=0.0, asked=len(self.asked), failed=0)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        self.asked.append(frozenset(services))
        return self.measures


class FakeRoutes:
    """A route table that holds the path when a test says so; remembers what it was told."""

    def __init__(self, *, holds: bool = True) -> None:
        self.holds = holds
        self.stands = True
        self.asked_to_hold: list[ServiceId] = []
        self.released: list[ServiceId] = []
        self.announced: dict[ServiceId, tuple[str, str]] = {}

    async def hold(self, service: ServiceId) -> bool:
        self.asked_to_hold.append(service)
        return self.holds

    async def release(self, service: ServiceId) -> None:
        self.released.append(service)

    def in_path(self, service: ServiceId) -> bool:
        return self.stands

    async def announce(self, service: ServiceId, *, state: str, why: str) -> None:
        self.announced[service] = (state, why)


class FakeBudget:
    """One node with as many GPUs as a test says, of which each replica takes one whole."""

    def __init__(self, gpus: int) -> None:
        cards = tuple(Card(f"gpu-{n}", 20_000) for n in range(gpus))
        self.told: Room | NoReading = Room(Fleet([NodeGpus("node", cards)]))
        self.asked = 0  # how often for the room
        self.without: set[ServiceId] = set()  # services that use no GPU

    def needs(self, service: ServiceId) -> GpuDemand | None:
        return None if service in self.without else GpuDemand(whole=True)

    def room(self) -> Room | NoReading:
        self.asked += 1
        return self.told
