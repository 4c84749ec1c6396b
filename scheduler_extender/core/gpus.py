# SPDX-License-Identifier: Apache-2.0
"""The GPUs of a cluster as arrays: one row a node, one column a card. The only state that mutates.

`take` and `give_back` change a row in place and raise its version; all else reads. The arrays grow
as nodes come, and the row of a node that left is used again, so hold names, not rows, across
changes of nodes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler_extender.core.demand import WHOLE_MILLI, Demand

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SLOTS = 48  # clients that one MPS server takes; also a bound where a card is shared without MPS


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU, or one MIG instance, which is a card with a profile and a UUID of its own."""

    uuid: str
    memory_mib: int  # that pods may have: the driver's reserve is already off
    healthy: bool = True
    slots: int = SLOTS
    profile: str = ""


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """A node as it describes itself. None: not known, and then not limiting."""

    name: str
    cards: tuple[Card, ...]
    model: str = ""
    links: tuple[tuple[int, ...], ...] = ()  # [card][card], more is better; empty: all alike
    cpu_milli: int | None = None
    ram_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What a pod has of one card."""

    card: int
    uuid: str
    memory_mib: int
    milli: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What a pod has of one node; taken and given back as one."""

    node: str
    parts: tuple[Part, ...]
    cpu_milli: int = 0
    ram_mib: int = 0
    mesh: str = ""

    @property
    def uuids(self) -> tuple[str, ...]:
        return tuple(part.uuid for part in self.parts)


class Oversubscribed(ValueError):
    """A change that would leave a card with less than nothing; the fleet is as it was."""


