# SPDX-License-Identifier: Apache-2.0
"""A loop over fakes, the scaler on a port of its own, and KEDA's side of the wire."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from autoscaler.adapters.memory import InMemoryStore
from autoscaler.api.keda.scaler import ExternalScaler
from autoscaler.app.serving import KedaServer
from autoscaler.core.signals import Measures, NoReading, Quantity, Reading, ServiceId
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView
from autoscaler.settings import Address
from tests.api.keda.client import Client
from tests.builders import a_policy, replicas
from tests.fakes import FakeClock, FakeCluster, FakeRoutes, FakeSource

LLM = ServiceId("team", "llm")


class Keda:
    """One service `team/llm` in a dry run, and a ScaledObject of the same name that asks."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cluster = FakeCluster()
        self.source = FakeSource()
        self.loop = ControlLoop(
            cluster=self.cluster,
            sources=[self.source],
            routes=FakeRoutes(holds=False),
            store=InMemoryStore(),
            clock=self.clock,
        )
        self.scaler = ExternalScaler(self.loop, now_s=self.clock.now_s)
        self.loop.on_record = self.scaler.recorded
        self.server = KedaServer(Address("127.0.0.1", 0), self.scaler)
        self.client: Client

    def serves(
        self,
        *,
        scale: int,
        service: ServiceId = LLM,
        written_by: str = "",
        **policy: object,
    ) -> None:
        """What the platform shows of a service."""
        before = self.cluster.views.get(service)
        self.cluster.views[service] = ServiceView(
            service,
            a_policy(**{"dry_run": True, **policy}),
            generation=before.generation + 1 if before is not None else 1,
            scale=scale,
            replicas=replicas(scale),
            written_by=written_by,
        )

    async def sees(
        self,
        measures: dict[Quantity, Reading | NoReading],
        *,
        service: ServiceId = LLM,
        from_s: float | None = None,
        for_s: float = 10.0,
    ) -> None:
        """The service is measured like this, tick after tick."""
        at_s = self.clock.at_s if from_s is None else from_s
        ends_s = at_s + for_s
        while at_s < ends_s:
            at_s = min(at_s + 1.0, ends_s)
            self.clock.at_s = at_s
            self.source.measures[service] = _at(measures, at_s)
            await self.loop.tick()

    async def active(self, **metadata: str) -> bool:
        return bool((await self.client.ask("IsActive", self.ref(**metadata))).result)

    async def spec(self, **metadata: str) -> Any:
        (spec,) = (await self.client.ask("GetMetricSpec", self.ref(**metadata))).metricSpecs
        return spec

    async def metric(self, name: str = "", **metadata: str) -> Any:
        asked = self.client.message(
            "GetMetricsRequest", scaledObjectRef=self.ref(**metadata), metricName=name
        )
        (value,) = (await self.client.ask("GetMetrics", asked)).metricValues
        return value

    def ref(self, **metadata: str) -> Any:
        theirs = {"scalerAddress": "tidegate-controller.tidegate:8073"}
        return self.client.ref("llm", "team", {**theirs, **metadata})


def _at(measures: dict[Quantity, Reading | NoReading], at_s: float) -> Measures:
    return {
        quantity: replace(seen, at_s=at_s) if isinstance(seen, Reading) else seen
        for quantity, seen in measures.items()
    }


@pytest.fixture
async def keda() -> AsyncIterator[Keda]:
    keda = Keda()
    await keda.server.start()
    async with grpc.aio.insecure_channel(str(keda.server.address)) as channel:
        keda.client = Client(channel)
        yield keda
    await keda.server.stop()
