# SPDX-License-Identifier: Apache-2.0
"""Which pods would have to go from a node for another to fit its GPUs. Reads only.

Only pods of lower priority that have GPUs: those of the least importance, of them the fewest, and
none that is not needed. A node is judged as it will be once those that are leaving are gone and
those before this pod have what was promised to them. kube-scheduler names victims without knowing
GPUs; those it named go first, and others are added where they are too few.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.fit import cards_that_fit, fits
from scheduler_extender.core.gpus import Fleet, Grant
from scheduler_extender.core.ledger import Stage
from scheduler_extender.preemption.promises import give
from scheduler_extender.state import ClusterState
from scheduler_extender.wire import Victims

# Added to each priority, so that one victim more always weighs more: none may be negative.
_OFFSET: Final = 2**31
_HERE: Final = np.array([0])

Cost = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Occupant:
    """A pod that may be evicted, and what that would free."""

    pod: PodSeen
    grant: Grant

    def size(self, alone: Fleet, card: int) -> float:
        """The part of this card that it has: of memory or compute, whichever is more; 0: none."""
        parts = [part for part in self.grant.parts if part.card == card]
        total = max(int(alone.memory_total[0, card]), 1)
        return max((max(p.memory_mib / total, p.milli / WHOLE_MILLI) for p in parts), default=0.0)


def victims_for(
    state: ClusterState,
    demand: Demand,
    named: Mapping[str, Victims],
    *,
    uid: str,
    priority: int,
) -> dict[str, Victims]:
    """The nodes where it works, each with all its victims, for kube-scheduler."""
    found = {}
    for node, victims in named.items():
        uids = _enough(state, demand, node=node, named=victims.uids, uid=uid, priority=priority)
        if uids:  # kube-scheduler takes a node without victims for an error
            found[node] = Victims(uids, victims.disruptions)
    return found


def _enough(
    state: ClusterState,
    demand: Demand,
    *,
    node: str,
    named: tuple[str, ...],
    uid: str,
    priority: int,
) -> tuple[str, ...]:
    """Nothing where no eviction helps."""
    if node not in state.fleet.row_of:
        return named if not demand.cards else ()
    alone = as_it_will_be(state, node, uid=uid, priority=priority)
    going = state.going(node, state.promises.victims(node))
    for victim in named:
        entry = state.ledger.entry(victim)
        if entry is not None and entry.grant is not None and victim not in going:
            alone.give_back(entry.grant)
    others = evictable(state, node, priority=priority, spared=named)
    added = victims_on(alone, demand, others)
    return () if added is None else (*named, *(pod.uid for pod in added))


def as_it_will_be(state: ClusterState, node: str, *, uid: str, priority: int) -> Fleet:
    """The node by itself, without those that are going and with those that were promised room."""
    alone = state.promises.soon(node)
    give(alone, state.promises.before(uid, priority, node=node))
    return alone


def evictable(
    state: ClusterState, node: str, *, priority: float, spared: Collection[str] = ()
) -> list[Occupant]:
    """Pods on the node of less than this priority whose eviction would free GPUs, by UID."""
    going = state.promises.victims(node)
    found = []
    for pod in state.on(node):
        entry = state.ledger.entry(pod.uid)
        if pod.priority >= priority or pod.leaving or pod.uid in going or pod.uid in spared:
            continue
        if entry is not None and entry.grant is not None and entry.stage is Stage.BOUND:
            found.append(Occupant(pod, entry.grant))
    return sorted(found, key=lambda one: one.pod.uid)


def victims_on(
    alone: Fleet, demand: Demand, occupants: Sequence[Occupant]
) -> tuple[PodSeen, ...] | None:
    """Who of them has to go for `demand` to fit; None where not even all would do.

    Mutates `alone`. Room is made card by card, each time on that where it costs least.
    """
    if not alone.rows:  # the node is gone
        return None
    chosen: list[Occupant] = []
    while not fits(alone, demand, _HERE)[0]:
        left = [one for one in occupants if one not in chosen]
        sets = [
            found
            for card in np.flatnonzero(~cards_that_fit(alone, demand, _HERE)[0]).tolist()
            if (found := _on_card(alone, demand, left, card=card)) is not None
        ]
        if not sets:
            return None
        for one in min(sets, key=lambda found: cost(one.pod for one in found)):
            alone.give_back(one.grant)
            chosen.append(one)
    needed = [one for one in _important_first(chosen) if not _spared(alone, demand, one)]
    return tuple(one.pod for one in needed)


def cost(victims: Iterable[PodSeen]) -> Cost:
    """How bad it is to lose them: the most important one counts most, then their number."""
    priorities = [victim.priority for victim in victims]
    return (
        max(priorities, default=-_OFFSET),
        sum(priority + _OFFSET for priority in priorities),
        len(priorities),
    )


def _on_card(
    alone: Fleet, demand: Demand, occupants: Sequence[Occupant], *, card: int
) -> list[Occupant] | None:
    """Who has to go from this card. `alone` is afterwards as it was."""

    def enough(gone: Sequence[Occupant]) -> bool:
        for one in gone:
            alone.give_back(one.grant)
        found = bool(cards_that_fit(alone, demand, _HERE)[0, card])
        for one in gone:
            alone.take(one.grant)
        return found

    size = {one.pod.uid: one.size(alone, card) for one in occupants}
    here = [one for one in occupants if size[one.pod.uid]]
    here.sort(key=lambda one: one.pod.created, reverse=True)
    here.sort(key=lambda one: (one.pod.priority, -size[one.pod.uid]))
    # 1. The largest of the least important, until it is enough.
    count = next((n for n in range(1, len(here) + 1) if enough(here[:n])), None)
    if count is None:
        return None
    # 2. Spare whom it is not necessary to evict, the most important first.
    gone = here[:count]
    for one in reversed(here[:count]):
        left = [other for other in gone if other is not one]
        gone = left if enough(left) else gone
    # 3. Let a smaller one go in place of a larger one where that does too.
    for one in tuple(gone):
        others = [other for other in gone if other is not one]
        for smaller in reversed(here):
            cheaper = size[smaller.pod.uid] < size[one.pod.uid] and smaller not in gone
            if cheaper and smaller.pod.priority <= one.pod.priority and enough([*others, smaller]):
                gone = [*others, smaller]
                break
    return gone


def _spared(alone: Fleet, demand: Demand, one: Occupant) -> bool:
    """Whether it can stay; it is back then."""
    alone.take(one.grant)
    if fits(alone, demand, _HERE)[0]:
        return True
    alone.give_back(one.grant)
    return False


def _important_first(occupants: Iterable[Occupant]) -> list[Occupant]:
    by_age = sorted(occupants, key=lambda one: (one.pod.created, one.pod.uid))
    return sorted(by_age, key=lambda one: -one.pod.priority)
