# SPDX-License-Identifier: Apache-2.0
"""How much of a node is of use to the pods that are expected. Whole numbers only, so exact.

The fragments of a node are its idle GPUs less what of them the expected pods could use, in the
mean over those pods (Weng et al., "Beware of Fragmentation", USENIX ATC 2023). A pod can use all
cards that are free enough for it, or none if the node cannot host it now.

Shapes that need the same of a card share a level. A row is summed up as one number a level: how
many of its cards are free enough, and how much of them is free. All else is looked up by those.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.gpus import Fleet, Floats, Ints, row_sums
from scheduler_extender.core.typical import Typical

Sums = NDArray[np.int32]

_SHIFT = 20  # bits for the thousandths of a node's cards; the bits above count cards
_ONE = np.int32(1 << _SHIFT)
_MOST_MIB = 1 << 40  # of a card: no need is more, so that it may be multiplied


@dataclass(frozen=True, slots=True)
class Standing:
    """Rows as they are now."""

    rows: Ints
    sums: Sums  # of their cards at each level: [rows, levels]
    part: Ints  # thousandths free of each card: [rows, cards]
    idle: Ints  # and of all cards
    usable: Ints  # what of that is of use to the expected pods, in units of UNIT


class Outlook:
    """The expected shapes, against the fleet they are expected on; good until nodes come or go.

    What is known of a row is kept until its version changes.
    """

    def __init__(self, fleet: Fleet, typical: Typical) -> None:
        self.cpu_per_gpu = typical.cpu_per_gpu
        # [models]: GPUs that pods insist on, over GPUs that there are.
        self.contention = _contention(fleet, typical)
        self.total = max(sum(typical.weights), 1)
        self._fleet = fleet
        # A pod without GPUs, or with a MIG instance, can use no idle card.
        weighed = zip(typical.shapes, typical.weights, strict=True)
        shapes = [(shape, weight) for shape, weight in weighed if shape.cards and not shape.profile]
        levels = sorted({_need(shape) for shape, _ in shapes})
        self._need = _needs(fleet, levels)
        self._cpus = np.array(sorted({shape.cpu_milli for shape, _ in shapes}), dtype=np.float64)
        self._by_model = any(shape.models for shape, _ in shapes)
        self._weight = self._weights(shapes, levels)
        # What is kept of each row, and the version that it is of.
        self._version = np.full(fleet.rows, -1)
        self._part = np.zeros((fleet.rows, fleet.width), dtype=np.int64)
        self._idle = np.zeros(fleet.rows, dtype=np.int64)
        self._sums = np.zeros((fleet.rows, len(levels)), dtype=np.int32)
        self._usable = np.zeros(fleet.rows, dtype=np.int64)

    def now(self, rows: Ints) -> Standing:
        """These rows as they are."""
        fleet = self._fleet
        stale = rows[self._version.take(rows) != fleet.version.take(rows)]
        if len(stale):
            part = free_part(fleet, stale)
            sums = self._counted(fleet.size.take(stale, axis=0), part)
            self._part[stale], self._idle[stale] = part, row_sums(part)
            self._sums[stale] = sums
            self._usable[stale] = self._of_use(stale, sums, fleet.cpu_free[stale])
            self._version[stale] = fleet.version[stale]
        return Standing(
            rows,
            self._sums.take(rows, axis=0),
            self._part.take(rows, axis=0),
            self._idle.take(rows),
            self._usable.take(rows),
        )

    def usable(self, rows: Ints, part: Ints, *, cpu: Floats) -> Ints:
        """What would be of use of these rows, were `part` of their cards and `cpu` milli free."""
        return self._of_use(rows, self._counted(self._fleet.size.take(rows, axis=0), part), cpu)

    def usable_after(self, now: Standing, cards: Ints, left: Ints, *, cpu: Floats) -> Ints:
        """The same, where only these cards of each row change, to what is `left`: [rows, some]."""
        size = self._fleet.size[now.rows[:, None], cards]
        before = np.take_along_axis(now.part, cards, axis=1)
        sums = now.sums + self._counted(size, left) - self._counted(size, before)
        return self._of_use(now.rows, sums, cpu)

    def _counted(self, size: Ints, part: Ints) -> Sums:
        """Cards that are free enough for each level, and how much of them is: [rows, levels]."""
        free = part.astype(np.int32)[:, :, None]
        # Multiplied, for a choice by `where` takes far longer.
        sums: Sums = row_sums((free >= self._need.take(size, axis=0)) * (free + _ONE))
        return sums

    def _of_use(self, rows: Ints, sums: Sums, cpu: Floats) -> Ints:
        """What is free at each level, times the weight of the pods of that level that fit."""
        _, levels, counts = self._weight.shape
        host: Any = np.searchsorted(self._cpus, cpu, side="right")
        if self._by_model:
            host += (len(self._cpus) + 1) * self._fleet.model[rows]
        at = host[:, None] * (levels * counts) + np.arange(0, levels * counts, counts)
        at += sums >> _SHIFT
        found: Ints = np.einsum("ij,ij->i", self._weight.take(at), sums & (_ONE - 1))
        return found

    def _weights(self, shapes: list[tuple[Demand, int]], levels: list[tuple[int, int]]) -> Ints:
        """Weight of the shapes that can be hosted: [models and CPU, levels, cards free enough].

        By the host's model and how many of the CPU needs it has room for.
        """
        models = self._fleet.models if self._by_model else [""]
        cpus, counts = len(self._cpus) + 1, self._fleet.width + 1
        by_host = np.zeros((len(models), cpus, len(levels), counts), dtype=np.int64)
        for shape, weight in shapes:
            may = [not shape.models or model in shape.models for model in models]
            room = int(np.searchsorted(self._cpus, shape.cpu_milli, side="right"))
            by_host[may, room:, levels.index(_need(shape)), shape.cards :] += weight
        return by_host.reshape(len(models) * cpus, len(levels), counts)


def free_part(fleet: Fleet, rows: Ints) -> Ints:
    """Thousandths free of each card, of memory or compute, whichever is scarcer: [rows, cards].

    A MIG instance, or a card that may not be used, is nothing to a pod that wants a card.
    """
    total = np.maximum(fleet.memory_total.take(rows, axis=0), 1)
    memory = fleet.memory_free.take(rows, axis=0) * WHOLE_MILLI // total
    part: Ints = np.minimum(memory, fleet.milli_free.take(rows, axis=0))
    part *= fleet.usable.take(rows, axis=0) & (fleet.profile.take(rows, axis=0) == 0)
    return part


def fragments(outlook: Outlook, rows: Ints) -> Floats:
    """Idle thousandths of GPUs that the expected pods cannot use, in the mean: [rows]."""
    now = outlook.now(rows)
    found: Floats = now.idle - now.usable / outlook.total
    return found


def _need(shape: Demand) -> tuple[int, int]:
    """Of one card: thousandths of its compute, and MiB."""
    if shape.exclusive:
        return WHOLE_MILLI, 0
    return max(shape.milli, shape.memory_milli, 1), shape.memory_mib


def _needs(fleet: Fleet, levels: list[tuple[int, int]]) -> Sums:
    """In thousandths of a card of each size: [sizes, levels]."""
    total = np.maximum(np.array(list(fleet.sizes), dtype=np.int64), 1)[:, None]
    milli = np.array([milli for milli, _ in levels], dtype=np.int64)
    mib = np.array([min(mib, _MOST_MIB) for _, mib in levels], dtype=np.int64)
    need = np.maximum(milli, -(-mib * WHOLE_MILLI // total))
    return np.minimum(need, 2 * WHOLE_MILLI).astype(np.int32)


def _contention(fleet: Fleet, typical: Typical) -> Floats:
    """By model: how much of it pods that may have no other would take of a full cluster."""
    rows = fleet.all_rows()
    cards = (fleet.milli_total[rows] > 0).sum(axis=1)
    capacity = np.bincount(fleet.model[rows], weights=cards, minlength=len(fleet.models))
    claimed = np.zeros(len(fleet.models))
    for models, part in typical.claims:
        permitted = np.array([model in models for model in fleet.models])
        claimed += permitted * part * capacity.sum() / max(capacity[permitted].sum(), 1)
    return claimed
