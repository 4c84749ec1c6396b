# SPDX-License-Identifier: Apache-2.0
"""Why a demand does not fit, for thousands of nodes at once; kept until a node's row changes.

The words are the same for all nodes: kube-scheduler counts equal ones and shows users the sums.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.fit import Refusal, fits, permitted
from scheduler_extender.core.gpus import Fleet, Ints, Mask

FITS: Final = 0
REFUSALS: Final = (
    Refusal("", permanent=False),
    Refusal("no GPU", permanent=True),
    Refusal("wrong GPU model", permanent=True),
    Refusal("too few GPUs or MIG instances of the kind asked", permanent=True),
    Refusal("GPU memory too small even when empty", permanent=True),
    Refusal("CPU or memory too small even when empty", permanent=True),
    Refusal("GPUs unhealthy, cordoned or not reserved", permanent=False),
    Refusal("not enough unused GPUs", permanent=False),
    Refusal("GPU slots exhausted", permanent=False),
    Refusal("not enough GPU memory left", permanent=False),
    Refusal("not enough GPU compute left", permanent=False),
    Refusal("not enough CPU or memory left", permanent=False),
)
MOST_CLASSES: Final = 512


def verdicts(fleet: Fleet, demand: Demand, rows: Ints) -> Ints:
    """An index into REFUSALS for each of `rows`, permanent reasons first; FITS where it fits."""
    found = np.zeros(len(rows), dtype=np.int64)
    refused = np.flatnonzero(~fits(fleet, demand, rows))
    if len(refused):
        found[refused] = _reasons(fleet, demand, rows[refused])
    return found


def _reasons(fleet: Fleet, demand: Demand, rows: Ints) -> Ints:
    exists = fleet.milli_total[rows] > 0
    kind = exists
    if demand.profile or len(fleet.profiles) > 1:
        known = fleet.profiles
        wanted = known.index(demand.profile) if demand.profile in known else len(known)
        kind = exists & (fleet.profile[rows] == wanted)
    need = fleet.memory_need(demand, rows)
    usable = kind & fleet.usable[rows]
    slots = usable & (fleet.slots_free[rows] >= 1)
    unused = usable & (fleet.slots_free[rows] == fleet.slots_total[rows])
    memory = slots & (fleet.memory_free[rows] >= need)
    compute = memory & (fleet.milli_free[rows] >= max(min(demand.milli, WHOLE_MILLI), 1))

    def few(cards: Mask) -> Mask:
        return np.asarray(cards.sum(axis=1) < demand.cards)

    whole = np.full(len(rows), demand.exclusive)
    tests = (
        ~exists.any(axis=1) & (demand.cards > 0),
        ~permitted(fleet, demand)[fleet.model[rows]] & (demand.cards > 0),
        few(kind),
        few(kind & (need <= fleet.memory_total[rows])),
        (demand.cpu_milli > fleet.cpu_total[rows]) | (demand.ram_mib > fleet.ram_total[rows]),
        few(usable),
        whole & few(unused),
        few(slots),
        ~whole & few(memory),
        ~whole & few(compute),
    )
    return np.select(tests, range(1, len(tests) + 1), default=len(REFUSALS) - 1)


@dataclass(slots=True)
class _Kept:
    verdicts: Ints
    version: Ints


class VerdictCache:
    """Verdicts of `fleet`, always those that `verdicts` would give now."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept: OrderedDict[Demand, _Kept] = OrderedDict()

    def verdicts(self, demand: Demand, rows: Ints) -> Ints:
        """One for each of `rows`. Rows that nobody asked about cost nothing."""
        fleet = self._fleet
        kept = self._kept.get(demand)
        if kept is None or len(kept.verdicts) < fleet.rows:
            kept = _Kept(np.zeros(fleet.rows, dtype=np.int64), np.full(fleet.rows, -1))
            self._kept[demand] = kept
            if len(self._kept) > MOST_CLASSES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(demand)
        stale = rows[kept.version[rows] != fleet.version[rows]]
        if len(stale):
            kept.verdicts[stale] = verdicts(fleet, demand, stale)
            kept.version[stale] = fleet.version[stale]
        return kept.verdicts[rows]
