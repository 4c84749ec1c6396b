# SPDX-License-Identifier: Apache-2.0
"""A service's lead time: from deciding to a replica being ready, learned from what was seen."""

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import ceil

from autoscaler.core.replicas import Replica, ReplicaState

# Enough for a steady 90th percentile, few enough that a new image shows within a day or two.
KEPT_OBSERVATIONS = 64
# From a small model on one machine to weights that are fetched from afar.
SPREAD_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0)


@dataclass(frozen=True, slots=True)
class LeadTimes:
    """The last starts of one service in seconds, newest last."""

    observed_s: tuple[float, ...] = ()

    def learn(self, lead_s: float) -> "LeadTimes":
        if lead_s < 0:  # a clock that went back teaches nothing
            return self
        return replace(self, observed_s=(*self.observed_s, lead_s)[-KEPT_OBSERVATIONS:])

    def quantile(self, q: float) -> float | None:
        """The smallest observation that a part `q` (0-1] of them does not exceed; None: unknown."""
        if not self.observed_s:
            return None
        ranked = sorted(self.observed_s)
        return ranked[max(ceil(q * len(ranked)), 1) - 1]


@dataclass(frozen=True, slots=True)
class StartsSeen:
    """Which starts have been learned from, so that each counts once: (replica id, ready_at_s).

    `total`: how many starts ended since the first look, of which `LeadTimes` keeps the newest.
    `spread`: how many of them took up to each bound of `SPREAD_S` and longer than the one before,
    the last: longer than all; `lead_s`: their sum.
    """

    counted: frozenset[tuple[str, float]] | None = None
    total: int = 0
    spread: tuple[int, ...] = (0,) * (len(SPREAD_S) + 1)
    lead_s: float = 0.0


def learn_from(
    replicas: Collection[Replica], *, seen: StartsSeen, lead_times: LeadTimes
) -> tuple[LeadTimes, StartsSeen]:
    """Learn each start that ended since the last look.

    Replicas that were ready at the very first look are counted but not learned from: when they were
    asked for, nobody here was watching.
    """
    ready = {
        (replica.id, replica.ready_at_s): replica
        for replica in replicas
        if replica.state is ReplicaState.READY and replica.ready_at_s is not None
    }
    if seen.counted is None:
        return lead_times, StartsSeen(frozenset(ready))
    new = sorted(ready.keys() - seen.counted, key=lambda key: key[1])
    spread, lead_s = list(seen.spread), seen.lead_s
    for key in new:
        took_s = key[1] - ready[key].asked_at_s
        lead_times = lead_times.learn(took_s)
        spread[bisect_left(SPREAD_S, took_s)] += 1
        lead_s += max(took_s, 0.0)
    # A replica that falls silent and comes back has not started twice.
    there = {replica.id for replica in replicas}
    counted = frozenset(ready) | {key for key in seen.counted if key[0] in there}
    return lead_times, StartsSeen(counted, seen.total + len(new), tuple(spread), lead_s)
