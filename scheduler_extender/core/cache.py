# SPDX-License-Identifier: Apache-2.0
"""Keeps scores by node and shape class. A row is scored again only when its version has changed.

One pod changes one row, so a decision costs what changed since its class was last looked at.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet, Ints
from scheduler_extender.core.score import NO_FIT, scores
from scheduler_extender.core.typical import Typical

MOST_CLASSES = 512  # of 5,000 rows with a score and a version each: 40 MB


@dataclass(slots=True)
class _Kept:
    scores: Ints
    version: Ints


class ScoreCache:
    """Scores of `fleet` under `typical`, always those that `score.scores` would give now."""

    def __init__(self, fleet: Fleet, typical: Typical) -> None:
        self._fleet = fleet
        self._typical = typical
        self._kept: OrderedDict[Demand, _Kept] = OrderedDict()

    def expect(self, typical: Typical) -> None:
        """Score by these shapes from now on; forgets all scores where they are others."""
        if typical != self._typical:
            self._typical = typical
            self._kept.clear()

    def scores(self, demand: Demand) -> Ints:
        """A score for each row of the fleet. Do not write into it."""
        fleet, rows = self._fleet, self._fleet.rows
        kept = self._kept.get(demand)
        if kept is None or len(kept.scores) < rows:
            kept = _Kept(np.full(rows, NO_FIT), np.full(rows, -1))
            self._kept[demand] = kept
            if len(self._kept) > MOST_CLASSES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(demand)
        version = fleet.version[:rows]
        stale = np.flatnonzero(kept.version != version)
        if len(stale):
            kept.scores[stale] = scores(fleet, demand, stale, self._typical)
            kept.version[stale] = version[stale]
        return kept.scores
