# SPDX-License-Identifier: Apache-2.0
"""How several activator processes share the slots of one replica, so that it never gets too much.

Clients spread over the processes as the kernel likes, so no fixed split is right: one process may
have all the clients. Slots are therefore lent, and move to where requests wait:

- Together the processes never hold more than there are: a slot taken from one is given to another
  only after the first has said that it no longer uses it (`committed`).
- With a slot for each process, everyone keeps at least one, so whatever arrives can go at once.
- With fewer slots than processes some hold none. Whoever waits longest gets the next one, so every
  process gets on: a slot goes round among those that have requests waiting.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """One process and one replica.

    `granted`: slots it was last told to use; `committed`: the most it may still be using, never
    less than `in_flight`. `held` requests wait there, the oldest for `waits_s`.
    """

    granted: int
    committed: int
    in_flight: int
    held: int = 0
    waits_s: float = 0.0

    def wants(self, granted: int) -> int:
        """How many more slots than `granted` its waiting requests could use."""
        return max(0, self.in_flight + self.held - granted) if self.held else 0


def shares(slots: int, claims: Sequence[Claim], *, turn: int = 0) -> list[int]:
    """The slots each claim is to have now; call again when what it waited for has been given back.

    Their sum is at most `slots`, and with what others are still committed to as well. `turn` says
    at whom an uneven split begins, so that of many replicas not all favour the first process.
    """
    grants = [claim.granted for claim in claims]
    order = [(i + turn) % len(claims) for i in range(len(claims))]
    while sum(grants) > slots:
        grants[max(order, key=lambda i: grants[i])] -= 1
    _lend(slots, claims, grants, order)
    free = slots - sum(max(g, c.committed) for g, c in zip(grants, claims, strict=True))
    for _ in range(free):
        grants[_next(claims, grants, order)] += 1
    return grants


def _next(claims: Sequence[Claim], grants: list[int], order: list[int]) -> int:
    """Who gets a free slot: those in need, first those that have none; else whoever has fewest."""
    needy = [i for i in order if claims[i].wants(grants[i])]
    if needy:
        return max(needy, key=lambda i: (grants[i] == 0, claims[i].waits_s, -grants[i]))
    return min(order, key=lambda i: grants[i])


def _lend(slots: int, claims: Sequence[Claim], grants: list[int], order: list[int]) -> None:
    """Take slots from those that can spare them, for those in need. Changes `grants`."""
    fair = slots // len(claims)
    floor = min(fair, 1)
    ungranted = slots - sum(grants)  # free, or free as soon as somebody gives it back
    for i in order:
        wanted = max(claims[i].wants(grants[i]), floor - grants[i])
        wanted, ungranted = max(0, wanted - ungranted), max(0, ungranted - wanted)
        for j in sorted(order, key=lambda j: -grants[j]):
            if wanted <= 0:
                break
            donor = claims[j]
            if j == i or grants[j] <= floor:
                continue
            if not donor.held:  # what it does not use
                spare = grants[j] - max(floor, donor.in_flight)
            elif grants[i] < fair < grants[j]:  # both are in need, and it has more than its part
                spare = min(grants[j] - fair, fair - grants[i])
            else:
                spare = 0
            if (
                not spare
                and grants[i] == 0
                and (not donor.held or donor.waits_s < claims[i].waits_s)
            ):
                spare = 1  # even what it uses: its request ends some time, and then the slot moves
            taken = max(0, min(spare, wanted))
            grants[j] -= taken
            wanted -= taken
