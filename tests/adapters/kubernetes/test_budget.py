# SPDX-License-Identifier: Apache-2.0
"""The GPUs of a cluster as the budget sees them: nodes, pods, and who waits for a node."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
import pytest

from autoscaler.adapters.kubernetes import gpus
from autoscaler.adapters.kubernetes.annotations import AnnotationWriter
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.budget import KubernetesBudget
from autoscaler.adapters.kubernetes.cluster import KubernetesCluster
from autoscaler.adapters.kubernetes.events import EventRecorder
from autoscaler.adapters.kubernetes.gpus import PLUGIN, PRODUCT, GpuUse, needs_of, use_of
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.reports import Reports
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS, NODES, PODS
from autoscaler.adapters.kubernetes.routes import KubernetesRoutes
from autoscaler.adapters.kubernetes.watches import Scope, Watches
from autoscaler.adapters.memory import InMemoryStore
from autoscaler.app.kubernetes import KubernetesController, Place
from autoscaler.cluster_settings import ClusterSettings
from autoscaler.core.budget import Room
from autoscaler.core.decide import Decision
from autoscaler.core.proposal import Bound
from autoscaler.core.signals import Measure, Measures, NoReading, ServiceId
from autoscaler.loop import ControlLoop
from autoscaler.settings import Address
from scheduler_extender.core.annotations import Granted
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.room import how_many_fit
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.test_routes import NoActivators
from tests.adapters.kubernetes.waiting import PATIENCE_S, until
from tests.builders import a_reading
from tests.fakes import FakeClock, FakeRoutes, FakeSource

Raw = dict[str, Any]
LLM = ServiceId("team", "llm")
CARD_MIB = 20_480
SHARE = {"tidegate.dev/gpu-memory": "12Gi"}


def a_node(
    name: str = "n",
    *,
    cards: int = 0,
    plugin: int = 0,
    model: str = "",
    report: str = "",
    ready: str = "True",
    **spec: object,
) -> Raw:
    """`cards` that its agent reports, `plugin` that a device plugin gives out."""
    told = {
        "version": 1,
        "cards": [{"uuid": f"GPU-{name}-{i}", "memory_mib": CARD_MIB} for i in range(cards)],
    }
    report = report or (orjson.dumps(told).decode() if cards else "")
    return {
        "metadata": {
            "name": name,
            "labels": {PRODUCT: model} if model else {},
            "annotations": {"tidegate.dev/gpus": report} if report else {},
        },
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "1", **({PLUGIN: str(plugin)} if plugin else {})},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def a_pod(
    *, node: str = "", phase: str = "Running", plugin: int = 0, label: str = "", **annotations: str
) -> Raw:
    """`annotations`: without the prefix, with underscores."""
    keys = {f"tidegate.dev/{key.replace('_', '-')}": text for key, text in annotations.items()}
    limits = {PLUGIN: str(plugin)} if plugin else {}
    return {
        "metadata": {"uid": "u", "labels": {"app": label} if label else {}, "annotations": keys},
        "spec": {
            "containers": [{"name": "c", "resources": {"limits": limits}}],
            **({"nodeName": node} if node else {}),
        },
        "status": {"phase": phase},
    }


def granted(node: str, *cards: int, mib: int = 12_288, label: str = "") -> Raw:
    """A pod that was bound by the extender."""
    uuids = ",".join(f"GPU-{node}-{card}" for card in cards)
    return a_pod(
        node=node,
        label=label,
        gpu_uuids=uuids,
        gpu_mem_mib=str(mib),
        gpu_core_percent="0",
    )


def refused(pod: Raw, reason: str = "Unschedulable") -> Raw:
    """A pod that a scheduler found no node for."""
    said = {"type": "PodScheduled", "status": "False", "reason": reason}
    pod["status"]["conditions"] = [said]
    return pod


@pytest.mark.parametrize(
    ("pod", "use"),
    [
        (a_pod(node="n"), None),
        (a_pod(), None),
        (a_pod(node="n", plugin=2), GpuUse("n", plugin=2)),
        (a_pod(node="n", plugin=2, phase="Succeeded"), None),
        (granted("n", 0, 3), GpuUse("n", Granted(("GPU-n-0", "GPU-n-3"), 12_288, 0))),
        (a_pod(node="n", gpu_uuids="GPU-n-0", gpu_mem_mib="much"), None),
        (a_pod(gpu_memory="12Gi"), GpuUse("", waits_for=Demand(memory_mib=12_288))),
        (a_pod(plugin=1), GpuUse("", waits_for=Demand(profile=PLUGIN))),
        (a_pod(gpu_memory="much"), None),
        (refused(a_pod(gpu_memory="12Gi")), None),
        (refused(a_pod(gpu_memory="12Gi"), "SchedulingGated"), None),
        (
            refused(a_pod(gpu_memory="12Gi"), "SchedulerError"),
            GpuUse("", waits_for=Demand(memory_mib=12_288)),
        ),
    ],
    ids=[
        "no GPU on a node",
        "no GPU, on no node yet",
        "of a device plugin",
        "ended",
        "granted",
        "granted what makes no sense",
        "waits for a share",
        "waits for a whole one",
        "waits for what nobody can read",
        "looked at, and fits nowhere",
        "gated",
        "looked at in vain, and tried again",
    ],
)
def test_what_a_pod_uses_or_waits_for(pod: Raw, use: GpuUse | None) -> None:
    assert use_of(pod) == use


def test_a_template_is_read_without_what_the_budget_does_not_count() -> None:
    """So that replicas that differ in CPU alone are alike."""
    raw = a_pod(gpu_memory="25%", gpu_core="30%", gpu_models="B,A", mesh="m", gpu_policy="spread")
    raw["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "4", "memory": "8Gi"}
    assert needs_of(raw) == Demand(memory_milli=250, milli=300, models=("A", "B"))


def test_the_model_that_a_template_selects_is_part_of_its_demand() -> None:
    raw = a_pod(plugin=4)
    raw["spec"]["nodeSelector"] = {PRODUCT: "A100"}
    assert needs_of(raw) == Demand(4, profile=PLUGIN, models=("A100",))


@pytest.mark.parametrize(
    "raw",
    [
        a_node(),
        a_node(cards=2, ready="False"),
        a_node(cards=2, ready="Unknown"),
        a_node(plugin=2, unschedulable=True),
    ],
    ids=["no GPU", "not ready", "not heard of", "cordoned"],
)
def test_a_node_that_takes_no_gpu_pods_has_no_room(raw: Raw) -> None:
    assert gpus.node(raw) is None


def test_a_report_that_cannot_be_read_leaves_the_node_as_it_was() -> None:
    """An informer keeps what it read last when its parser raises ValueError."""
    with pytest.raises(ValueError, match=r"tidegate\.dev/gpus: "):
        gpus.node(a_node(report="{"))


class Watched:
    """A budget, and the watches that tell it what an API server has."""

    def __init__(self, api: KubeApi, *, namespaces: tuple[str, ...] = ()) -> None:
        clock, inventory = FakeClock(), Inventory()
        self.clock, self.inventory = clock, inventory
        self.cluster = KubernetesCluster(api, inventory, clock=clock)
        self.budget = KubernetesBudget(self.cluster, inventory)
        routes = KubernetesRoutes(
            api,
            inventory=inventory,
            cluster=self.cluster,
            activators=NoActivators(),
            clock=clock,
        )
        self.watches = Watches(
            api,
            Scope("tidegate", namespaces),
            inventory=inventory,
            cluster=self.cluster,
            routes=routes,
            budget=self.budget,
        )
        self.source = FakeSource()
        self.loop = ControlLoop(
            cluster=self.cluster,
            sources=[self.source],
            routes=FakeRoutes(holds=False),
            store=InMemoryStore(),
            clock=clock,
            budget=self.budget,
        )

    async def until_listed(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.watches.wait_synced()
        assert self.budget.unknown() == ""

    def reports(self, api: KubeApi) -> EventRecorder:
        """Have decisions told as Events; returns where they are."""
        events = EventRecorder(api, instance="tidegate-0", now_s=self.clock.now_s)
        reports = Reports(
            events, AnnotationWriter(api), cluster=self.cluster, inventory=self.inventory
        )
        self.loop.on_record = reports.recorded
        return events

    def fit(self, demand: Demand) -> int:
        """How many fit beside those that wait for a node themselves, if these need the same."""
        room = self.budget.room()
        assert isinstance(room, Room), room
        return how_many_fit(room.fleet, demand) - sum(each == demand for each in room.awaited)

    async def until_fit(self, count: int, demand: Demand) -> None:
        await until(lambda: self.fit(demand) == count, f"{count} fit")

    async def wants(self, replicas: int) -> Decision:
        """One tick with work for so many replicas that carry one request each."""
        self.clock.at_s += 1.0
        nothing: Measures = {measure: a_reading(0.0, at_s=self.clock.at_s) for measure in Measure}
        self.source.measures[LLM] = {**nothing, Measure.HELD: a_reading(replicas)}
        await self.loop.tick()
        return self.loop.records[LLM][-1].decision


@pytest.fixture
async def watched(api: KubeApi) -> AsyncIterator[Watched]:
    watched = Watched(api)
    watched.watches.start()
    yield watched
    await watched.watches.stop()


async def put_pod(server: FakeApiServer, name: str, raw: Raw, *, namespace: str = "team") -> None:
    raw["metadata"].pop("uid", None)
    await server.put(PODS.path(namespace, name), raw)


async def put_service(
    server: FakeApiServer,
    replicas: int,
    template: Mapping[str, str] = SHARE,
    **ours: str,
) -> None:
    raw = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "annotations": {
                "tidegate.dev/enabled": "true",
                "tidegate.dev/targets": "concurrency=1",
                "tidegate.dev/max-replicas": "20",
                **{f"tidegate.dev/{key}": text for key, text in ours.items()},
            }
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "llm"}},
            "template": {
                "metadata": {"labels": {"app": "llm"}, "annotations": dict(template)},
                "spec": {"containers": [{"name": "c"}]},
            },
        },
    }
    await server.put(DEPLOYMENTS.path("team", "llm"), raw)


def count_of(server: FakeApiServer) -> object:
    return server.objects["apps", "deployments", "team", "llm"]["spec"]["replicas"]


async def test_gpus_are_free_as_pods_come_and_go(server: FakeApiServer, watched: Watched) -> None:
    """Shares by what was granted; of a device plugin's GPUs what its pods request."""
    share, whole = Demand(memory_mib=12_288), Demand(profile=PLUGIN)
    await server.put(NODES.path("", "a"), a_node("a", cards=2))
    await server.put(NODES.path("", "b"), a_node("b", plugin=4))
    await watched.until_listed()
    await watched.until_fit(2, share)
    await watched.until_fit(4, whole)
    await put_pod(server, "one", granted("a", 0))
    await put_pod(server, "two", a_pod(node="b", plugin=3))
    await watched.until_fit(1, share)
    await watched.until_fit(1, whole)
    await server.remove(PODS.path("team", "one"))
    await watched.until_fit(2, share)
    await put_pod(server, "two", a_pod(node="b", plugin=3, phase="Succeeded"))
    await watched.until_fit(4, whole)
    await server.put(NODES.path("", "b"), a_node("b", plugin=4, unschedulable=True))
    await watched.until_fit(0, whole)
    await server.remove(NODES.path("", "a"))
    await watched.until_fit(0, share)


