# SPDX-License-Identifier: Apache-2.0
"""Which reservations of mixed nodes to make, and which to end. No I/O; driven by the clock.

Made: as few as have pods placed that wait, on one node each, where the device plugin has so many
cards left; and in place of one that ended under pods. Ended: what told no card in time, and what
nobody uses for a while. A node where that came to nothing is left alone for a while, longer each
time.

Which card a reservation gets is the kubelet's choice. So the plan counts on the smallest ones, and
one that is made for a card that was lost may get another.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import cards_that_fit, fits
from scheduler_extender.core.gpus import Fleet, Ints
from scheduler_extender.reservations.cards import Reserved
from scheduler_extender.state import ClusterState
from scheduler_extender.waiting import Waiting

IDLE_S: Final = 60.0  # what a reservation is usually kept that nobody uses
TELL_S: Final = 60.0  # what a reservation may take to tell its card
ASKED_S: Final = 10.0  # within which the watch shows what was asked for
AGAIN_S: Final = 5.0  # a deletion that did not come is asked for again
BACKOFF_S: Final = 10.0
MOST_BACKOFF_S: Final = 640.0
# For so many pods room is looked for at once. Those of a kind that found none lately have a smaller
# share of their own, so that they do not keep it from others.
MOST_PODS: Final = 20
MOST_AGAIN: Final = 10
VAIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    node: str
    number: int


@dataclass(frozen=True, slots=True)
class Plan:
    make: tuple[Wanted, ...] = ()
    end: tuple[Reserved, ...] = ()


@dataclass(slots=True)
class _Followed:
    """One reservation. Times are the caller's; `idle_s`: since when nobody has its card."""

    one: Reserved
    since_s: float
    idle_s: float
    used: bool = False
    ended_s: float | None = None  # when its deletion was asked for last


@dataclass(frozen=True, slots=True)
class _Kind:
    """Pods that mixed nodes help alike. `near`: a hash of the mixed nodes that they may use."""

    demand: Demand
    near: int


