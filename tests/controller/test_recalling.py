# SPDX-License-Identifier: Apache-2.0
"""A controller that starts asks whoever remembers, and goes on as before where nobody does."""

from collections.abc import Collection, Mapping

from autoscaler.adapters.memory import InMemoryStore
from autoscaler.app.recalling import recall
from autoscaler.core.policy import RateRule
from autoscaler.core.signals import Measure, Measures, ServiceId, Signal
from autoscaler.errors import RetryLater
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView
from tests.builders import A_SERVICE, a_policy, a_reading, replicas
from tests.fakes import FakeClock, FakeCluster, FakeRoutes, FakeSource


class Remembering:
    """Knows that four requests ran all the time; raises `trouble` instead, where there is one."""

    def __init__(self, trouble: RetryLater | None = None) -> None:
        self.trouble = trouble
        self.asked: list[tuple[Signal, float]] = []

    async def history(
        self, services: Collection[ServiceId], signal: Signal, *, window_s: float, step_s: float
    ) -> Mapping[ServiceId, list[tuple[float, float]]]:
        self.asked.append((signal, window_s))
        if self.trouble is not None:
            raise self.trouble
        steps = int(window_s // step_s)
        return {service: [(n * step_s, 4.0) for n in range(steps, -1, -1)] for service in services}


def in_flight(at_s: float) -> Measures:
    return {
        Measure.HELD: a_reading(0, at_s=at_s),
        Measure.IN_FLIGHT: a_reading(4, at_s=at_s),
        Measure.REQUESTS_TOTAL: a_reading(at_s, at_s=at_s),
        Measure.REQUEST_SECONDS_TOTAL: a_reading(4 * at_s, at_s=at_s),
        Measure.HELD_SECONDS_TOTAL: a_reading(0, at_s=at_s),
    }


async def count_after(source: Remembering) -> int:
    """Of a service that has 6 replicas and needs 1, a few seconds after a restart."""
    policy = a_policy(max_replicas=10, scale_down=RateRule(window_s=600.0))
    cluster = FakeCluster(ServiceView(A_SERVICE, policy, 1, 6, replicas(6)))
    told, clock = FakeSource(), FakeClock()
    loop = ControlLoop(
        cluster=cluster,
        sources=[told],
        routes=FakeRoutes(),
        store=InMemoryStore(),
        clock=clock,
    )
    for at_s in range(5):
        clock.at_s = float(at_s)
        told.measures = {A_SERVICE: in_flight(clock.at_s)}
        await loop.tick()
        if at_s == 1:
            await recall(loop, source, clock, pauses_s=(0.0,))
    return cluster.views[A_SERVICE].scale


async def test_a_window_that_somebody_remembers_is_not_waited_for() -> None:
    remembering = Remembering()
    assert await count_after(remembering) == 1
    [(signal, window_s)] = remembering.asked
    assert signal is Signal.CONCURRENCY
    assert window_s >= 600.0


async def test_where_nobody_remembers_the_whole_window_is_waited_for() -> None:
    away = RetryLater("Prometheus was not reached", after_s=1.0)
    remembering = Remembering(away)
    assert await count_after(remembering) == 6
    assert len(remembering.asked) == 2, "it is tried again"