async def test_a_pod_that_waits_for_a_node_is_to_have_its_gpu(
    server: FakeApiServer, watched: Watched
) -> None:
    """And has it once, when it is bound."""
    share = Demand(memory_mib=12_288)
    await server.put(NODES.path("", "a"), a_node("a", cards=2))
    await put_pod(server, "one", a_pod(gpu_memory="12Gi"))
    await watched.until_listed()
    await watched.until_fit(1, share)
    bound = granted("a", 1)
    bound["metadata"]["annotations"]["tidegate.dev/gpu-memory"] = "12Gi"
    await put_pod(server, "one", bound)
    await until(lambda: not watched.budget.room().awaited, "it is bound")  # type: ignore[union-attr]
    assert watched.fit(share) == 1


async def test_a_pod_that_fits_nowhere_keeps_no_gpu_from_others(
    server: FakeApiServer, watched: Watched
) -> None:
    """A queue of work that waits for other nodes must not put every service to a stop."""
    share = Demand(memory_mib=12_288)
    await server.put(NODES.path("", "a"), a_node("a", cards=2))
    await put_pod(server, "one", a_pod(gpu_memory="12Gi"))
    await watched.until_listed()
    await watched.until_fit(1, share)
    await put_pod(server, "one", refused(a_pod(gpu_memory="12Gi")))
    await watched.until_fit(2, share)