class ReservationPlan:
    """`idle_s`: how long a reservation stays that nobody uses."""

    def __init__(self, state: ClusterState, *, idle_s: float) -> None:
        self._state = state
        self._idle_s = idle_s
        self._followed: dict[str, _Followed] = {}  # by UID
        self._asked_s: dict[Wanted, float] = {}  # when it was asked for; not seen yet
        self._rest_until_s: dict[str, float] = {}  # by node
        self._rest_s: dict[str, float] = {}  # by node: its next rest
        self._vain_until_s: dict[_Kind, float] = {}  # those that found no room
        self._mixed: tuple[str, ...] = ()
        self._kinds: dict[str, tuple[Waiting, _Kind | None]] = {}  # by UID; None: not near any

    def plan(self, now_s: float) -> Plan:
        """What to do now. Cards of what is to end are out of use when this returns."""
        end = (*self._vanished(now_s), *self._due(now_s))
        here = {Wanted(one.node, one.told.number) for one in self._state.reservations}
        self._asked_s = {
            wanted: at_s
            for wanted, at_s in self._asked_s.items()
            if wanted not in here and now_s - at_s < ASKED_S
        }
        make = tuple(self._made(now_s))
        self._asked_s.update(dict.fromkeys(make, now_s))
        return Plan(make, end)

    def refused(self, wanted: Wanted, *, now_s: float) -> None:
        """It was not made."""
        self._asked_s.pop(wanted, None)
        self._rest(wanted.node, now_s)

    # What ends

    def _vanished(self, now_s: float) -> list[Reserved]:
        """Failed, or deleted by somebody: whatever is left of it goes."""
        gone = self._followed.keys() - self._state.reservations.uids
        found = []
        for uid in sorted(gone):
            followed = self._followed.pop(uid)
            if followed.ended_s is None:
                found.append(followed.one)
                if followed.one.told.uuid not in self._state.lost(followed.one.node):
                    self._rest(followed.one.node, now_s)
        return found

    def _due(self, now_s: float) -> Iterable[Reserved]:
        for one in self._state.reservations:
            followed = self._followed.setdefault(one.uid, _Followed(one, now_s, now_s))
            followed.one = one
            if one.told.uuid in self._state.taken(one.node):
                followed.idle_s, followed.used = now_s, True
                self._rest_s.pop(one.node, None)
            if not one.told.ending and self._leaves(followed, now_s):
                followed.ended_s = now_s
                yield one

    def _leaves(self, followed: _Followed, now_s: float) -> bool:
        """Whether it is to be deleted now; its card is out of use then."""
        one = followed.one
        if followed.ended_s is not None:
            return now_s - followed.ended_s >= AGAIN_S
        late = not one.told.uuid and now_s - followed.since_s >= TELL_S
        idle = bool(one.told.uuid) and now_s - followed.idle_s >= self._idle_s
        if not (late or idle) or not self._state.leave(one.uid):
            return False
        if not followed.used:
            self._rest(one.node, now_s)
        return True

    def _rest(self, node: str, now_s: float) -> None:
        rest_s = self._rest_s.get(node, BACKOFF_S)
        self._rest_until_s[node] = now_s + rest_s
        self._rest_s[node] = min(2 * rest_s, MOST_BACKOFF_S)

    # What is made

    def _made(self, now_s: float) -> Iterable[Wanted]:
        state = self._state
        state.reservations.awaited_by = frozenset()
        mixed = state.mixed() if len(state.waiting) or state.cordoned else ()
        resting = {node for node, until_s in self._rest_until_s.items() if until_s > now_s}
        left = {node: 0 if node in resting else self._left(node) for node in mixed}
        more = dict[str, int]()
        for node in sorted(state.cordoned.keys() & left.keys()):
            again = min(len(state.lost(node)) - self._coming(node), left[node])
            if again > 0:
                more[node] = again
                left[node] -= again
        if mixed and len(state.waiting):
            trial = _Trial(state.fleet.copy(), more)
            for node in mixed:
                coming = max(self._coming(node) - len(state.lost(node)), 0)
                if coming or left[node] > 0:
                    trial.add(node, spare=self._spare(node), coming=coming, left=left[node])
            state.reservations.awaited_by = self._tried(trial, mixed, now_s)
        return [wanted for node, count in more.items() for wanted in self._named(node, count)]

    def _tried(self, trial: "_Trial", mixed: tuple[str, ...], now_s: float) -> frozenset[str]:
        """UIDs of the pods that cards are reserved for, or may be in a moment."""
        vain = {kind: at_s for kind, at_s in self._vain_until_s.items() if at_s > now_s}
        trial.place(self._by_kind(mixed), vain=vain.keys())
        new = dict.fromkeys(trial.hopeless - trial.placed, now_s + VAIN_S)
        found = {**vain, **new}
        self._vain_until_s = {kind: found[kind] for kind in found.keys() - trial.placed}
        return frozenset(trial.helped)

    def _by_kind(self, mixed: tuple[str, ...]) -> list[tuple[Waiting, _Kind]]:
        """Those near mixed nodes, the most important first. A kind is found once for a refusal."""
        known = self._kinds if mixed == self._mixed else {}
        self._mixed, self._kinds, nodes = mixed, {}, frozenset(mixed)
        for pod in sorted(self._state.waiting, key=lambda pod: -pod.priority):
            seen = known.get(pod.uid)
            if seen is None or seen[0] is not pod:
                near = nodes.intersection(pod.nodes)
                seen = pod, _Kind(pod.demand, hash(near)) if near else None
            self._kinds[pod.uid] = seen
        return [(pod, kind) for pod, kind in self._kinds.values() if kind is not None]

    def _spare(self, node: str) -> list[int]:
        """Cards that nobody has, and that a reservation may bring: the smallest first."""
        state = self._state
        row = state.fleet.row_of.get(node)
        if row is None:
            return []
        not_ours = state.reservations.held(node) | state.cordoned.get(node, frozenset())
        cards = enumerate(state.fleet.nodes[node].cards)
        taken = state.taken(node)
        spare = [
            (card.memory_mib, index)
            for index, card in cards
            if card.healthy and not card.profile and card.uuid not in not_ours | taken
        ]
        return [index for _, index in sorted(spare)]

    def _coming(self, node: str) -> int:
        """Reservations that will tell their cards."""
        state = self._state.reservations
        told = (one for one in state.on(node) if not one.told.ending and not one.told.uuid)
        return sum(not state.leaving(one.uid) for one in told) + self._asked(node)

    def _left(self, node: str) -> int:
        """What the device plugin has to give: nobody has it, or has it coming.

        None where it gives more than there are cards: it lets pods share them, so that one of its
        does not hold a card.
        """
        state = self._state
        known = state.fleet.nodes.get(node)
        if known is None or state.nodes[node].plugin > len(known.cards):
            return 0
        placed = sum(pod.plugin for pod in state.on(node))
        pending = sum(one.uid not in state.pods for one in state.reservations.on(node))
        return state.nodes[node].plugin - placed - pending - self._asked(node)

    def _asked(self, node: str) -> int:
        return sum(wanted.node == node for wanted in self._asked_s)

    def _named(self, node: str, count: int) -> Iterable[Wanted]:
        """The lowest numbers that are free, so that what was asked for in vain is found again."""
        used = {one.told.number for one in self._state.reservations.on(node)}
        used |= {wanted.number for wanted in self._asked_s if wanted.node == node}
        free = (number for number in range(len(used) + count) if number not in used)
        return [Wanted(node, number) for _, number in zip(range(count), free, strict=False)]


