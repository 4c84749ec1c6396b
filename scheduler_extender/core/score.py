# SPDX-License-Identifier: Apache-2.0
"""Ranks the nodes that fit. Every ranking has one winner: no tie is left to anybody else.

A score is a whole number; the more the better. `winner` settles equal scores by a fixed order of
the nodes, so that ties fill one node after the other instead of opening all of them a little.

Our own score is a sum in thousandths of a GPU, in steps of a fifth of a GPU:
what the pod takes away from fragments, more where it leaves CPU and GPUs in the proportion that
pods ask for, less on models that other pods insist on. Coarse steps are meant: finer ones scatter
pods over nodes for gains smaller than the noise of the expectation.
"""

import numpy as np

from scheduler_extender.core.assign import linked
from scheduler_extender.core.demand import WHOLE_MILLI, Demand, Policy
from scheduler_extender.core.fit import cards_that_fit, hosts
from scheduler_extender.core.gpus import Fleet, Floats, Ints, Mask, row_sums
from scheduler_extender.core.outlook import Outlook, free_part
from scheduler_extender.core.typical import UNIT

NO_FIT = int(np.iinfo(np.int64).min)
STEP_MILLI = 200.0
BALANCE = 0.2  # of a GPU that stands without its CPU, or CPU without its GPU
MESH = 1 << 32  # more than any other score
CONTENTION = 2.0  # of a GPU of a model that is all claimed: more than fragments ever gain


def scores(fleet: Fleet, demand: Demand, rows: Ints, outlook: Outlook) -> Ints:
    """A score for each of `rows`; NO_FIT where the demand does not fit."""
    found = np.full(len(rows), NO_FIT)
    fit = hosts(fleet, demand, rows)
    if len(fit.at):
        ranked = _RANKING[demand.policy](fleet, demand, rows[fit.at], fit.cards, outlook)
        found[fit.at] = ranked + _by_mesh(fleet, demand, rows[fit.at])
    return found


def winner(scores: Ints, order: Ints) -> int | None:
    """The index of the best score, the lowest in `order` among equals; None where none fits."""
    best = scores.max(initial=NO_FIT)
    if best == NO_FIT:
        return None
    ties = np.flatnonzero(scores == best)
    return int(ties[order[ties].argmin()])


def after(fleet: Fleet, demand: Demand, rows: Ints, part: Ints) -> Ints:
    """`part` as it would be with the demand on its cards of each row: [rows, cards]."""
    ok = cards_that_fit(fleet, demand, rows)
    cards, left = placed(fleet, demand, rows, part=part, ok=ok)
    found = part.copy()
    np.put_along_axis(found, cards, left, axis=1)
    return found


def placed(fleet: Fleet, demand: Demand, rows: Ints, *, part: Ints, ok: Mask) -> tuple[Ints, Ints]:
    """The cards of each row that the demand would get, and what is left of them: [rows, some].

    `ok`: the cards to choose from; `part`: thousandths of each that are free.
    """
    if not demand.cards or demand.profile:
        none = np.zeros((len(rows), 0), dtype=np.int64)
        return none, none
    cards = _tightest(part, ok, count=demand.cards)
    if demand.exclusive:
        return cards, np.zeros_like(cards)
    here = rows[:, None], cards
    need = np.take_along_axis(fleet.memory_need(demand, rows), cards, axis=1)
    total = np.maximum(fleet.memory_total[here], 1)
    memory = (fleet.memory_free[here] - need) * WHOLE_MILLI // total
    return cards, np.minimum(memory, fleet.milli_free[here] - demand.milli)


def _tightest(part: Ints, ok: Mask, *, count: int) -> Ints:
    """Indices of the `count` cards of each row that have the least free, of those that are ok."""
    free = np.where(ok, part, 2 * WHOLE_MILLI)
    if count == 1:
        found: Ints = free.argmin(axis=1)[:, None]
    else:
        found = free.argsort(axis=1, kind="stable")[:, :count]
    return found


def _by_fragments(fleet: Fleet, demand: Demand, rows: Ints, ok: Mask, outlook: Outlook) -> Ints:
    now = outlook.now(rows)
    cards, left = placed(fleet, demand, rows, part=now.part, ok=ok)
    taken = row_sums(np.take_along_axis(now.part, cards, axis=1) - left)
    cpu = fleet.cpu_free[rows]
    usable = outlook.usable_after(now, cards, left, cpu=cpu - demand.cpu_milli)
    gain = taken - (now.usable - usable) / UNIT
    if outlook.cpu_per_gpu is not None:
        gain += BALANCE * (
            _imbalance(cpu, now.idle, outlook.cpu_per_gpu)
            - _imbalance(cpu - demand.cpu_milli, now.idle - taken, outlook.cpu_per_gpu)
        )
    # Squared: a claim on a little of a model costs next to nothing, so a poor guess does no harm.
    gain -= CONTENTION * outlook.contention[fleet.model[rows]] ** 2 * taken
    steps: Ints = np.rint(gain / STEP_MILLI).astype(np.int64)
    return steps


def _imbalance(cpu: Floats, idle: Ints, cpu_per_gpu: float) -> Floats:
    """Thousandths of GPUs without their CPU, or the other way round; 0 where CPU is not known."""
    known = np.isfinite(cpu)
    found: Floats = np.abs(np.where(known, cpu / cpu_per_gpu - idle, 0.0))
    return found


def _by_use(fleet: Fleet, demand: Demand, rows: Ints, ok: Mask, outlook: Outlook) -> Ints:
    """Thousandths of the node's GPUs that are in use."""
    cards = np.maximum((fleet.milli_total[rows] > 0).sum(axis=1), 1)
    used: Ints = WHOLE_MILLI - free_part(fleet, rows).sum(axis=1) // cards
    return used


def _by_idleness(fleet: Fleet, demand: Demand, rows: Ints, ok: Mask, outlook: Outlook) -> Ints:
    return -_by_use(fleet, demand, rows, ok, outlook)


def _by_links(fleet: Fleet, demand: Demand, rows: Ints, ok: Mask, outlook: Outlook) -> Ints:
    """The links among the cards that the demand would get; 0 where a node tells of none."""
    return np.array([linked(fleet, demand, int(row)) for row in rows], dtype=np.int64)


def _by_mesh(fleet: Fleet, demand: Demand, rows: Ints) -> Ints | int:
    """Pods of the mesh weigh more than anything else: to be beside them, or apart from them."""
    if not demand.mesh:
        return 0
    beside = np.array([fleet.mesh_pods[demand.mesh, int(row)] for row in rows], dtype=np.int64)
    return -beside * MESH if demand.apart else (beside > 0) * MESH


_RANKING = {
    Policy.TIDEGATE: _by_fragments,
    Policy.BINPACK: _by_use,
    Policy.SPREAD: _by_idleness,
    Policy.TOPOLOGY: _by_links,
}
