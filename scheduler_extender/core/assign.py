# SPDX-License-Identifier: Apache-2.0
"""Which cards of a node a demand gets. The node was chosen before; free cards are only read.

One share goes where it leaves the least. One whole card is the worst connected one, several are
those with the best links among them: what is left then serves the next pod best.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from scheduler_extender.core.demand import WHOLE_MILLI, Demand, Policy
from scheduler_extender.core.fit import hosts
from scheduler_extender.core.gpus import Fleet

Links = Sequence[Sequence[int]]


def choose_cards(fleet: Fleet, demand: Demand, row: int) -> tuple[int, ...] | None:
    """The cards of `row` that `demand` gets, ascending; None where it does not fit."""
    fit = hosts(fleet, demand, np.array([row]))
    if not len(fit.at):
        return None
    free = np.flatnonzero(fit.cards[0]).tolist()
    links = fleet.nodes[fleet.names[row]].links
    if links and (demand.cards > 1 or demand.exclusive):
        return best_linked(links, free, count=demand.cards)
    left = leftover(fleet, row)
    sign = -1 if demand.policy is Policy.SPREAD else 1
    ranked = sorted(free, key=lambda card: (sign * left[card], card))
    return tuple(sorted(ranked[: demand.cards]))


def linked(fleet: Fleet, demand: Demand, row: int) -> int:
    """How well the cards that `demand` would get here are linked; 0 where no links are known."""
    links = fleet.nodes[fleet.names[row]].links
    cards = choose_cards(fleet, demand, row) if links else None
    return sum(links[a][b] for a, b in combinations(cards or (), 2))


def leftover(fleet: Fleet, row: int) -> Sequence[int]:
    """Thousandths of each card that are free, of memory or compute, whichever is scarcer."""
    memory = fleet.memory_free[row] * WHOLE_MILLI // np.maximum(fleet.memory_total[row], 1)
    left: list[int] = np.minimum(memory, fleet.milli_free[row]).tolist()
    return left


def best_linked(links: Links, free: Sequence[int], *, count: int) -> tuple[int, ...]:
    """`count` of the `free` cards: the best linked set, or the worst linked single card.

    Of equal sets it is the one whose cards are worst linked to the rest, then the lowest.
    """

    def within(cards: Sequence[int]) -> int:
        return sum(links[a][b] for a, b in combinations(cards, 2))

    def beyond(cards: Sequence[int]) -> int:
        return sum(links[a][b] for a in cards for b in free if b not in cards)

    sets = combinations(sorted(free), count)
    return min(sets, key=lambda cards: (-within(cards), beyond(cards), cards))
