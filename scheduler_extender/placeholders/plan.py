# SPDX-License-Identifier: Apache-2.0
"""How many nodes waiting pods need beside those that are there: one placeholder pod each. No I/O.

Cluster autoscalers look at pods that kube-scheduler calls unschedulable, and try them on a node
that they imagine; they ask no extender, and no node has our resources, so they never add one for a
GPU pod. A placeholder is a pod that they understand: it asks for CPU and memory alone, of nodes of
the same pool, and keeps away from every pod with GPUs and every other placeholder. Thus it fits on
no node whose GPUs are in use, and on each fresh one.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import blake2b
from typing import Final

import numpy as np

from scheduler_extender.core.annotations import PodSeen, Unplaced
from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits
from scheduler_extender.core.gpus import Fleet, Ints, NodeGpus
from scheduler_extender.state import ClusterState

NAME: Final = "tidegate-placeholder-"  # and a number below the cap, so that there are never more
# What is older is taken away, and made anew while pods wait: nothing stands for ever by mistake.
MOST_AGE_S: Final = 1800.0
REPORT_S: Final = 900.0  # a node that has not reported its GPUs by then is not waited for any more
# Of more that a node may help, the most important: they are far more than a cap needs.
MOST_PODS: Final = 300


@dataclass(frozen=True, slots=True)
class Standing:
    """A placeholder that is there, and for how long without a node, or on the node that it has."""

    pod: PodSeen
    age_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A placeholder to be made, for pods that would fill one fresh node."""

    name: str
    pool: str  # see `Unplaced`
    cpu_milli: int
    ram_mib: int
    pods: tuple[str, ...]  # namespace/name


@dataclass(frozen=True, slots=True)
class Dropped:
    pod: PodSeen
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`never`: pods that no node has the GPUs for, however empty."""

    make: tuple[Wanted, ...] = ()
    drop: tuple[Dropped, ...] = ()
    never: tuple[PodSeen, ...] = ()


class Unlike(Enum):
    """Why no node that we know of is like the one that a pod needs."""

    UNKNOWN = "its pool has no node now"
    NEVER = "the nodes that it may use would not do even when empty"


def plan(
    state: ClusterState,
    ripe: Sequence[PodSeen],
    *,
    young: Sequence[PodSeen] = (),
    standing: Sequence[Standing] = (),
    most: int,
) -> Plan:
    """For `ripe` pods placeholders are made; while `young` ones wait, some are only kept.

    All pods are unplaced ones, and the first come first. At most so many placeholders.
    """
    known = _Known(state)
    needed, never = _packed(known, ripe, most=most)
    worth, _ = _packed(known, (*ripe, *young), most=most) if young else (needed, never)
    drop = _dropped(known, worth, (*ripe, *young), standing)
    gone = {one.pod.uid for one in drop}
    left = [one for one in standing if one.pod.uid not in gone]
    live = Counter(one.pod.placeholder for one in left if not known.of_no_use(one))
    taken = {one.pod.name for one in standing}
    names = [name for name in map(f"{NAME}{{}}".format, range(most)) if name not in taken]
    names = names[: max(most - len(left), 0)]
    make = []
    for node in needed:
        if live[pool_key(node.pool)]:
            live[pool_key(node.pool)] -= 1
        elif names:
            make.append(node.wanted(names.pop(0)))
    return Plan(tuple(make), tuple(drop), never)


def pool_key(pool: str) -> str:
    """What a placeholder's label says."""
    return blake2b(pool.encode(), digest_size=8).hexdigest()


def told(pod: PodSeen) -> Unplaced:
    """What is only asked of pods that are unplaced."""
    if pod.unplaced is None:
        raise ValueError(f"pod {pod.namespace}/{pod.name} is not waiting for GPUs")
    return pod.unplaced


def _dropped(
    known: "_Known",
    worth: Sequence["_Fresh"],
    waiting: Sequence[PodSeen],
    standing: Sequence[Standing],
) -> list[Dropped]:
    """Those on a node of no use stay, so that the next goes elsewhere."""
    due = Counter(pool_key(node.pool) for node in worth)
    any_due = set(due)
    drop = []
    # Of too many those go that have no node yet.
    for one in sorted(standing, key=lambda one: (not one.pod.node, -one.age_s, one.pod.name)):
        pod, key = one.pod, one.pod.placeholder
        if one.age_s >= MOST_AGE_S:
            drop.append(Dropped(pod, "it is too old"))
        elif key not in any_due:
            drop.append(Dropped(pod, "nobody needs a node any more"))
        elif known.has_room(pod.node, (p for p in waiting if pool_key(told(p).pool) == key)):
            drop.append(Dropped(pod, "its node has room for pods by now"))
        elif due[key] and not known.of_no_use(one):
            due[key] -= 1
        elif not known.of_no_use(one):
            drop.append(Dropped(pod, "fewer nodes are needed"))
    return drop


