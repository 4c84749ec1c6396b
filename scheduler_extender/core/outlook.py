# SPDX-License-Identifier: Apache-2.0
"""How much of a node is of use to the pods that are expected. Whole numbers only, so exact.

The fragments of a node are its idle GPUs less what of them the expected pods could use, in the
mean over those pods (Weng et al., "Beware of Fragmentation", USENIX ATC 2023). A pod can use all
cards that are free enough for it, or none if the node cannot host it now.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.gpus import Fleet, Floats, Ints, Mask
from scheduler_extender.core.typical import Typical

_NEVER = 1 << 30  # cards: more than any node has
_SHIFT = 20  # bits for the thousandths of a node's cards; the bits above count cards
_ONE = np.int32(1 << _SHIFT)


@dataclass(frozen=True, slots=True)
class Outlook:
    """The expected shapes as arrays [shapes], against the fleet they are expected on."""

    level: Ints  # index into `levels`
    levels: Ints  # distinct needs of compute, thousandths of a card
    level_mib: Ints  # and of memory
    cards: Ints
    cpu_milli: Ints
    weight: Ints
    allowed: Mask | None  # [models, shapes]; None: all
    contention: Floats  # [models]: GPUs that pods insist on, over GPUs that there are
    cpu_per_gpu: float | None

    @staticmethod
    def of(fleet: Fleet, typical: Typical) -> "Outlook":
        """Look at `fleet` as it is; look again when nodes come or go."""
        shapes = typical.shapes
        needs = [_need(shape) for shape in shapes]
        levels = sorted(set(needs))
        allowed = None
        if any(shape.models for shape in shapes):
            allowed = np.array(
                [[not s.models or model in s.models for s in shapes] for model in fleet.models]
            )
        return Outlook(
            level=np.array([levels.index(need) for need in needs], dtype=np.int64),
            levels=np.array([milli for milli, _ in levels], dtype=np.int64),
            level_mib=np.array([mib for _, mib in levels], dtype=np.int64),
            # A pod without GPUs, or with a MIG instance, can use no idle card.
            cards=np.array([s.cards if s.cards and not s.profile else _NEVER for s in shapes]),
            cpu_milli=np.array([shape.cpu_milli for shape in shapes], dtype=np.int64),
            weight=np.array(typical.weights, dtype=np.int64),
            allowed=allowed,
            contention=_contention(fleet, typical),
            cpu_per_gpu=typical.cpu_per_gpu,
        )

    def usable(self, part: Ints, total_mib: Ints, *, cpu: Floats, model: Ints) -> Ints:
        """Thousandths of GPUs that are of use to the expected pods: [rows], in units of UNIT.

        `part`: thousandths free, [rows, cards]; `total_mib`: the cards' memory; `cpu`: milli free.
        """
        if not len(self.levels):
            return np.zeros(len(part), dtype=np.int64)
        need: Any = self.levels
        if self.level_mib.any():
            total = np.maximum(total_mib, 1)[:, :, None]
            need = np.maximum(need, -(-self.level_mib * WHOLE_MILLI // total))
        # One sum gives both how many cards would host it and how much of them is free.
        free = part.astype(np.int32)[:, :, None]
        sums = np.where(free >= need.astype(np.int32), free + _ONE, 0).sum(axis=1, dtype=np.int32)
        sums = sums[:, self.level]
        enough: Mask = (sums >> _SHIFT) >= self.cards
        enough &= cpu[:, None] >= self.cpu_milli
        if self.allowed is not None:
            enough &= self.allowed[model]
        of_use = (sums & (_ONE - 1)) * enough
        # Every partial sum is a whole number below 2^53, so the floats are exact in any order.
        found: Ints = (of_use.astype(np.float64) @ self.weight.astype(np.float64)).astype(np.int64)
        return found


def free_part(fleet: Fleet, rows: Ints) -> Ints:
    """Thousandths free of each card, of memory or compute, whichever is scarcer: [rows, cards].

    A MIG instance, or a card that may not be used, is nothing to a pod that wants a card.
    """
    total = np.maximum(fleet.memory_total[rows], 1)
    part = np.minimum(fleet.memory_free[rows] * WHOLE_MILLI // total, fleet.milli_free[rows])
    part *= fleet.usable[rows] & (fleet.profile[rows] == 0)
    return part


def fragments(fleet: Fleet, outlook: Outlook, rows: Ints) -> Floats:
    """Idle thousandths of GPUs that the expected pods cannot use, in the mean: [rows]."""
    part = free_part(fleet, rows)
    cpu, model = fleet.cpu_free[rows], fleet.model[rows]
    usable = outlook.usable(part, fleet.memory_total[rows], cpu=cpu, model=model)
    total = max(int(outlook.weight.sum()), 1)
    found: Floats = part.sum(axis=1) - usable / total
    return found


def _need(shape: Demand) -> tuple[int, int]:
    if shape.exclusive:
        return WHOLE_MILLI, 0
    return max(shape.milli, shape.memory_milli, 1), shape.memory_mib


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