async def test_more_on_a_card_than_it_has_leaves_nothing_and_harms_nothing(
    server: FakeApiServer, watched: Watched
) -> None:
    """Who has too much is the extender's to find out."""
    await server.put(NODES.path("", "a"), a_node("a", cards=1))
    for name in ("one", "two", "three"):
        await put_pod(server, name, granted("a", 0, 7))
    await watched.until_listed()
    await watched.until_fit(0, Demand(memory_mib=1))


async def test_a_wish_for_more_than_fits_is_capped_in_the_cluster(
    server: FakeApiServer, watched: Watched
) -> None:
    """Two of five, though the pods of the first tick are nowhere to be seen at the second."""
    await server.put(NODES.path("", "a"), a_node("a", cards=2))
    await put_service(server, 0)
    await watched.until_listed()
    decision = await watched.wants(5)
    assert (decision.replicas, decision.bound_by) == (2, Bound.BUDGET)
    assert decision.because[-1] == "budget: 2 of 5 more fit: 12 GiB each, largest hole 8 GiB"
    assert count_of(server) == 2
    decision = await watched.wants(5)
    assert (decision.replicas, decision.bound_by) == (2, Bound.BUDGET)
    await server.put(NODES.path("", "b"), a_node("b", cards=1))
    await watched.until_fit(1, Demand(memory_mib=12_288))
    assert (await watched.wants(5)).replicas == 3


