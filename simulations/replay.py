# SPDX-License-Identifier: Apache-2.0
"""One run: arrivals in, outcome out. Ids, chance and time belong to the run and to nothing else.

The loop is the shipped one. It ticks at fixed times, and between them at once where the real one is
pushed to: when a first request begins to wait with no replica ready, and when a replica gets ready.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random

from autoscaler.core.decide import Decision
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.signals import ServiceId
from autoscaler.errors import BadInput
from autoscaler.loop import ControlLoop
from simulations.clock import VirtualClock
from simulations.decisions import DecisionCount
from simulations.events import EventQueue
from simulations.invariants import check_conserved, check_fluid_bound
from simulations.plot import Sample
from simulations.replicas import ColdStart, ServiceTime
from simulations.traces.arrivals import Arrival
from simulations.world import (
    SERVICE,
    Fates,
    LearnedInRun,
    SimulatedActivator,
    SimulatedCluster,
    at_once,
)

MOST_TICKS = 20_000_000  # an hour or so of computing; more is a trace with clock times in it


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run needs besides arrivals. Times in seconds.

    `tail_s`: how long the run goes on after the last request has ended, to see the count fall.
    The run begins with the policy's `initial_replicas`, ready.
    """

    policy: ServicePolicy
    slots: int
    cold_start: ColdStart
    service_time: ServiceTime
    tick_s: float = 1.0
    tail_s: float = 0.0
    slo_s: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run, before it is put into words."""

    sent: int
    end_s: float
    fates: Fates
    replica_seconds: float
    cold_starts_s: Sequence[float]
    abandoned_starts: int
    moves: Sequence[tuple[float, int]]
    samples: Sequence[Sample]
    decisions: DecisionCount


class Replay:
    """The wiring of one run. `run` may be called once."""

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        settings: Settings,
        *,
        on_decision: Callable[[Decision], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        if arrivals[-1].at_s / settings.tick_s > MOST_TICKS:
            raise BadInput(
                f"--tick: {settings.tick_s:g}s makes {arrivals[-1].at_s / settings.tick_s:.3g} "
                f"ticks of a trace of {arrivals[-1].at_s:g} s, at most {MOST_TICKS} are permitted; "
                "cut the trace with --from and --until, or tick less often"
            )
        self.clock = VirtualClock()
        self.events = EventQueue()
        self.cluster = SimulatedCluster(
            settings.policy,
            slots=settings.slots,
            cold_start=settings.cold_start,
            clock=self.clock,
            events=self.events,
            chance=Random(f"{settings.seed}/cold-start"),  # noqa: S311  simulated chance
        )
        self.activator = SimulatedActivator(
            self.cluster,
            service_time=settings.service_time,
            clock=self.clock,
            events=self.events,
        )
        self.loop = ControlLoop(
            cluster=self.cluster,
            sources=[self.activator],
            routes=self.activator,
            store=LearnedInRun(),
            clock=self.clock,
        )
        self.cluster.on_ready = lambda: self._tick(only={SERVICE})
        self.activator.on_wake = lambda: self._tick(only={SERVICE})
        self._arrivals = arrivals
        self._settings = settings
        self._on_decision = on_decision
        self._on_progress = on_progress
        self._arrived = 0
        self._arrived_sampled = 0
        self._ticks = 0
        self._samples: list[Sample] = []
        self._decisions = DecisionCount()

    def run(self) -> Outcome:
        """Replay every arrival, wait for the last request to end and for the tail, and check."""
        self.cluster.begin_with(self._settings.policy.initial_replicas)
        self.events.plan(0.0, self._periodic_tick)
        self.events.plan(self._arrivals[0].at_s, self._arrive)
        while self._arrived < len(self._arrivals) or self.activator.still_open():
            self._step()
        end_s = self.clock.now_s() + self._settings.tail_s
        while (due_s := self.events.next_at_s()) is not None and due_s <= end_s:
            self._step()
        self.clock.advance_to(end_s)
        self._sample()
        return self._outcome()

    def _step(self) -> None:
        at_s, action = self.events.pop()
        self.clock.advance_to(at_s)
        action()

    def _arrive(self) -> None:
        arrival = self._arrivals[self._arrived]
        self._arrived += 1
        if self._arrived < len(self._arrivals):
            self.events.plan(self._arrivals[self._arrived].at_s, self._arrive)
        self.activator.arrive(arrival)

    def _periodic_tick(self) -> None:
        self._tick()
        self._sample()
        self._ticks += 1
        self.events.plan(self._ticks * self._settings.tick_s, self._periodic_tick)
        if self._on_progress is not None:
            self._on_progress(self._arrived)

    def _tick(self, only: Collection[ServiceId] | None = None) -> None:
        for decision in at_once(self.loop.tick(only)):
            refused = self.loop.records[decision.service][-1].refused
            self._decisions.add(decision, refused=refused is not None)
            if self._on_decision is not None:
                self._on_decision(decision)

    def _sample(self) -> None:
        self._samples.append(
            Sample(
                at_s=self.clock.now_s(),
                arrived=self._arrived - self._arrived_sampled,
                held=self.activator.most_held(),
                in_flight=self.activator.holding.in_flight,
                asked=self.cluster.scale_asked,
                ready=self.cluster.count(ReplicaState.READY),
            )
        )
        self._arrived_sampled = self._arrived

    def _outcome(self) -> Outcome:
        fates, replica_seconds = self.activator.fates, self.cluster.replica_seconds()
        check_conserved(
            arrived=self._arrived,
            answered=fates.answered,
            refused=fates.refused,
            expired=fates.expired,
            still_open=self.activator.still_open(),
        )
        check_fluid_bound(
            replica_seconds=replica_seconds,
            bound_replica_seconds=fates.service_s / self._settings.slots,
        )
        return Outcome(
            sent=self._arrived,
            end_s=self.clock.now_s(),
            fates=fates,
            replica_seconds=replica_seconds,
            cold_starts_s=self.cluster.cold_starts_s,
            abandoned_starts=self.cluster.abandoned_starts,
            moves=self.cluster.moves,
            samples=self._samples,
            decisions=self._decisions,
        )
