# SPDX-License-Identifier: Apache-2.0
"""KEDA writes the count, Tidegate tells it which: one writer, and nobody complains.

All of it is real but the watch, the numbers, and KEDA, of which only the wire is.
"""

from collections.abc import AsyncIterator

import grpc
import pytest

from autoscaler.adapters.kubernetes.annotations import AnnotationWriter
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.cluster import HANDED_OVER_S, KubernetesCluster
from autoscaler.adapters.kubernetes.events import EventRecorder, ObjectRef
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.objects import Workload, autoscaler, workload
from autoscaler.adapters.kubernetes.reports import Reports
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS
from autoscaler.adapters.memory import InMemoryStore
from autoscaler.api.keda.scaler import ExternalScaler
from autoscaler.app.serving import KedaServer
from autoscaler.core.signals import Measure, ServiceId
from autoscaler.loop import ControlLoop, Record
from autoscaler.settings import Address
from tests.adapters.kubernetes.fake_api_server import FakeApiServer, Raw
from tests.adapters.kubernetes.waiting import until
from tests.api.keda.client import Client
from tests.builders import a_reading
from tests.fakes import FakeClock, FakeRoutes, FakeSource

LLM = ServiceId("team", "llm")
DONE = ObjectRef(DEPLOYMENTS, "team", "nothing", "uid-0")


def a_deployment(replicas: int, *, version: int, **ours: str) -> Raw:
    keys = {"enabled": "true", "targets": "queue=4", "max-replicas": "20", **ours}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "team",
            "name": "llm",
            "uid": "uid-1",
            "resourceVersion": str(version),
            "annotations": {f"tidegate.dev/{key}": value for key, value in keys.items()},
        },
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "llm"}}},
    }


def of_keda(api: str, kind: str, name: str) -> Raw:
    """A ScaledObject, or the HPA that KEDA makes of it."""
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"namespace": "team", "name": name},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llm"}},
    }


class Beside:
    """A Deployment that a ScaledObject scales, and a controller that looks at it."""

    def __init__(self, api: KubeApi, server: FakeApiServer) -> None:
        self.clock, inventory = FakeClock(), Inventory()
        self.api, self._server = api, server
        self.cluster = KubernetesCluster(api, inventory, clock=self.clock)
        self.cluster.synced = lambda: True
        self.cluster.scales(DEPLOYMENTS)
        self.cluster.hears(DEPLOYMENTS)
        self.events = EventRecorder(api, instance="tidegate-0", now_s=self.clock.now_s)
        self._reports = Reports(
            self.events, AnnotationWriter(api), cluster=self.cluster, inventory=inventory
        )
        self.source = FakeSource()
        loop = ControlLoop(
            cluster=self.cluster,
            sources=[self.source],
            routes=FakeRoutes(holds=False),
            store=InMemoryStore(),
            clock=self.clock,
        )
        self._scaler = ExternalScaler(loop, now_s=self.clock.now_s)
        loop.on_record = self._recorded
        self.loop = loop
        self.keda = KedaServer(Address("127.0.0.1", 0), self._scaler)
        self.client: Client
        self._seen: Workload | None = None

    def _recorded(self, record: Record) -> None:
        self._reports.recorded(record)
        self._scaler.recorded(record)

    def shows(self, raw: Raw) -> None:
        before, self._seen = self._seen, workload(raw, plural="deployments")
        self.cluster.workload_changed(before, self._seen)

    def scaled_by_keda(self) -> None:
        for raw in (
            of_keda("keda.sh/v1alpha1", "ScaledObject", "llm"),
            of_keda("autoscaling/v2", "HorizontalPodAutoscaler", "keda-hpa-llm"),
        ):
            self.cluster.other_scaler_changed(None, autoscaler(raw))

    async def queues(self, waiting: float, *, for_s: int) -> None:
        for _ in range(for_s):
            self.clock.at_s += 1.0
            at_s = self.clock.at_s
            self.source.measures[LLM] = {
                Measure.HELD: a_reading(0.0, at_s=at_s),
                Measure.HELD_SECONDS_TOTAL: a_reading(0.0, at_s=at_s),
                Measure.IN_FLIGHT: a_reading(waiting, at_s=at_s),
                Measure.WAITING: a_reading(waiting, at_s=at_s),
            }
            await self.loop.tick()

    async def metric(self) -> float:
        asked = self.client.message(
            "GetMetricsRequest", scaledObjectRef=self.client.ref("llm", "team", {})
        )
        (value,) = (await self.client.ask("GetMetrics", asked)).metricValues
        return float(value.metricValueFloat)

    async def said(self) -> dict[str, str]:
        """Every Event so far: reason -> words."""
        self.events.record(DONE, reason="Done", message="all is said")

        def found() -> dict[str, str]:
            events = [
                raw for (_, kind, *_), raw in self._server.objects.items() if kind == "events"
            ]
            return {raw["reason"]: raw["note"] for raw in events}

        await until(lambda: "Done" in found(), "the last event")
        return {reason: words for reason, words in found().items() if reason != "Done"}


@pytest.fixture
async def beside(api: KubeApi, server: FakeApiServer) -> AsyncIterator[Beside]:
    beside = Beside(api, server)
    beside.events.start()
    await beside.keda.start()
    async with grpc.aio.insecure_channel(str(beside.keda.address)) as channel:
        beside.client = Client(channel)
        yield beside
    await beside.keda.stop()
    await beside.events.stop()


async def test_in_a_dry_run_keda_alone_writes_what_tidegate_wishes(beside: Beside) -> None:
    """No conflict, no Event about it, no write of ours; and the wish follows KEDA's own writes."""
    beside.shows(a_deployment(2, version=1, **{"dry-run": "true"}))
    beside.scaled_by_keda()
    await beside.queues(21.0, for_s=10)
    assert await beside.metric() == 6.0
    beside.clock.at_s += HANDED_OVER_S
    beside.shows(a_deployment(6, version=2, **{"dry-run": "true"}))
    await beside.queues(30.0, for_s=10)
    assert beside.cluster.governed[LLM].written_by
    assert await beside.metric() == 8.0
    assert beside.cluster.governed[LLM].problem == ""
    assert await beside.said() == {}
    assert {plural for _, plural in beside.api.requests} == {"events"}


async def test_without_a_dry_run_two_writers_are_none(beside: Beside) -> None:
    """Tidegate stands still, and tells people and KEDA alike why, with the remedy."""
    beside.shows(a_deployment(2, version=1))
    beside.scaled_by_keda()
    await beside.queues(21.0, for_s=10)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await beside.metric()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    words = (await beside.said())["NotScaled"]
    for said in (words, str(refused.value.details())):
        assert "tidegate.dev/dry-run" in said
    assert "ScaledObject llm scales Deployment llm as well" in words
