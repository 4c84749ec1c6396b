# SPDX-License-Identifier: Apache-2.0
"""The words of a measurement: a plan has phases, a phase is seen, a turn has two. Only values."""

from dataclasses import dataclass, field

DIRECT = "direct"
_WARM_RATIO = 0.25
_LONGEST_WARM_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often. `duration_s`: the window of one phase, after its warm-up."""

    duration_s: float
    connections: int
    rounds: int

    @property
    def warm_s(self) -> float:
        return min(_LONGEST_WARM_S, self.duration_s * _WARM_RATIO)


@dataclass(frozen=True, slots=True)
class Phase:
    """One measurement. Of these the CPU time during the window is wanted:

    `cpu_of`: processes by name; `cores`: whole cores, whoever used them.
    """

    workload: str
    port: int
    connections: int
    warm_s: float
    duration_s: float
    for_latency: bool
    cpu_of: dict[str, int]
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What one phase measured, over its window alone. Latencies in seconds.

    `p50_s`, `p99_s`: from the request's first byte to the answer's last; for events that are paced,
    from the backend's write to their arrival. `first_p50_s`: to the first byte of a paced stream.
    `paced_events`: how many of those arrived. `cpu_s`: CPU seconds by the names of `Phase.cpu_of`;
    `core_s`: how long each of `Phase.cores` was not idle, in their order, in steps of 10 ms.
    `errors`: how often each kind was met, from the phase's first request to its last.
    """

    seconds: float
    requests: int
    p50_s: float | None
    p99_s: float | None
    first_p50_s: float | None = None
    paced_events: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    core_s: tuple[float, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contender (or `direct`: none in between) did in one round."""

    contender: str
    throughput: Seen
    latency: Seen
