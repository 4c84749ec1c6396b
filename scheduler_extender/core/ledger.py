# SPDX-License-Identifier: Apache-2.0
"""Who has what: one entry a pod UID, and the only writer of a fleet's free amounts.

An entry is held (until a deadline, while its Binding is on the way), bound, or gone. Every change
may come twice and counts once. What contradicts the fleet is told, kept and never dropped.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from scheduler_extender.core.fit import Refusal
from scheduler_extender.core.gpus import Fleet, Grant, NodeGpus, Oversubscribed, Part


class Stage(Enum):
    HELD = "held"
    BOUND = "bound"


@dataclass(frozen=True, slots=True)
class Fact:
    """What the annotations of a pod that is bound say it has."""

    uid: str
    node: str
    uuids: tuple[str, ...]
    memory_mib: int  # of each card
    milli: int
    cpu_milli: int = 0
    ram_mib: int = 0
    mesh: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A pod's annotations and the fleet cannot both be right. `uuids`: the cards in doubt."""

    uid: str
    node: str
    uuids: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A pod's part. `grant` is None while a conflict keeps it from being counted."""

    uid: str
    stage: Stage
    fact: Fact
    grant: Grant | None
    deadline_s: float | None = None


class Ledger:
    """The entries, and the fleet that they are counted against."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._entries: dict[str, Entry] = {}
        self._conflicts: dict[str, Conflict] = {}

    def entry(self, uid: str) -> Entry | None:
        return self._entries.get(uid)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def conflicts(self) -> tuple[Conflict, ...]:
        return tuple(self._conflicts.values())

    def hold(self, uid: str, grant: Grant, *, deadline_s: float) -> Entry | Refusal:
        """Take `grant` for a pod until it is bound or the deadline passes.

        A pod that has an entry keeps it, whatever is asked now: the entry comes back.
        """
        known = self._entries.get(uid)
        if known is not None:
            return known
        try:
            self.fleet.take(grant)
        except Oversubscribed as gone:
            return Refusal(str(gone), permanent=False)
        entry = Entry(uid, Stage.HELD, _fact(uid, grant), grant, deadline_s)
        self._entries[uid] = entry
        return entry

    def bound(self, fact: Fact) -> Conflict | None:
        """The pod is bound with these annotations, as its watch or our own Binding says.

        They are the truth: a hold that says otherwise gives way.
        """
        known = self._entries.get(fact.uid)
        if known is not None:
            if known.fact == fact:
                self._entries[fact.uid] = replace(known, stage=Stage.BOUND, deadline_s=None)
                return self._conflicts.get(fact.uid)
            self.release(fact.uid)
        return self._count(fact)

    def release(self, uid: str) -> Entry | None:
        """The pod is gone, or its Binding was refused: what it had is free."""
        entry = self._entries.pop(uid, None)
        self._conflicts.pop(uid, None)
        if entry is not None and entry.grant is not None:
            self.fleet.give_back(entry.grant)
            self._count_again(entry.fact.node)
        return entry

    def expired(self, now_s: float) -> tuple[Entry, ...]:
        """Holds whose deadline has passed. They stay until `release`: only a reader of the API
        knows whether the Binding was made."""
        return tuple(
            entry
            for entry in self._entries.values()
            if entry.deadline_s is not None and entry.deadline_s <= now_s
        )

    def set_node(self, node: NodeGpus) -> tuple[Conflict, ...]:
        """A node came or describes itself anew: what its pods have is counted against that."""
        if self.fleet.nodes.get(node.name) == node:
            return tuple(c for c in self._conflicts.values() if c.node == node.name)
        return self._recount(node.name, node)

    def remove_node(self, name: str) -> None:
        """A node left. Entries of its pods stay, as conflicts, until the pods are gone too."""
        self._recount(name, None)

    def rebuild(self, facts: Iterable[Fact]) -> tuple[Conflict, ...]:
        """Bound entries for exactly these facts; holds stay. Conflicts that are there then."""
        facts = tuple(facts)
        told = {fact.uid for fact in facts}
        for entry in self.entries():
            if entry.stage is Stage.BOUND and entry.uid not in told:
                self.release(entry.uid)
        for fact in facts:
            self.bound(fact)
        return self.conflicts()

    def _recount(self, name: str, node: NodeGpus | None) -> tuple[Conflict, ...]:
        here = [entry for entry in self._entries.values() if entry.fact.node == name]
        if node is not None:
            self.fleet.set_node(node)
        elif name in self.fleet.row_of:
            self.fleet.remove_node(name)
        for entry in here:
            self._conflicts.pop(entry.uid, None)
            self._count(entry.fact, stage=entry.stage, deadline_s=entry.deadline_s)
        return tuple(c for c in self._conflicts.values() if c.node == name)

    def _count_again(self, node: str) -> None:
        """What was given back may be what a pod in conflict needs to be counted."""
        for uid in [c.uid for c in self._conflicts.values() if c.node == node]:
            known = self._entries[uid]
            del self._conflicts[uid]
            self._count(known.fact, stage=known.stage, deadline_s=known.deadline_s)

    def _count(
        self, fact: Fact, *, stage: Stage = Stage.BOUND, deadline_s: float | None = None
    ) -> Conflict | None:
        counted = self._grant_of(fact)
        if isinstance(counted, Grant):
            try:
                self.fleet.take(counted)
            except Oversubscribed as doubt:
                counted = Conflict(fact.uid, fact.node, fact.uuids, str(doubt))
        if isinstance(counted, Conflict):
            self._conflicts[fact.uid] = counted
            self._entries[fact.uid] = Entry(fact.uid, stage, fact, None, deadline_s)
            return counted
        self._entries[fact.uid] = Entry(fact.uid, stage, fact, counted, deadline_s)
        return None

    def _grant_of(self, fact: Fact) -> Grant | Conflict:
        node = self.fleet.nodes.get(fact.node)
        if node is None:
            return Conflict(fact.uid, fact.node, fact.uuids, f"node {fact.node} is not known")
        known = {card.uuid: index for index, card in enumerate(node.cards)}
        strange = tuple(uuid for uuid in fact.uuids if uuid not in known)
        if strange:
            why = f"{fact.node} has no GPU {', '.join(strange)}"
            return Conflict(fact.uid, fact.node, fact.uuids, why)
        parts = tuple(
            Part(known[uuid], uuid, memory_mib=fact.memory_mib, milli=fact.milli)
            for uuid in fact.uuids
        )
        return Grant(fact.node, parts, fact.cpu_milli, fact.ram_mib, fact.mesh)


def _fact(uid: str, grant: Grant) -> Fact:
    first = grant.parts[0] if grant.parts else None
    return Fact(
        uid,
        grant.node,
        grant.uuids,
        memory_mib=first.memory_mib if first else 0,
        milli=first.milli if first else 0,
        cpu_milli=grant.cpu_milli,
        ram_mib=grant.ram_mib,
        mesh=grant.mesh,
    )
