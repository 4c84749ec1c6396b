# SPDX-License-Identifier: Apache-2.0
"""On which nodes evictions would make room, for thousands of nodes at once. Reads the state only.

What pods could free is kept by priority and card. A node is counted anew when its row has changed,
and that is where the time goes: `count` says how much is left, so that others may go first.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np

from scheduler_extender.backoff import Backoff
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import cards_that_fit, fits
from scheduler_extender.core.gpus import Fleet, Grant, Ints, Mask
from scheduler_extender.preemption.promises import give
from scheduler_extender.preemption.victims import evictable
from scheduler_extender.state import ClusterState

AT_ONCE: Final = 20  # nodes counted between two breaths
# Whom the API server does not let us evict, by a budget as a rule, is left alone so long, and twice
# as long each time that it says so again.
SPARED_S: Final = 30.0
MOST_SPARED_S: Final = 300.0
_FREE: Final = ("memory_free", "milli_free", "slots_free")


@dataclass(frozen=True, slots=True)
class _Level:
    """What the pods of one priority would free: [rows, cards], as the fleet's arrays."""

    memory: Ints
    milli: Ints
    slots: Ints

    def add(self, row: int, grant: Grant) -> None:
        for part in grant.parts:
            self.memory[row, part.card] += part.memory_mib
            self.milli[row, part.card] += part.milli
            self.slots[row, part.card] += 1


class LowerPods:
    """Who could go, all nodes together."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._levels: dict[int, _Level] = {}  # by priority
        self._counted = state.fleet.version[:0].copy()  # the version of each row when it was
        self._spared: dict[str, tuple[str, float]] = {}  # by UID: node, until when
        self._refusals = Backoff(first_s=SPARED_S, most_s=MOST_SPARED_S)

    @property
    def least(self) -> float:
        """The lowest priority that was ever counted."""
        return min(self._levels, default=inf)

    @property
    def spared(self) -> Mapping[str, tuple[str, float]]:
        return self._spared

    def spare(self, uid: str, node: str, *, now_s: float) -> None:
        """It cannot be evicted for now."""
        self._refusals.again(uid, now_s=now_s)
        self._spared[uid] = node, self._refusals.until_s(uid)
        self._stale(node)

    def look(self, *, now_s: float) -> None:
        self._refusals.look(now_s=now_s)
        for uid, (node, until_s) in tuple(self._spared.items()):
            if until_s <= now_s:
                del self._spared[uid]
                self._stale(node)

    def count(self, most: int = AT_ONCE) -> bool:
        """Count some rows that have changed; whether there may be more."""
        fleet = self._state.fleet
        shape = fleet.memory_free.shape
        if any(level.memory.shape != shape for level in self._levels.values()):
            self._levels.clear()
            self._counted = self._counted[:0]
        if len(self._counted) < shape[0]:
            more = np.full(shape[0] - len(self._counted), -1)
            self._counted = np.concatenate([self._counted, more])
        stale = np.flatnonzero(self._counted[: fleet.rows] != fleet.version[: fleet.rows])
        for row in stale[:most].tolist():
            self._count(row)
        return len(stale) > most

    def rows(self, fleet: Fleet, demand: Demand, among: Ints, *, priority: int) -> Ints:
        """Where pods of the least importance that will do could go, the most promising first.

        Mutates `fleet`: it has what they would free.
        """
        without = cards_that_fit(fleet, demand, among)
        freed = np.zeros_like(fleet.slots_free)
        for importance in sorted(self._levels):
            if importance >= priority:
                break
            level = self._levels[importance]
            fleet.memory_free += level.memory
            fleet.milli_free += level.milli
            fleet.slots_free += level.slots
            freed += level.slots
            found = fits(fleet, demand, among)
            if found.any():
                loss = _loss(fleet, demand, among[found], freed=freed, without=without[found])
                return among[found][np.lexsort((self._state.fleet.order()[among[found]], loss))]
        return among[:0]

    def _count(self, row: int) -> None:
        fleet = self._state.fleet
        self._counted[row] = fleet.version[row]
        for level in self._levels.values():
            level.memory[row] = level.milli[row] = level.slots[row] = 0
        for one in evictable(self._state, fleet.names[row], priority=inf, spared=self._spared):
            if one.pod.priority not in self._levels:
                zeros = (np.zeros_like(fleet.memory_free) for _ in range(3))
                self._levels[one.pod.priority] = _Level(*zeros)
            self._levels[one.pod.priority].add(row, one.grant)

    def _stale(self, node: str) -> None:
        row = self._state.fleet.row_of.get(node)
        if row is not None and row < len(self._counted):
            self._counted[row] = -1


def _loss(fleet: Fleet, demand: Demand, rows: Ints, *, freed: Ints, without: Mask) -> Ints:
    """About how many pods would go from each row: only to say where to look closely first."""
    fitting = cards_that_fit(fleet, demand, rows)
    each = freed[rows] if demand.exclusive else np.ones_like(freed[rows])
    each = np.where(without, 0, np.where(fitting, each, 2**20))
    found: Ints = np.sort(each, axis=1)[:, : demand.cards].sum(axis=1)
    return found


def as_all_will_be(state: ClusterState, *, uid: str, priority: int) -> tuple[Fleet, Fleet]:
    """All nodes as they are now, and once those that leave are gone and promises are kept.

    Without CPU and memory, which are kube-scheduler's to judge. The former is to be read only, the
    free amounts of the latter may be changed.
    """
    now = copy(state.fleet)
    now.cpu_free = now.ram_free = np.full_like(state.fleet.cpu_free, inf)
    soon = copy(now)
    for name in _FREE:
        setattr(soon, name, getattr(now, name).copy())
    for node in {*state.leaving_on(), *(promise.node for promise in state.promises)}:
        row = soon.row_of.get(node)
        if row is None:
            continue
        alone = state.promises.soon(node)
        give(alone, state.promises.before(uid, priority, node=node))
        for name in _FREE:
            getattr(soon, name)[row] = getattr(alone, name)[0]
    return now, soon
