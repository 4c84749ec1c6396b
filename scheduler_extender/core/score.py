# SPDX-License-Identifier: Apache-2.0
"""Ranks the nodes that fit. Every ranking has one winner: no tie is left to anybody else.

A score is a whole number; the more the better. `winner` settles equal scores by a fixed order of
the nodes, so that ties fill one node after the other instead of opening all of them a little.
"""

import numpy as np

from scheduler_extender.core.demand import WHOLE_MILLI, Demand, Policy
from scheduler_extender.core.fit import fits
from scheduler_extender.core.gpus import Fleet, Ints
from scheduler_extender.core.typical import Typical

NO_FIT = np.iinfo(np.int64).min


def scores(fleet: Fleet, demand: Demand, rows: Ints, typical: Typical) -> Ints:
    """A score for each of `rows`; NO_FIT where the demand does not fit."""
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    used = _used_milli(fleet, rows)
    if demand.policy is Policy.SPREAD:
        used = -used
    return np.where(fits(fleet, demand, rows), used, NO_FIT)


def winner(scores: Ints, order: Ints) -> int | None:
    """The index of the best score, the lowest in `order` among equals; None where none fits."""
    best = scores.max(initial=NO_FIT)
    if best == NO_FIT:
        return None
    ties = np.flatnonzero(scores == best)
    return int(ties[order[ties].argmin()])


def _used_milli(fleet: Fleet, rows: Ints) -> Ints:
    """Thousandths of the node's GPUs that are in use, of memory or compute, whichever is more."""
    total = np.maximum(fleet.milli_total[rows].sum(axis=1), 1)
    milli = fleet.milli_free[rows].sum(axis=1) * WHOLE_MILLI // total
    memory = fleet.memory_free[rows].sum(axis=1) * WHOLE_MILLI
    memory //= np.maximum(fleet.memory_total[rows].sum(axis=1), 1)
    return WHOLE_MILLI - np.minimum(milli, memory)