async def test_a_count_that_stays_for_want_of_gpus_is_told_once(
    server: FakeApiServer, api: KubeApi, watched: Watched
) -> None:
    """With what is missing, as an Event; the status line says so without a number."""
    await server.put(NODES.path("", "a"), a_node("a", cards=1))
    await put_pod(server, "one", granted("a", 0, label="llm"))
    await put_service(server, 1)
    await watched.until_listed()
    events = watched.reports(api)
    await watched.wants(1)
    events.start()
    for _ in range(3):
        decision = await watched.wants(4)
    assert decision.why.endswith("no free GPU has room for more")
    await until(lambda: told(server), "an Event")
    await events.stop()
    assert told(server) == [
        "1 replicas stay: budget: 0 of 3 more fit: 12 GiB each, largest hole 8 GiB"
    ]


def told(server: FakeApiServer) -> list[str]:
    events = (raw for key, raw in server.objects.items() if key[1] == "events")
    return [raw["note"] for raw in events if raw["reason"] == "NoRoom"]


async def test_services_whose_kind_of_gpu_no_node_tells_of_are_not_capped(
    server: FakeApiServer, watched: Watched
) -> None:
    """Shares where only a device plugin speaks: whoever places these pods, it is not known."""
    await server.put(NODES.path("", "b"), a_node("b", plugin=1))
    await put_service(server, 0)
    await watched.until_listed()
    assert (await watched.wants(5)).replicas == 5
    await server.put(NODES.path("", "a"), a_node("a", cards=1))
    await watched.until_fit(1, Demand(memory_mib=12_288))
    assert (await watched.wants(9)).replicas == 5  # the first of the five will have it


async def test_services_without_gpus_are_not_capped(
    server: FakeApiServer, watched: Watched
) -> None:
    await server.put(NODES.path("", "b"), a_node("b", plugin=1))
    await put_service(server, 0, template={})
    await watched.until_listed()
    assert (await watched.wants(5)).replicas == 5


async def test_who_may_not_list_nodes_wakes_its_services_all_the_same(
    server: FakeApiServer, watched: Watched
) -> None:
    """All else is in sync, and the reason is told."""
    server.forbidden.add("nodes")
    await put_service(server, 0)
    async with asyncio.timeout(PATIENCE_S):
        await watched.watches.wait_synced()
    assert "403" in watched.budget.unknown()
    assert isinstance(watched.budget.room(), NoReading)
    assert (await watched.wants(5)).replicas == 5


async def test_pods_of_other_namespaces_have_their_gpus(
    server: FakeApiServer, api: KubeApi
) -> None:
    """Though only the services of one namespace are scaled."""
    await server.put(NODES.path("", "a"), a_node("a", cards=2))
    await put_pod(server, "one", granted("a", 0), namespace="elsewhere")
    await put_pod(server, "two", granted("a", 1), namespace="team")
    watched = Watched(api, namespaces=("team",))
    watched.watches.start()
    try:
        await watched.until_listed()
        await watched.until_fit(0, Demand(memory_mib=12_288))
    finally:
        await watched.watches.stop()


@pytest.mark.parametrize(("on", "count"), [(True, 2), (False, 5)], ids=["switched on", "off"])
async def test_a_whole_controller_goes_by_its_budget_where_that_is_switched_on(
    server: FakeApiServer, api: KubeApi, on: bool, count: int
) -> None:
    """Five replicas as a floor, and GPUs for two; without it nobody asks for nodes."""
    await server.put(NODES.path("", "a"), a_node("a", plugin=2))
    await put_service(server, 0, template={}, **{"min-replicas": "5"})
    raw = server.objects["apps", "deployments", "team", "llm"]
    limits = {"limits": {PLUGIN: "1"}}
    raw["spec"]["template"]["spec"]["containers"][0]["resources"] = limits
    here = Address("127.0.0.1", 0)
    settings = ClusterSettings(api=here, channel=here, budget_gpus=on)
    place = Place("tidegate-0", "tidegate", "127.0.0.1")
    controller = asyncio.create_task(KubernetesController(api, settings, place).run())
    await until(lambda: controller.done() or count_of(server), "the count is written")
    assert count_of(server) == count
    assert (("list", "nodes") in api.requests) is on
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        await controller
