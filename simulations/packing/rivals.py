# SPDX-License-Identifier: Apache-2.0
"""Known ways to rank nodes, to compare with. The shipped extender offers none of them.

Each ranks in the whole numbers that its authors' programs use, plateaus included, since these
decide as much as the formula. Source: the formulas of github.com/hkust-adsl/
kubernetes-scheduler-simulator, folder pkg/simulator/plugin.
"""

import numpy as np

from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.fit import cards_that_fit, fits
from scheduler_extender.core.gpus import Fleet, Floats, Ints
from scheduler_extender.core.outlook import Outlook, free_part
from scheduler_extender.core.score import NO_FIT, after

CPU_MILLI, GPU_MILLI = 128_000, 8_000  # of the largest node: what the authors divide by


def fgd(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
    """Fragmentation gradient descent: what the pod takes from fragments, through a sigmoid."""
    found = np.full(len(rows), NO_FIT)
    fit = np.flatnonzero(fits(fleet, demand, rows))
    if len(fit):
        found[fit] = _plateaus(gradients(fleet, demand, rows[fit], outlook).max(axis=1))
    return found


def fgd_card(fleet: Fleet, demand: Demand, row: int, outlook: Outlook) -> tuple[int, ...]:
    """The card of `row` on which a share ranked best."""
    marks = _plateaus(gradients(fleet, demand, np.array([row]), outlook)[0])
    return (int(marks.argmax()),)


def gradients(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Floats:
    """Thousandths of GPUs that stop to be fragments: [rows, choices]; -inf where it cannot be.

    A share may choose its card; what asks for more has one choice.
    """
    now = free_part(fleet, rows)
    if demand.cards != 1 or demand.exclusive:
        choices = after(fleet, demand, rows, now)[:, None, :]
        possible = np.ones((len(rows), 1), dtype=np.bool_)
    else:
        width = now.shape[1]
        choices = now[:, None, :] - demand.milli * np.eye(width, dtype=np.int64)
        possible = cards_that_fit(fleet, demand, rows)
        # A card that is like one before it ranks the same, and the first of the best is taken.
        alike = (now[:, :, None] == now[:, None, :]) & np.tri(width, k=-1, dtype=np.bool_)
        possible &= ~(alike & possible[:, None, :]).any(axis=2)
    here, choice = np.nonzero(possible)
    cpu = fleet.cpu_free[rows[here]] - demand.cpu_milli
    then = outlook.usable(rows[here], choices[here, choice], cpu=cpu)
    before = outlook.now(rows).usable
    found = np.full(possible.shape, -np.inf)
    taken = demand.cards * demand.milli
    found[here, choice] = taken - (before[here] - then) / outlook.total
    return found


def _plateaus(gain_milli: Floats) -> Ints:
    marks: Ints = (100 / (1 + np.exp(-np.maximum(gain_milli, -1e5) / WHOLE_MILLI))).astype(np.int64)
    return np.where(np.isneginf(gain_milli), -1, marks)


def bestfit(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
    """The least CPU and GPU left over."""
    cpu = (fleet.cpu_free[rows] - demand.cpu_milli) / CPU_MILLI
    gpu = (_idle(fleet, rows) - demand.gpu_milli) / GPU_MILLI
    return _fitting(fleet, demand, rows, 100 * (1 - (cpu + gpu) / 2))


def dotprod(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
    """What is asked and what is there, as vectors of CPU and GPU, point apart."""
    cpu = fleet.cpu_free[rows] / CPU_MILLI * demand.cpu_milli / CPU_MILLI
    gpu = _idle(fleet, rows) / GPU_MILLI * demand.gpu_milli / GPU_MILLI
    return _fitting(fleet, demand, rows, 100 * (1 - (cpu + gpu) / 2))


def gpupacking(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
    """Used cards first, then idle cards of used nodes, then idle nodes with few cards."""
    part = free_part(fleet, rows)
    exists = fleet.milli_total[rows] > 0
    chosen = after(fleet, demand, rows, part) != part
    idle_chosen = (chosen & (part == WHOLE_MILLI)).sum(axis=1)
    left = np.where(chosen, part // 10, 0).sum(axis=1) // 10
    cards = exists.sum(axis=1)
    marks = np.where(idle_chosen, np.maximum(50 - idle_chosen, 33), np.maximum(100 - left, 50))
    idle_node = (part == WHOLE_MILLI).sum(axis=1) == cards
    marks = np.where(idle_node, np.maximum(33 - cards, cards), marks)
    return _fitting(fleet, demand, rows, marks * (demand.cards > 0))


class GpuClustering:
    """Pods of one kind together: a kind is a number of cards, or a share. Keeps count of kinds."""

    def __init__(self, fleet: Fleet) -> None:
        self._kinds: dict[int, set[int]] = {row: set() for row in range(fleet.rows)}

    def placed(self, demand: Demand, row: int) -> None:
        if demand.cards:
            self._kinds[row].add(_kind(demand))

    def __call__(self, fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
        base = np.array([self._base(demand, int(row)) for row in rows], dtype=np.int64)
        marks = 25 * (GPU_MILLI - _idle(fleet, rows)) // GPU_MILLI + base
        return _fitting(fleet, demand, rows, marks * (demand.cards > 0))

    def _base(self, demand: Demand, row: int) -> int:
        kinds = self._kinds[row]
        if _kind(demand) in kinds:
            return 75 if len(kinds) == 1 else 50
        return 0 if kinds else 25


def _kind(demand: Demand) -> int:
    return demand.cards if demand.exclusive else 0


def random(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
    """All nodes that fit are alike; chance decides among them."""
    return _fitting(fleet, demand, rows, np.zeros(len(rows)))


def _idle(fleet: Fleet, rows: Ints) -> Ints:
    idle: Ints = free_part(fleet, rows).sum(axis=1)
    return idle


def _fitting(fleet: Fleet, demand: Demand, rows: Ints, marks: Floats | Ints) -> Ints:
    return np.where(fits(fleet, demand, rows), marks.astype(np.int64), NO_FIT)