class _Known:
    """The cluster as it will be once pods that are being deleted are gone. Built for one plan."""

    def __init__(self, state: ClusterState) -> None:
        self._fleet = _soon(state)
        self._kinds, self._kind_of = _kinds(state)
        self._reach = {pod.uid: pod.nodes for pod in state.waiting}
        self._near: dict[str, frozenset[str] | None] = {}  # by pool
        self._near_kinds: dict[str, frozenset[int]] = {}
        self._like: dict[tuple[str, Demand], NodeGpus | Unlike] = {}

    def reports(self, node: str) -> bool:
        return node in self._fleet.row_of

    def of_no_use(self, one: Standing) -> bool:
        """Its node has no room, if it would by now, or nothing is heard of its GPUs."""
        return self.reports(one.pod.node) or bool(one.pod.node and one.age_s >= REPORT_S)

    def has_room(self, node: str, pods: Iterable[PodSeen]) -> bool:
        if not self.reports(node):
            return False
        here = np.array([self._fleet.row_of[node]])
        return any(fits(self._fleet, demand, here)[0] for demand in {told(p).demand for p in pods})

    def room(self) -> "_Room":
        return _Room(self._fleet.copy())

    def near(self, pod: PodSeen) -> frozenset[str] | None:
        """Where kube-scheduler would have pods of its pool, but for the GPUs; None: not told."""
        pool = told(pod).pool
        if self._near.get(pool) is None:
            nodes = self._reach.get(pod.uid)
            self._near[pool] = None if nodes is None else frozenset(nodes)
        return self._near[pool]

    def like(self, pod: PodSeen) -> NodeGpus | Unlike:
        """The smallest kind of node of its pool that would do when fresh.

        The smallest, since what is asked for must fit whichever the autoscaler adds.
        """
        key = told(pod).pool, told(pod).demand
        if key not in self._like:
            self._like[key] = self._smallest(pod)
        return self._like[key]

    def _smallest(self, pod: PodSeen) -> NodeGpus | Unlike:
        demand, kinds = told(pod).demand, self._kinds
        would = np.flatnonzero(fits(kinds, demand, kinds.all_rows())).tolist()
        near = self._kinds_near(pod)
        fit = [kinds.nodes[kinds.names[kind]] for kind in would if not near or kind in near]
        if fit:
            return min(fit, key=_size)
        blind = not kinds.rows or (self.near(pod) is None)
        return Unlike.UNKNOWN if blind else Unlike.NEVER

    def _kinds_near(self, pod: PodSeen) -> frozenset[int]:
        pool = told(pod).pool
        near = self.near(pod)
        if near is None:
            return frozenset()
        if pool not in self._near_kinds:
            rows = [self._fleet.row_of[name] for name in near if self.reports(name)]
            self._near_kinds[pool] = frozenset(int(self._kind_of[row]) for row in rows)
        return self._near_kinds[pool]


