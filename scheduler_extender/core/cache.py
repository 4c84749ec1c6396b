# SPDX-License-Identifier: Apache-2.0
"""Keeps scores by node and shape class. A row is scored again only when its version has changed.

One pod changes one row, so a decision costs what changed since its class was last looked at, and
only of the rows that are asked for: kube-scheduler often names a part of the cluster.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet, Ints
from scheduler_extender.core.outlook import Outlook
from scheduler_extender.core.score import NO_FIT, scores
from scheduler_extender.core.typical import Typical

MOST_CLASSES = 512  # of 5,000 rows with a score and a version each: 40 MB

Scores = Callable[[Fleet, Demand, Ints, Outlook], Ints]


@dataclass(slots=True)
class _Kept:
    scores: Ints
    version: Ints


class ScoreCache:
    """Scores of `fleet` under `typical`, always those that `by` would give now."""

    def __init__(self, fleet: Fleet, typical: Typical, *, by: Scores = scores) -> None:
        self._fleet = fleet
        self._by = by
        self._kept: OrderedDict[Demand, _Kept] = OrderedDict()
        self._typical = typical
        self._look()

    @property
    def typical(self) -> Typical:
        """What scores go by now."""
        return self._typical

    def expect(self, typical: Typical) -> None:
        """Score by these shapes from now on; forgets all scores where they are others."""
        if typical != self._typical:
            self._typical = typical
            self._look()

    def scores(self, demand: Demand, rows: Ints) -> Ints:
        """A score for each of `rows`. Rows that nobody asked about cost nothing."""
        fleet = self._fleet
        if fleet.generation != self._generation:
            self._look()
        kept = self._kept.get(demand)
        if kept is None:
            kept = _Kept(np.full(fleet.rows, NO_FIT), np.full(fleet.rows, -1))
            self._kept[demand] = kept
            if len(self._kept) > MOST_CLASSES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(demand)
        stale = rows[kept.version[rows] != fleet.version[rows]]
        if len(stale):
            kept.scores[stale] = self._by(fleet, demand, stale, self._outlook)
            kept.version[stale] = fleet.version[stale]
        return kept.scores[rows]

    def _look(self) -> None:
        # What nodes there are decides how scarce a model is, so it touches every score.
        self._outlook = Outlook(self._fleet, self._typical)
        self._generation = self._fleet.generation
        self._kept.clear()
