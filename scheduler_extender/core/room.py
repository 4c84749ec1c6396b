# SPDX-License-Identifier: Apache-2.0
"""How many pods of one demand a fleet has room for: what the autoscaler may still ask for."""

import numpy as np

from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import cards_that_fit, fits
from scheduler_extender.core.gpus import Fleet, Floats, Ints


def how_many_fit(fleet: Fleet, demand: Demand) -> int:
    """How many pods with this demand fit beside what is there. A demand for nothing counts as 0."""
    rows = np.flatnonzero(fits(fleet, demand, fleet.all_rows()))
    if not len(rows):
        return 0
    room = _by_host(fleet, demand, rows)
    if demand.cards:
        room = np.minimum(room, _by_cards(_on_each_card(fleet, demand, rows), count=demand.cards))
    return int(room[np.isfinite(room)].sum())


def _by_host(fleet: Fleet, demand: Demand, rows: Ints) -> Floats:
    room = np.full(len(rows), np.inf)
    if demand.cpu_milli:
        room = np.minimum(room, np.floor(fleet.cpu_free[rows] / demand.cpu_milli))
    if demand.ram_mib:
        room = np.minimum(room, np.floor(fleet.ram_free[rows] / demand.ram_mib))
    return room


def _on_each_card(fleet: Fleet, demand: Demand, rows: Ints) -> Ints:
    """How many parts of the demand each card could take: [rows, cards]."""
    ok = cards_that_fit(fleet, demand, rows)
    if demand.exclusive:
        return ok.astype(np.int64)
    room = fleet.slots_free[rows].copy()
    if demand.milli:
        room = np.minimum(room, fleet.milli_free[rows] // demand.milli)
    need = fleet.memory_need(demand, rows)
    room = np.minimum(
        room, np.where(need > 0, fleet.memory_free[rows] // np.maximum(need, 1), room)
    )
    return room * ok


def _by_cards(room: Ints, *, count: int) -> Ints:
    """How many sets of `count` different cards there are, when each card is good for its `room`.

    `n` sets are possible exactly if all cards together give `n * count`, none more than `n`.
    """
    if count == 1:
        total: Ints = room.sum(axis=1)
        return total
    found = np.zeros(len(room), dtype=np.int64)
    for sets in range(1, int(room.sum(axis=1).max(initial=0)) // count + 1):
        found[np.minimum(room, sets).sum(axis=1) >= sets * count] = sets
    return found