class _Room:
    """What is left on the nodes there are, as pods are put there one after the other."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._none: set[tuple[str, Demand]] = set()

    def takes(self, pod: PodSeen, near: frozenset[str] | None) -> bool:
        demand, pool = told(pod).demand, told(pod).pool
        if near is None or (pool, demand) in self._none:
            return False
        fleet = self._fleet
        for row in np.flatnonzero(fits(fleet, demand, fleet.all_rows())).tolist():
            if fleet.names[row] in near and _put(fleet, demand, row):
                return True
        self._none.add((pool, demand))
        return False


@dataclass(slots=True)
class _Fresh:
    """A node that is not there yet, and who would fill it."""

    pool: str
    row: int | None  # None: what it will be like is not known
    pods: list[PodSeen]

    def wanted(self, name: str) -> Wanted:
        demands = [told(pod).demand for pod in self.pods]
        return Wanted(
            name,
            self.pool,
            cpu_milli=sum(demand.cpu_milli for demand in demands),
            ram_mib=sum(demand.ram_mib for demand in demands),
            pods=tuple(f"{pod.namespace}/{pod.name}" for pod in self.pods),
        )


def _packed(
    known: _Known, pods: Sequence[PodSeen], *, most: int
) -> tuple[list[_Fresh], tuple[PodSeen, ...]]:
    """The fresh nodes that these pods need, and those pods that none would help."""
    room, fleet = known.room(), Fleet()
    fresh: list[_Fresh] = []
    full: set[tuple[int, Demand]] = set()
    looks = [(pod, known.like(pod)) for pod in sorted(pods, key=lambda pod: -pod.priority)]
    never = tuple(pod for pod, like in looks if like is Unlike.NEVER)
    for pod, like in [look for look in looks if look[1] is not Unlike.NEVER][:MOST_PODS]:
        if room.takes(pod, known.near(pod)):
            continue
        if not _added(fresh, fleet, pod, full) and len(fresh) < most:
            row = None
            if isinstance(like, NodeGpus):
                row = fleet.set_node(replace(like, name=f"fresh-{len(fresh)}"))
                _put(fleet, told(pod).demand, row)
            fresh.append(_Fresh(told(pod).pool, row, [pod]))
    return fresh, never


def _added(
    fresh: Sequence[_Fresh], fleet: Fleet, pod: PodSeen, full: set[tuple[int, Demand]]
) -> bool:
    """Whether it goes on one of these nodes; of a node of unknown kind we wait and see."""
    demand = told(pod).demand
    for index, node in enumerate(fresh):
        if node.pool != told(pod).pool or (index, demand) in full:
            continue
        if node.row is None:
            return True
        if _put(fleet, demand, node.row):
            node.pods.append(pod)
            return True
        full.add((index, demand))
    return False


def _put(fleet: Fleet, demand: Demand, row: int) -> bool:
    """Mutates `fleet`, if it fits there."""
    cards = choose_cards(fleet, demand, row)
    if cards is None:
        return False
    fleet.take(fleet.grant(row, cards=cards, demand=demand))
    return True


def _soon(state: ClusterState) -> Fleet:
    """Without pods that will be gone soon and without placeholders; what is promised is taken."""
    fleet, promises = state.fleet.copy(), [*state.promises]
    gone = dict(state.placeholders)
    for node in state.leaving_on() | {promise.node for promise in promises}:
        for uid in state.going(node, state.promises.victims(node)):
            gone[uid] = state.pods[uid]
    for pod in gone.values():
        row = fleet.row_of.get(pod.node)
        if row is None:
            continue
        entry = state.ledger.entry(pod.uid)
        if entry is not None and entry.grant is not None:
            fleet.give_back(entry.grant)
        fleet.cpu_free[row] = min(fleet.cpu_free[row] + pod.cpu_milli, fleet.cpu_total[row])
        fleet.ram_free[row] = min(fleet.ram_free[row] + pod.ram_mib, fleet.ram_total[row])
    for promise in promises:
        row = fleet.row_of.get(promise.node)
        if row is not None and state.ledger.entry(promise.uid) is None:
            _put(fleet, promise.demand, row)
    return fleet


def _kinds(state: ClusterState) -> tuple[Fleet, Ints]:
    """One node of each kind, fresh; and for each row of the state's fleet which kind it is."""
    fleet, rows = state.fleet, np.flatnonzero(state.fleet.present[: state.fleet.rows])
    kind_of = np.full(fleet.rows, -1, dtype=np.int64)
    if not len(rows):
        return Fleet(), kind_of
    per_node = (fleet.model, fleet.cpu_total, fleet.ram_total)
    per_card = (fleet.memory_total, fleet.milli_total, fleet.slots_total, fleet.profile)
    looks = np.column_stack([*(one[rows] for one in per_node), *(one[rows] for one in per_card)])
    numbers: dict[bytes, int] = {}  # a tenth of the time that numpy.unique takes
    kind_of[rows] = [numbers.setdefault(look.tobytes(), len(numbers)) for look in looks]
    kinds = Fleet()
    for number in range(len(numbers)):
        alike = rows[kind_of[rows] == number]
        idlest = int(alike[np.argmax(fleet.cpu_free[alike])])
        kinds.set_node(_fresh(state, fleet.names[idlest], str(number)))
    return kinds, kind_of


def _fresh(state: ClusterState, name: str, new_name: str) -> NodeGpus:
    """The node without pods that have GPUs; what is left is mostly there on a fresh one as well."""
    node = state.fleet.nodes[name]
    others = [pod for pod in state.on(name) if pod.granted is None and not pod.placeholder]
    cpu_milli, ram_mib = node.cpu_milli, node.ram_mib
    return replace(
        node,
        name=new_name,
        cards=tuple(replace(card, healthy=True) for card in node.cards),
        cpu_milli=None if cpu_milli is None else cpu_milli - sum(p.cpu_milli for p in others),
        ram_mib=None if ram_mib is None else ram_mib - sum(p.ram_mib for p in others),
    )


def _size(node: NodeGpus) -> tuple[int, int, int, str]:
    memory_mib = sum(card.memory_mib for card in node.cards)
    return len(node.cards), memory_mib, node.cpu_milli or 0, node.name
