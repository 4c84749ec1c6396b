# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the world, each with the shape of a protocol and a record of what it was told."""

import time
from collections.abc import Mapping

from autoscaler.core.routes import Demand, Route
from autoscaler.core.signals import NoReading


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
        self.asked = 0  # how often for the demand

    def publish(self, routes: Mapping[str, Route]) -> None:
        self.published.append(routes)

    def demand(self, service: str) -> Demand | NoReading:
        self.asked += 1
        return self.demands.get(service, Demand(service))

    def held_by(self, service: str) -> bool:
        return service in self.holding

    def route(self, service: str) -> Route:
        """The last word on one service."""
        return self.published[-1][service]
