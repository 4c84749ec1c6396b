# SPDX-License-Identifier: Apache-2.0
"""Nodes where room is being made for a pod, and who must leave it alone until the pod is there.

No I/O. A promise is also `status.nominatedNodeName` of the pod: so it outlives this process, and
kube-scheduler keeps CPU and memory for the pod. What others wrote there is kept as well as our own.
It holds against pods of lower priority, and of the same without an older promise; they may still
have what the promised pod does not need.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from typing import Final

from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet
from scheduler_extender.core.ledger import Ledger

# From when there is room until the pod must have taken it: kube-scheduler tries a pod that failed
# often every 10 s.
KEEP_S: Final = 60.0
MOST_FOUND: Final = 1_000  # answers that are remembered


@dataclass(frozen=True, slots=True)
class Promise:
    """Room on `node` for a pod. `victims`: those that we have go for it.

    `until_s`: on the caller's clock; infinite until somebody with a clock has looked at it.
    """

    uid: str
    namespace: str
    name: str
    node: str
    demand: Demand
    priority: int
    victims: tuple[PodSeen, ...] = ()
    ours: bool = False
    until_s: float = inf


class Promises:
    """In the order in which they were made.

    `going`: of a node, the UIDs of its pods that will be gone soon, these included if they will.
    """

    def __init__(
        self, ledger: Ledger, *, going: Callable[[str, frozenset[str]], Iterable[str]]
    ) -> None:
        self._ledger = ledger
        self._going = going
        self._made: dict[str, Promise] = {}  # by UID
        self._number = count()
        self._ages: dict[str, int] = {}  # by UID: which of all promises it was
        self._ranked: dict[str, list[Promise]] = {}  # by node: the most important first
        # By node, demand and promises: at which version of the row, and whether it spoils them.
        self._found: dict[tuple[str, Demand, tuple[str, ...]], tuple[int, bool]] = {}
        self._ended: dict[str, str] = {}  # by UID: the node of a nomination that is kept no more

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Promise]:
        return iter(tuple(self._made.values()))

    def of(self, uid: str) -> Promise | None:
        return self._made.get(uid)

    def victims(self, node: str) -> frozenset[str]:
        """UIDs of the node's pods that have to go, or are going."""
        made = self._ranked.get(node, ())
        return frozenset(victim.uid for promise in made for victim in promise.victims)

    def nominated(self, node: str) -> float:
        """The highest priority for which others nominated it, or a former process did: whoever had
        to go for that is not known.
        """
        made = self._ranked.get(node, ())
        return max((promise.priority for promise in made if not promise.ours), default=-inf)

    def make(self, promise: Promise) -> None:
        self._put(promise)
        self._changed(promise.node)

    def end(self, uid: str) -> None:
        """Whoever was refused for its sake may be tried again."""
        promise = self._made.pop(uid, None)
        if promise is not None:
            self._unrank(promise)
            del self._ages[uid]
            self._ended[uid] = promise.node
            self._changed(promise.node)

    def over(self, uid: str) -> None:
        """The pod is bound or gone."""
        self.end(uid)
        self._ended.pop(uid, None)

    def seen(self, pod: PodSeen) -> None:
        """A pending pod: what somebody nominated for it counts, as long as it stands there."""
        known = self._made.get(pod.uid)
        if known is not None and known.ours:
            return
        if known is not None and known.node != pod.nominated:
            self.end(pod.uid)
        if self._ended.get(pod.uid, "") != pod.nominated:
            self._ended.pop(pod.uid, None)
            if pod.wish is not None and pod.wish.cards and pod.uid not in self._made:
                self.make(
                    Promise(pod.uid, pod.namespace, pod.name, pod.nominated, pod.wish, pod.priority)
                )

    def look(self, *, now_s: float) -> None:
        """End those that cannot be kept, or were not used in time. Every second or so."""
        for promise in self:
            if self._ledger.entry(promise.uid) is not None:
                continue
            if not self._kept(promise, self.soon(promise.node)):
                self.end(promise.uid)
            elif promise.until_s == inf or not self.ready(promise):
                self._put(replace(promise, until_s=now_s + KEEP_S))
            elif promise.until_s <= now_s:
                self.end(promise.uid)

    def ready(self, promise: Promise) -> bool:
        """Whether there is room for the pod without anybody going."""
        return self._kept(promise, self.now(promise.node))

    def before(self, uid: str, priority: int, *, node: str) -> list[Promise]:
        """Those on the node that a pod must leave alone, the most important first.

        Who has a hold or a grant has its cards, and needs no promise.
        """
        own = -priority, self._ages.get(uid, inf)
        return [
            one
            for one in self._ranked.get(node, ())
            if self._rank(one) < own and one.uid != uid and self._ledger.entry(one.uid) is None
        ]

    def spoiled(self, node: str, demand: Demand, *, uid: str, priority: int) -> bool:
        """Whether this pod would get cards on the node now that were promised to another."""
        before = self.before(uid, priority, node=node)
        row = self._ledger.fleet.row_of.get(node)
        if not before or row is None or not demand.cards:
            return False
        asked = node, demand, tuple(one.uid for one in before)
        version = int(self._ledger.fleet.version[row])
        known = self._found.get(asked)
        if known is None or known[0] != version:
            if len(self._found) >= MOST_FOUND:
                self._found.clear()
            known = self._found[asked] = version, self._spoiled(before, demand, row=row)
        return known[1]

    def _spoiled(self, before: Sequence[Promise], demand: Demand, *, row: int) -> bool:
        cards = choose_cards(self._ledger.fleet, demand, row)
        if cards is None:
            return False
        node = self._ledger.fleet.names[row]
        spoilt = self.soon(node)
        spoilt.take(spoilt.grant(0, cards=cards, demand=demand))
        return give(spoilt, before) < give(self.soon(node), before)

    def now(self, node: str) -> Fleet:
        """The node by itself. Its CPU and memory are kube-scheduler's to judge."""
        fleet = self._ledger.fleet
        if node not in fleet.row_of:
            return Fleet()
        alone = fleet.alone(node)
        alone.cpu_free[0] = alone.ram_free[0] = inf
        return alone

    def soon(self, node: str) -> Fleet:
        """The same once those are gone that are leaving, or have to."""
        alone = self.now(node)
        for uid in self._going(node, self.victims(node)) if alone.rows else ():
            entry = self._ledger.entry(uid)
            if entry is not None and entry.grant is not None:
                alone.give_back(entry.grant)
        return alone

    def _kept(self, promise: Promise, alone: Fleet) -> bool:
        """Whether there is room for the pod beside those before it. Mutates `alone`."""
        if not alone.rows:
            return False
        give(alone, self.before(promise.uid, promise.priority, node=promise.node))
        return give(alone, [promise]) == 1

    def _put(self, promise: Promise) -> None:
        """In place of what the pod was promised before; it is as old as that."""
        known = self._made.get(promise.uid)
        if known is not None:
            self._unrank(known)
        self._made[promise.uid] = promise
        self._ages.setdefault(promise.uid, next(self._number))
        ranked = self._ranked.setdefault(promise.node, [])
        ranked.append(promise)
        ranked.sort(key=self._rank)

    def _unrank(self, promise: Promise) -> None:
        left = [one for one in self._ranked.pop(promise.node) if one.uid != promise.uid]
        if left:
            self._ranked[promise.node] = left

    def _rank(self, promise: Promise) -> tuple[int, float]:
        return -promise.priority, self._ages[promise.uid]

    def _changed(self, node: str) -> None:
        """Have everybody look at the node anew."""
        row = self._ledger.fleet.row_of.get(node)
        if row is not None:
            self._ledger.fleet.version[row] += 1


def give(alone: Fleet, promises: Sequence[Promise]) -> int:
    """Take the room of each in its turn; returns how many found it. Mutates `alone`."""
    found = 0
    for promise in promises:
        cards = choose_cards(alone, promise.demand, 0) if alone.rows else None
        if cards is not None:
            alone.take(alone.grant(0, cards=cards, demand=promise.demand))
            found += 1
    return found
