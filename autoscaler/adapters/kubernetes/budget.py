# SPDX-License-Identifier: Apache-2.0
"""The free GPUs of a cluster as `ports.Budget`: nodes and pods as their watches tell. No I/O.

A node's row is counted anew only when something on it changed and somebody asks: most ticks raise
nothing, and read nothing here.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Final

import numpy as np
import structlog

from autoscaler.adapters.kubernetes.cluster import Governed, KubernetesCluster
from autoscaler.adapters.kubernetes.gpus import PLUGIN, GpuNode, GpuUse
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.objects import Pod
from autoscaler.core.budget import Room
from autoscaler.core.signals import NoReading, ServiceId
from scheduler_extender.core.annotations import Granted
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet, Grant, Part

log = structlog.get_logger(__name__)

Key = tuple[str, str]
REPORTED: Final = "GPUs that node agents report"


class KubernetesBudget:
    """`unknown()`: why nodes or pods are not all seen yet; empty once they are."""

    def __init__(self, cluster: KubernetesCluster, inventory: Inventory) -> None:
        self.unknown: Callable[[], str] = lambda: "nodes are still being listed"
        self._cluster = cluster
        self._inventory = inventory
        self._fleet = Fleet()
        self._nodes: dict[str, GpuNode] = {}
        self._on: defaultdict[str, dict[str, GpuUse]] = defaultdict(dict)  # by node and pod UID
        self._waiting: dict[str, Demand] = {}  # by pod UID
        self._changed: set[str] = set()  # nodes to be counted anew
        self._told: Counter[str] = Counter()  # how many nodes tell of which kind of GPU
        self._said: set[str] = set()

    # What the watches tell

    def node_changed(self, key: Key, old: GpuNode | None, new: GpuNode | None) -> None:
        name = key[1]
        if new is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = new
        self._told.subtract(_kinds(old))
        self._told.update(_kinds(new))
        self._changed.add(name)

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        before = old.gpus if old is not None else None
        after = new.gpus if new is not None else None
        if old is not None and before is not None:
            self._waiting.pop(old.uid, None)
            self._leaves(before.node, old.uid)
        if new is None or after is None:
            return
        if after.waits_for is not None:
            self._waiting[new.uid] = after.waits_for
        else:
            self._on[after.node][new.uid] = after
            self._changed.add(after.node)

    # ports.Budget

    def needs(self, service: ServiceId) -> Demand | None:
        governed = self._cluster.governed.get(service)
        needs = None if governed is None else self._needs(governed)
        return needs if needs is None or self._is_told(needs) else None

    def room(self) -> Room | NoReading:
        why = self.unknown()
        if why:
            return NoReading(why)
        while self._changed:
            self._count(self._changed.pop())
        return Room(self._fleet, (*self._waiting.values(), *self._missing()))

    def _needs(self, governed: Governed) -> Demand | None:
        workload = self._inventory.workloads.get(governed.target)
        return None if workload is None else workload.needs

    def _is_told(self, needs: Demand) -> bool:
        """Whether any node tells of such GPUs; where none does, that they are free is not known."""
        if self.unknown():
            return True  # the room will say so
        kind = PLUGIN if needs.profile == PLUGIN else REPORTED
        if self._told[kind]:
            return True
        if kind not in self._said:
            self._said.add(kind)
            log.warning("no node tells of these GPUs; who asks for them is not capped", gpus=kind)
        return False

    def _missing(self) -> Iterator[Demand]:
        """Replicas that were asked for, and are no pods yet."""
        for governed in self._cluster.governed.values():
            pods = self._inventory.pods_of(governed.target).values()
            missing = governed.scale - sum(not pod.deleting for pod in pods)
            needs = self._needs(governed) if missing > 0 else None
            if needs is not None:
                yield from repeat(needs, missing)

    # How a node's row comes about

    def _leaves(self, node: str, uid: str) -> None:
        if self._on.get(node, {}).pop(uid, None) is not None:
            self._changed.add(node)
            if not self._on[node]:
                del self._on[node]

    def _count(self, name: str) -> None:
        node = self._nodes.get(name)
        if node is None:
            if name in self._fleet.row_of:
                self._fleet.remove_node(name)
            return
        pods = self._on.get(name, {}).values()
        used = sum(pod.plugin for pod in pods)
        row = self._fleet.set_node(node.beside(used))
        for pod in pods:
            if pod.granted is not None:
                self._take(row, pod.granted)
        if node.mixed:
            self._keep(row, of=len(node.gpus.cards), idle=node.left(used))

    def _keep(self, row: int, *, of: int, idle: int) -> None:
        """Of the first cards of a node, those that pods share, and so many that nobody has."""
        fleet = self._fleet
        unused = fleet.slots_free[row, :of] == fleet.slots_total[row, :of]
        for card in np.flatnonzero(unused & fleet.usable[row, :of])[idle:]:
            fleet.set_usable(row, card=int(card), usable=False)

    def _take(self, row: int, granted: Granted) -> None:
        """As much of it as the cards have: who has too much is the extender's to find out."""
        fleet = self._fleet
        cards = fleet.nodes[fleet.names[row]].cards
        parts = tuple(
            Part(
                index,
                card.uuid,
                memory_mib=min(granted.memory_mib, int(fleet.memory_free[row, index])),
                milli=min(granted.milli, int(fleet.milli_free[row, index])),
            )
            for index, card in enumerate(cards)
            if card.uuid in granted.uuids and fleet.slots_free[row, index] > 0
        )
        fleet.take(Grant(fleet.names[row], parts))


def _kinds(node: GpuNode | None) -> Iterator[str]:
    if node is not None and node.plugin:
        yield PLUGIN
    if node is not None and node.gpus.cards:
        yield REPORTED