class Fleet:
    """All nodes. Free amounts are never below 0 and never above the totals.

    Arrays are [rows] or [rows, cards] and may be longer than `rows`: slice or index them by row.
    `take` picks many rows several times as fast as an index.
    """

    memory_free: Ints  # MiB a card
    memory_total: Ints
    milli_free: Ints  # thousandths of a card's compute; a total of 0: no such card
    milli_total: Ints
    slots_free: Ints
    slots_total: Ints
    profile: Ints  # index into `profiles`
    size: Ints  # index into `sizes`
    usable: Mask  # healthy and not cordoned
    present: Mask  # the row has a node
    cpu_free: Floats  # milli; infinite where it is not known
    cpu_total: Floats
    ram_free: Floats  # MiB; infinite where it is not known
    ram_total: Floats
    model: Ints  # index into `models`
    version: Ints  # raised by every change of the row
    _hash: NDArray[np.uint64]  # of the node's name

    def __init__(self, nodes: Iterable[NodeGpus] = ()) -> None:
        self.names: list[str] = []  # "" for a row that no node has now
        self.row_of: dict[str, int] = {}
        self.models: list[str] = [""]
        self.profiles: list[str] = [""]
        self.sizes: dict[int, int] = {0: 0}  # by MiB that a card has
        self.nodes: dict[str, NodeGpus] = {}
        self._order: Ints | None = None
        self.mesh_pods: Counter[tuple[str, int]] = Counter()  # by mesh and row
        self.generation = 0  # raised when nodes come, go or describe themselves anew
        self._grow(rows=0, width=1)
        for node in nodes:
            self.set_node(node)

    @property
    def rows(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        return int(self.memory_free.shape[1])

    def all_rows(self) -> Ints:
        return np.arange(self.rows)

    def set_node(self, node: NodeGpus) -> int:
        """Add a node, or replace its description; all its cards are free then. Returns its row."""
        if node.links and len(node.links) != len(node.cards):
            raise ValueError(f"{node.name}: links of {len(node.links)} for {len(node.cards)} cards")
        row = self.row_of.get(node.name)
        if row is None:
            row = self._new_row()
            self.names[row] = node.name
            self.row_of[node.name] = row
            self._hash[row] = int.from_bytes(blake2b(node.name.encode(), digest_size=8).digest())
            self._order = None
        self.generation += 1
        self._grow(rows=self.rows, width=max(self.width, len(node.cards)))
        self.nodes[node.name] = node
        self._clear(row)
        self.present[row] = True
        self.model[row] = _number(self.models, node.model)
        self.cpu_total[row] = inf if node.cpu_milli is None else node.cpu_milli
        self.ram_total[row] = inf if node.ram_mib is None else node.ram_mib
        for index, card in enumerate(node.cards):
            self.memory_total[row, index] = card.memory_mib
            self.milli_total[row, index] = WHOLE_MILLI
            self.slots_total[row, index] = card.slots
            self.usable[row, index] = card.healthy
            self.profile[row, index] = _number(self.profiles, card.profile)
            self.size[row, index] = self.sizes.setdefault(card.memory_mib, len(self.sizes))
        for free, total in self._pairs():
            free[row] = total[row]
        return row

    def remove_node(self, name: str) -> None:
        """Forget a node; its row fits nothing until another node takes it."""
        row = self.row_of.pop(name)
        del self.nodes[name]
        self.names[row] = ""
        self._clear(row)
        self.generation += 1
        self._order = None

    def set_usable(self, row: int, *, card: int, usable: bool) -> None:
        """Cordon a card, or lift that. What is on it stays."""
        self.usable[row, card] = usable
        self.version[row] += 1

    def grant(self, row: int, *, cards: Sequence[int], demand: Demand) -> Grant:
        """What `demand` would have on these cards of this node."""
        uuids = self.nodes[self.names[row]].cards
        parts = tuple(
            Part(
                card,
                uuids[card].uuid,
                memory_mib=int(self.memory_need(demand, np.array([row]))[0, card]),
                milli=WHOLE_MILLI if demand.exclusive else demand.milli,
            )
            for card in cards
        )
        return Grant(self.names[row], parts, demand.cpu_milli, demand.ram_mib, demand.mesh)

    def memory_need(self, demand: Demand, rows: Ints) -> Any:
        """MiB that the demand needs on each card: [rows, cards]."""
        totals = self.memory_total.take(rows, axis=0)
        if demand.exclusive:
            return totals
        if not demand.memory_milli:
            return np.full_like(totals, demand.memory_mib)
        # Rounded up: a part rounded down would let one pod too many onto the card.
        part = -(-totals * demand.memory_milli // WHOLE_MILLI)
        return np.maximum(part, demand.memory_mib)

    def take(self, grant: Grant) -> None:
        """Mutates: the node has less by `grant`. Raises Oversubscribed and changes nothing."""
        row = self.row_of[grant.node]
        for part in grant.parts:
            at = row, part.card
            if (
                part.memory_mib > self.memory_free[at]
                or part.milli > self.milli_free[at]
                or self.slots_free[at] < 1
            ):
                raise Oversubscribed(f"{grant.node}: card {part.uuid} has not enough left")
        if grant.cpu_milli > self.cpu_free[row] or grant.ram_mib > self.ram_free[row]:
            raise Oversubscribed(f"{grant.node}: not enough CPU or memory left")
        self._move(row, grant, sign=-1)

    def give_back(self, grant: Grant) -> None:
        """Mutates: the node has more by `grant`. Raises ValueError where that was never taken."""
        row = self.row_of[grant.node]
        for part in grant.parts:
            at = row, part.card
            if (
                self.memory_free[at] + part.memory_mib > self.memory_total[at]
                or self.milli_free[at] + part.milli > self.milli_total[at]
                or self.slots_free[at] >= self.slots_total[at]
            ):
                raise ValueError(f"{grant.node}: card {part.uuid} never gave that much")
        self._move(row, grant, sign=1)

    def order(self) -> Ints:
        """A rank a row, all different, and the same for the same set of names: settles ties."""
        if self._order is None:
            ranks = np.empty(self.rows, dtype=np.int64)
            ranks[np.argsort(self._hash[: self.rows], kind="stable")] = self.all_rows()
            self._order = ranks
        return self._order

    def set_order(self, ranks: Ints) -> None:
        """Settle ties by these ranks from now on, until nodes change."""
        self._order = ranks

    def copy(self) -> "Fleet":
        """A fleet of its own with the same nodes and the same free amounts."""
        twin = Fleet.__new__(Fleet)
        for name, value in vars(self).items():
            setattr(twin, name, value.copy() if hasattr(value, "copy") else value)
        return twin

    def alone(self, name: str) -> "Fleet":
        """A fleet of its own with this node only, in row 0."""
        row, one = self.row_of[name], copy(self)
        for field, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(one, field, value[row : row + 1].copy())
        one.names, one.row_of, one.nodes = [name], {name: 0}, {name: self.nodes[name]}
        one.mesh_pods, one._order = Counter(), None
        return one

    def _move(self, row: int, grant: Grant, *, sign: int) -> None:
        for part in grant.parts:
            at = row, part.card
            self.memory_free[at] += sign * part.memory_mib
            self.milli_free[at] += sign * part.milli
            self.slots_free[at] += sign
        self.cpu_free[row] += sign * grant.cpu_milli
        self.ram_free[row] += sign * grant.ram_mib
        if grant.mesh:
            self.mesh_pods[grant.mesh, row] -= sign
        self.version[row] += 1

    def _pairs(self) -> Sequence[tuple[Any, Any]]:
        return (
            (self.memory_free, self.memory_total),
            (self.milli_free, self.milli_total),
            (self.slots_free, self.slots_total),
            (self.cpu_free, self.cpu_total),
            (self.ram_free, self.ram_total),
        )

    def _new_row(self) -> int:
        if "" in self.names:
            return self.names.index("")
        self.names.append("")
        if self.rows > len(self.version):
            self._grow(rows=max(2 * self.rows, 16), width=self.width)
        return self.rows - 1

    def _clear(self, row: int) -> None:
        for free, total in self._pairs():
            free[row] = total[row] = 0
        self.usable[row] = self.present[row] = False
        self.model[row] = 0
        self.profile[row] = self.size[row] = 0
        for key in [key for key in self.mesh_pods if key[1] == row]:
            del self.mesh_pods[key]
        self.version[row] += 1

    def _grow(self, *, rows: int, width: int) -> None:
        """Make room for this many rows and cards; what is there keeps its place."""

        def grown(name: str, *, dtype: Any, cards: bool = False) -> None:
            shape = (rows, width) if cards else (rows,)
            now = getattr(self, name, None)
            if now is not None:
                if now.shape[0] >= rows and (not cards or now.shape[1] >= width):
                    return
                shape = (max(rows, len(now)), *shape[1:])
            new = np.zeros(shape, dtype=dtype)
            if now is not None:
                new[tuple(slice(0, size) for size in now.shape)] = now
            setattr(self, name, new)

        for name in ("memory_free", "memory_total", "milli_free", "milli_total"):
            grown(name, dtype=np.int64, cards=True)
        for name in ("slots_free", "slots_total", "profile", "size"):
            grown(name, dtype=np.int64, cards=True)
        grown("usable", dtype=np.bool_, cards=True)
        grown("present", dtype=np.bool_)
        for name in ("cpu_free", "cpu_total", "ram_free", "ram_total"):
            grown(name, dtype=np.float64)
        for name in ("model", "version"):
            grown(name, dtype=np.int64)
        grown("_hash", dtype=np.uint64)


def row_sums(values: NDArray[Any]) -> Any:
    """Over the cards of each row: [rows, cards] or [rows, cards, more], in the same type.

    numpy's own sum takes five times as long along so short an axis.
    """
    return np.einsum("ij...->i...", values)


def _number(known: list[str], name: str) -> int:
    """The index of `name` in `known`, which gets it if it is new."""
    if name not in known:
        known.append(name)
    return known.index(name)