class _Trial:
    """A fleet in which pods that wait are placed by way of trial.

    `more`: by node, how many reservations to make; those that are found necessary are added.
    """

    def __init__(self, fleet: Fleet, more: dict[str, int]) -> None:
        self._fleet = fleet
        self._more = more
        self.helped: set[str] = set()  # UIDs of pods that go where cards are coming
        self.placed: set[_Kind] = set()  # a pod of it, or more
        self.hopeless: set[_Kind] = set()  # a pod of it was not, so that no further one is tried
        self._spare: dict[str, list[int]] = {}  # by node
        self._left = np.zeros(fleet.rows, dtype=np.int64)  # by row: spare cards that may be ours

    def add(self, node: str, *, spare: list[int], coming: int, left: int) -> None:
        """A mixed node: `coming` of its `spare` cards count as ours, up to `left` more may."""
        row = self._fleet.row_of.get(node)
        if row is not None:
            self._fleet.usable[row, spare[:coming]] = True
            self._spare[node] = spare[coming:]
            self._left[row] = max(min(left, len(spare) - coming), 0)

    def place(self, pods: Iterable[tuple[Waiting, _Kind]], *, vain: Set[_Kind]) -> None:
        """The first ones first. `vain`: kinds that found no room lately.

        Where there are too many, those that might have found room are helped as well: they wait.
        """
        most = {True: MOST_AGAIN, False: MOST_PODS}
        for pod, kind in pods:
            if kind in self.hopeless or self._spare.keys().isdisjoint(pod.nodes):
                continue
            again = kind in vain and kind not in self.placed
            if most[again]:
                most[again] -= 1
                (self.placed if self._placed(pod) else self.hopeless).add(kind)
            elif not again and self._any_left(pod.nodes):
                self.helped.add(pod.uid)

    def _any_left(self, nodes: Iterable[str]) -> bool:
        return any(node in self._spare and self._left[self._fleet.row_of[node]] for node in nodes)

    def _placed(self, pod: Waiting) -> bool:
        known = (self._fleet.row_of.get(name) for name in pod.nodes)
        rows = np.array([row for row in known if row is not None], dtype=np.int64)
        fitting = rows[fits(self._fleet, pod.demand, rows)]
        if len(fitting):
            self._take(pod, int(fitting[0]))
            return True
        for row, count in self._able(pod.demand, rows):
            if self._opened(row, count, pod.demand):
                self._take(pod, row)
                return True
        return False

    def _able(self, demand: Demand, rows: Ints) -> Iterable[tuple[int, int]]:
        """Rows, and how many cards are lacking there, the fewest first; of equal ones, where the
        device plugin keeps the fewest for others.
        """
        lacking = demand.cards - cards_that_fit(self._fleet, demand, rows).sum(axis=1)
        left = self._left[rows]
        order = np.lexsort((self._fleet.order()[rows], left, lacking))
        return ((int(rows[at]), int(lacking[at])) for at in order if 1 <= lacking[at] <= left[at])

    def _opened(self, row: int, count: int, demand: Demand) -> bool:
        """Whether so many cards more do; they are ours then."""
        node = self._fleet.names[row]
        spare = self._spare[node]
        self._fleet.usable[row, spare[:count]] = True
        if not fits(self._fleet, demand, np.array([row]))[0]:
            self._fleet.usable[row, spare[:count]] = False
            return False
        self._spare[node] = spare[count:]
        self._left[row] -= count
        self._more[node] = self._more.get(node, 0) + count
        return True

    def _take(self, pod: Waiting, row: int) -> None:
        fleet, demand = self._fleet, pod.demand
        if fleet.names[row] in self._spare:
            self.helped.add(pod.uid)
        cards = choose_cards(fleet, demand, row)
        if cards is not None:
            fleet.take(fleet.grant(row, cards=cards, demand=demand))
