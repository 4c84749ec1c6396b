# SPDX-License-Identifier: Apache-2.0
"""Clusters, nodes and calls of kube-scheduler, small and with full defaults."""

from dataclasses import dataclass, field
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from scheduler_extender.binding import Binds
from scheduler_extender.core.gpus import Card, NodeGpus
from scheduler_extender.core.node_report import NodeReport, NodeSeen
from scheduler_extender.metrics import PreemptionMetrics
from scheduler_extender.preemption.preempting import Preempting
from scheduler_extender.state import ClusterState
from scheduler_extender.verbs import Verbs
from tests.scheduler_extender.fakes import (
    Clock,
    FakeBinder,
    FakeCluster,
    FakeEvictor,
    FakeLease,
    FakeReporter,
    FakeRetries,
    FakeWatch,
)

CARD_MIB = 40_000
OURS = "tidegate"  # the namespace of the extender


def a_node(
    name: str,
    *,
    cards: int = 2,
    memory_mib: int = CARD_MIB,
    model: str = "A",
    ill: int = 0,
    mixed: bool = False,
) -> NodeSeen:
    """The first `ill` cards are not healthy. A mixed node's device plugin has all that are."""
    gpus = tuple(
        Card(f"GPU-{name}-{index}", memory_mib, healthy=index >= ill) for index in range(cards)
    )
    report = NodeReport(NodeGpus(name, gpus, model=model), mixed=mixed)
    return NodeSeen(name, f"uid-{name}", report, plugin=cards - ill if mixed else 0)


@dataclass
class Extender:
    """One process with everything in it but HTTP, in sync with the cluster when it is made."""

    cluster: FakeCluster
    nodes: list[NodeSeen]
    binder: FakeBinder
    lease: FakeLease = field(default_factory=FakeLease)

    def __post_init__(self) -> None:
        clock = self.cluster.clock
        self.state = ClusterState(OURS)
        self.binds = Binds(self.state, binder=self.binder, lease=self.lease, now_s=clock.now_s)
        self.verbs = Verbs(self.state, self.binds)
        self.evictor = FakeEvictor(self.cluster, fate=self.binder._fate)
        self.retries = FakeRetries()
        self.reporter = FakeReporter()
        self.preempting = Preempting(
            self.state,
            evictor=self.evictor,
            retries=self.retries,
            reporter=self.reporter,
            lease=self.lease,
            metrics=PreemptionMetrics(CollectorRegistry()),
            epoch_s=clock.now_s,
            now_s=clock.now_s,
        )
        self.watch = FakeWatch(self.cluster, self.state)
        for node in self.nodes:
            self.state.node_seen(node)
        self.state.nodes_listed({node.name for node in self.nodes})
        self.watch.list_all(began_s=clock.s)

    def filter(self, pod: dict[str, Any], *names: str) -> dict[str, Any]:
        found = orjson.loads(self.verbs.filter(candidates(pod, *names)))
        assert isinstance(found, dict)
        return found

    def pick(self, pod: dict[str, Any], *names: str) -> dict[str, Any]:
        """ExtenderFilterResult, of the winner alone."""
        found: dict[str, Any] = orjson.loads(self.verbs.pick(candidates(pod, *names)))
        return found

    def scores(self, pod: dict[str, Any], *names: str) -> dict[str, int]:
        listed = orjson.loads(self.verbs.prioritise(candidates(pod, *names)))
        return {entry["Host"]: entry["Score"] for entry in listed}

    async def bind(self, pod: dict[str, Any], node: str) -> str:
        meta = pod["metadata"]
        asked = {
            "PodName": meta["name"],
            "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"],
            "Node": node,
        }
        return str(orjson.loads(await self.verbs.bind(orjson.dumps(asked)))["Error"])


def an_extender(*nodes: NodeSeen, cluster: FakeCluster | None = None) -> Extender:
    cluster = cluster or FakeCluster(Clock())
    return Extender(cluster, list(nodes), FakeBinder(cluster))


def candidates(pod: dict[str, Any], *names: str) -> bytes:
    return orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": list(names)})
