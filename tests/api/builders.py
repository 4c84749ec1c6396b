# SPDX-License-Identifier: Apache-2.0
"""A loop over one service and the sources that a test sets, as the API and the metrics see it."""

from collections.abc import Collection, Mapping

from autoscaler.adapters.memory import InMemoryStore
from autoscaler.core.signals import Measures, ServiceId
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView, SourceHealth
from tests.builders import A_SERVICE, a_policy, replicas
from tests.fakes import FakeClock, FakeCluster, FakeRoutes


class ASource:
    """Tells what a test says, and fares as a test says."""

    def __init__(self, health: SourceHealth, told: Measures | None = None) -> None:
        self.name = health.name
        self.now = health
        self.told = told or {}

    def health(self) -> SourceHealth:
        return self.now

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        return dict.fromkeys(services, self.told)


def a_health(
    name: str = "engines",
    *,
    why: str | None = None,
    age_s: float | None = 0.5,
    asked: int = 10,
    failed: int = 0,
) -> SourceHealth:
    return SourceHealth(name, why, age_s, asked, failed)


class Stage:
    """One service, what is told of it, and the loop that decides on it."""

    def __init__(self, *sources: ASource, scale: int = 4, **policy: object) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster(
            ServiceView(A_SERVICE, a_policy(**policy), 1, scale, replicas(scale))
        )
        self.loop = ControlLoop(
            cluster=self.cluster,
            sources=sources,
            routes=FakeRoutes(),
            store=InMemoryStore(),
            clock=self.clock,
        )

    async def tick_at(self, at_s: float) -> None:
        self.clock.at_s = at_s
        await self.loop.tick()
