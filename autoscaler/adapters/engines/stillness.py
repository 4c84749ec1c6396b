# SPDX-License-Identifier: Apache-2.0
"""Whether a server that has no gauge of what runs does nothing at all. Pure.

Three things together prove it: as many requests ended as began, none was counted meanwhile, and the
process that tells so hardly used a CPU. The first alone misses what a server does not time (an
answer that is generated after the timed part), the last alone what waits for somebody else.
"""

from dataclasses import dataclass, replace
from math import exp
from typing import Final

# A server with nothing to do but its probes and our scrapes uses 0.01; one request computes on 1.
QUIET_CORES: Final = 0.1
CORES_OVER_S: Final = 10.0  # so long are a garbage collection and a slow scrape averaged over
# A request that fails in between has begun and never ends. Once nothing has moved for as long as
# clients of model servers commonly wait at most, nobody waits for it any more.
LOST_AFTER_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Moved:
    """What one look shows. `unended`: requests that began, less those that ended.

    `work_s`: seconds of CPU that the process has used.
    """

    unended: float
    requests: float
    work_s: float


@dataclass(frozen=True, slots=True)
class Stillness:
    """What is remembered of one replica from look to look.

    `lost`: of those that never ended how many nobody waits for; `cores`: how much of CPUs it uses,
    averaged; None after one look.
    """

    seen: Moved
    at_s: float
    moved_at_s: float
    lost: float = 0.0
    cores: float | None = None

    @classmethod
    def first(cls, seen: Moved, *, at_s: float) -> "Stillness":
        return cls(seen, at_s, moved_at_s=at_s)

    @property
    def working(self) -> float | None:
        """0: proven to do nothing; else the requests that never ended, or 1. None: too early."""
        if self.cores is None:
            return None
        return max(self.seen.unended - self.lost, 1.0 if self.cores > QUIET_CORES else 0.0)

    def after(self, seen: Moved, *, at_s: float) -> "Stillness":
        """The next look."""
        if at_s <= self.at_s:
            return self
        if self._began_anew(seen):  # what the process before it lost is not known of this one
            return Stillness.first(seen, at_s=at_s)
        cores = self._cores(seen, at_s)
        counts = (seen.unended, seen.requests) != (self.seen.unended, self.seen.requests)
        moved_at_s = at_s if counts or cores > QUIET_CORES else self.moved_at_s
        over = at_s - moved_at_s >= LOST_AFTER_S
        lost = seen.unended if over else self.lost
        return replace(self, seen=seen, at_s=at_s, moved_at_s=moved_at_s, lost=lost, cores=cores)

    def _began_anew(self, seen: Moved) -> bool:
        return (
            seen.work_s < self.seen.work_s
            or seen.requests < self.seen.requests
            or seen.unended < self.lost
        )

    def _cores(self, seen: Moved, at_s: float) -> float:
        elapsed_s = at_s - self.at_s
        now = (seen.work_s - self.seen.work_s) / elapsed_s
        if self.cores is None:
            return now
        return now + (self.cores - now) * exp(-elapsed_s / CORES_OVER_S)
