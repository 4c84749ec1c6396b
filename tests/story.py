# SPDX-License-Identifier: Apache-2.0
"""Play demand against `decide` second by second, as tapes and properties do.

A story's levels hold for the time up to its line, so integrals grow as an activator's do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.core.decide import Decision, ServiceMemory, decide, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.signals import Measure, NoReading, Quantity, Reading, ServiceSnapshot
from tests.builders import A_SERVICE

LEVELS = (
    "concurrency",
    "held",
    "waiting",
    "rps",
    "tokens/s",
    "asked/s",
    "open-ended/s",
    "held-tokens",
    "open-ended",
)


GROWS: dict[str, Measure] = {
    "concurrency": Measure.REQUEST_SECONDS_TOTAL,
    "held": Measure.HELD_SECONDS_TOTAL,
    "rps": Measure.REQUESTS_TOTAL,
    "tokens/s": Measure.TOKENS_TOTAL,
    "asked/s": Measure.OUTPUT_TOKENS_ASKED_TOTAL,
    "open-ended/s": Measure.OPEN_ENDED_TOTAL,
}
BLINDS = {
    "concurrency": (Measure.REQUEST_SECONDS_TOTAL, Measure.IN_FLIGHT),
    "held": (Measure.HELD_SECONDS_TOTAL, Measure.HELD),
    "waiting": (Measure.WAITING,),
    "rps": (Measure.REQUESTS_TOTAL,),
    "tokens/s": (Measure.TOKENS_TOTAL,),
    "asked/s": (Measure.OUTPUT_TOKENS_ASKED_TOTAL,),
    "open-ended/s": (Measure.OPEN_ENDED_TOTAL,),
    "held-tokens": (Measure.HELD_OUTPUT_TOKENS,),
    "open-ended": (Measure.HELD_OPEN_ENDED,),
}


@dataclass
class Story:
    """One service under one policy; `play` is one tick."""

    policy: ServicePolicy
    scale: int = 0
    now_s: float = 0.0
    totals: dict[Measure, float] = field(default_factory=lambda: dict.fromkeys(GROWS.values(), 0.0))
    memory: ServiceMemory | None = None
    replicas: dict[int, Replica] = field(default_factory=dict)
    path_held: bool = True

    def play(
        self,
        at_s: float,
        levels: Mapping[str, float | None],
        *,
        ready: int | None = None,
    ) -> Decision:
        """Let `levels` hold until `at_s`, then decide; None in a level: it could not be read.

        `ready`: how many of the replicas are ready by then (all, when not said).
        """
        snapshot = self._snapshot(at_s, levels, self.scale if ready is None else ready)
        memory = self.memory or first_memory(snapshot, LeadTimes())
        decision, self.memory = decide(snapshot, self.policy, memory, at_s)
        self.scale = decision.replicas
        return decision

    def _snapshot(
        self, at_s: float, levels: Mapping[str, float | None], ready: int
    ) -> ServiceSnapshot:
        elapsed_s, self.now_s = at_s - self.now_s, at_s
        blind = {name for name in levels if levels[name] is None}
        known = {name: levels.get(name) or 0.0 for name in LEVELS}
        for name, measure in GROWS.items():
            self.totals[measure] += known[name] * max(elapsed_s, 0.0)
        numbers = self.totals | {
            Measure.HELD: known["held"],
            Measure.IN_FLIGHT: max(known["concurrency"] - known["held"], 0.0),
            Measure.WAITING: known["waiting"],
            Measure.HELD_OUTPUT_TOKENS: known["held-tokens"],
            Measure.HELD_OPEN_ENDED: known["open-ended"],
        }
        measures: dict[Quantity, Reading | NoReading] = {
            measure: Reading(value, at_s, "test") for measure, value in numbers.items()
        }
        for name in blind:
            for measure in BLINDS[name]:
                measures[measure] = NoReading("scrape timed out")
        return ServiceSnapshot(
            service=A_SERVICE,
            at_s=at_s,
            generation=1,
            scale=self.scale,
            replicas=self._replicas(at_s, ready),
            measures=measures,
            path_held=self.path_held,
        )

    def _replicas(self, at_s: float, ready: int) -> tuple[Replica, ...]:
        for n in range(self.scale):
            replica = self.replicas.setdefault(n, Replica(f"r{n}", ReplicaState.STARTING, at_s))
            if n < ready and replica.state is ReplicaState.STARTING:
                self.replicas[n] = Replica(replica.id, ReplicaState.READY, replica.asked_at_s, at_s)
            elif n >= ready and replica.state is ReplicaState.READY:
                self.replicas[n] = Replica(replica.id, ReplicaState.STARTING, at_s)
        for gone in [n for n in self.replicas if n >= self.scale]:
            del self.replicas[gone]
        return tuple(self.replicas[n] for n in sorted(self.replicas))
