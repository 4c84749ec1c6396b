# SPDX-License-Identifier: Apache-2.0
"""Caps what all services of one tick wish by the GPUs that are free. A cap never lowers a count.

The replicas that were asked for before and stand on no node yet come first. Then, one replica at a
time: up to a service's floor; then where requests are held; then the rest; and in a dry run last,
for those are asked for by nobody. Of services that are alike the one with the fewest replicas more
than it has now, then the first by name. What is not known caps nothing (rule D1): no GPU that was
not seen keeps a service asleep.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace

import numpy as np

from autoscaler.core.decide import Decision
from autoscaler.core.proposal import Bound
from autoscaler.core.signals import NoReading, ServiceId
from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.fit import cards_that_fit, fits, permitted
from scheduler_extender.core.gpus import Fleet, Mask

MIB_PER_GIB = 1024
NO_ROOM = "no free GPU has room for more"  # without numbers: people's tools show it as it stands


@dataclass(frozen=True, slots=True)
class Room:
    """The GPUs as they are. `awaited`: for each replica that was asked for and is on no node yet,
    what it will take.
    """

    fleet: Fleet
    awaited: Sequence[Demand] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A count that is to rise, and what each new replica takes.

    `floor`: the count below which the service must not stand. `held`: requests wait for it.
    """

    decision: Decision
    needs: Demand
    floor: int = 0
    held: bool = False


@dataclass(slots=True)
class _Turn:
    """How far one claim has come."""

    claim: Claim
    got: int = 0


def capped(claims: Iterable[Claim], room: Room | NoReading) -> Mapping[ServiceId, Decision]:
    """The decisions of all claims, each within what fits beside the others."""
    claims = sorted(claims, key=lambda claim: str(claim.decision.service))
    if isinstance(room, NoReading):
        return {claim.decision.service: claim.decision for claim in claims}
    free = _Free(room.fleet)
    # 1. What was asked for before.
    for needs in room.awaited:
        free.take(needs)
    # 2. One replica at a time, whoever's turn it is.
    turns = [_Turn(claim) for claim in claims]
    _take_turns(turns, free)
    # 3. Say it.
    return {turn.claim.decision.service: _within(turn, free) for turn in turns}


def _take_turns(turns: Sequence[_Turn], free: "_Free") -> None:
    """Mutates `got` of the turns, and what is free."""
    waiting = [(_rank(turn.claim, 0), number) for number, turn in enumerate(turns)]
    heapify(waiting)
    while waiting:
        number = waiting[0][1]
        turn = turns[number]
        decision = turn.claim.decision
        if turn.got < decision.decided - decision.current and free.take(turn.claim.needs):
            turn.got += 1
            heapreplace(waiting, (_rank(turn.claim, turn.got), number))
        else:  # it has all, or what does not fit now does not fit later: room only shrinks
            heappop(waiting)


def _rank(claim: Claim, got: int) -> tuple[bool, bool, bool, int]:
    """The lowest goes next."""
    decision = claim.decision
    return (
        not decision.acts,
        decision.current + got >= claim.floor,
        not claim.held,
        got,
    )


def _within(turn: _Turn, free: "_Free") -> Decision:
    decision = turn.claim.decision
    more = decision.decided - decision.current
    if turn.got == more:
        return decision
    why = f"budget: {turn.got} of {more} more fit: {free.hole(turn.claim.needs)}"
    count = decision.current + turn.got
    return replace(
        decision,
        replicas=count if decision.acts else decision.replicas,
        decided=count,
        why=f"{decision.why}; {NO_ROOM}" if decision.acts else decision.why,
        because=(*decision.because, why),
        bound_by=Bound.BUDGET if decision.acts else decision.bound_by,
    )


class _Free:
    """A fleet of its own, from which replicas take what they need, and nothing is given back."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet.copy()
        self._rows: dict[Demand, list[int]] = {}  # that fitted when last looked at, the next last

    def take(self, needs: Demand) -> bool:
        """Place one replica; false where it fits nowhere."""
        rows = self._rows.get(needs)
        if rows is None:
            rows = self._rows[needs] = self._fitting(needs)
        while rows:
            row = rows[-1]
            cards = choose_cards(self._fleet, needs, row)
            if cards is not None:
                self._fleet.take(self._fleet.grant(row, cards=cards, demand=needs))
                return True
            rows.pop()
        return False

    def hole(self, needs: Demand) -> str:
        """What a replica needs, and the most of it that one place has left."""
        fleet, every = self._fleet, self._fleet.all_rows()
        ok = permitted(fleet, needs)[fleet.model[every]][:, None] & self._open(needs)
        if needs.exclusive:
            unused = ok & cards_that_fit(fleet, needs, every)
            most = int(unused.sum(axis=1).max(initial=0))
            unit = needs.profile or "whole GPU"
            return f"{needs.cards} x {unit} each, at most {most} free on a node"
        words = [] if needs.cards == 1 else [f"{needs.cards} GPUs of a node"]
        memory = np.where(ok, fleet.memory_free[every], 0)
        if needs.memory_mib:
            largest = _gib(int(memory.max(initial=0)))
            words.append(f"{_gib(needs.memory_mib)} each, largest hole {largest}")
        if needs.memory_milli:
            part = (memory / np.maximum(fleet.memory_total[every], 1)).max(initial=0.0)
            words.append(f"{needs.memory_milli / 10:g}% of memory each, largest hole {part:.0%}")
        if needs.milli:
            part = np.where(ok, fleet.milli_free[every], 0).max(initial=0) / WHOLE_MILLI
            words.append(f"{needs.milli / 10:g}% of compute each, largest hole {part:.0%}")
        return ", ".join(words)

    def _open(self, needs: Demand) -> Mask:
        """The cards of the right kind that would take one more pod: [rows, cards]."""
        fleet, every = self._fleet, self._fleet.all_rows()
        known = fleet.profiles
        kind = known.index(needs.profile) if needs.profile in known else len(known)
        ok: Mask = fleet.usable[every] & (fleet.profile[every] == kind)
        return ok & (fleet.slots_free[every] > 0) & (fleet.milli_free[every] > 0)

    def _fitting(self, needs: Demand) -> list[int]:
        """The rows where it fits now; the one with the least left comes last, and is filled first.

        So large demands keep the empty nodes as long as there are others.
        """
        fleet = self._fleet
        rows = np.flatnonzero(fits(fleet, needs, fleet.all_rows()))
        left = fleet.milli_free[rows].sum(axis=1) + fleet.memory_free[rows].sum(axis=1)
        return [int(row) for row in rows[np.argsort(-left, kind="stable")]]


def _gib(mib: int) -> str:
    return f"{mib / MIB_PER_GIB:.4g} GiB"
