# SPDX-License-Identifier: Apache-2.0
"""A whole controller, as its pod runs it, with a Prometheus in its settings."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS
from autoscaler.app.kubernetes import KubernetesController, Place
from autoscaler.cluster_settings import ClusterSettings
from autoscaler.prometheus_settings import PrometheusSettings
from autoscaler.settings import Address
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.test_beside_keda import a_deployment
from tests.adapters.kubernetes.waiting import PATIENCE_S, until
from tests.adapters.prometheus.between import Between, saying

HOME = Address("127.0.0.1", 0)
POD = Place("tidegate-0", "tidegate", "127.0.0.1")


@pytest.fixture
def prometheus() -> Iterator[Between]:
    """One that knows nothing, whatever it is asked."""
    there = Between(None)
    there.spoil = saying(200, '{"status":"success","data":{"resultType":"vector","result":[]}}')
    yield there
    there.stop()


async def test_who_leads_asks_for_the_targets_of_its_services(
    api: KubeApi, server: FakeApiServer, prometheus: Between
) -> None:
    """With the names of each in place, beside one query for each signal."""
    llm = a_deployment(2, version=1, targets='prometheus(sum(depth{of="$NAMESPACE/$NAME"}))=5')
    await server.put(DEPLOYMENTS.path("team", "llm"), llm)
    settings = ClusterSettings(
        api=HOME, channel=HOME, prometheus=PrometheusSettings(prometheus.url)
    )
    controller = asyncio.create_task(KubernetesController(api, settings, POD).run())
    wanted = 'sum(depth{of="team/llm"})'
    await until(lambda: wanted in [one.form["query"] for one in prometheus.asked], wanted)
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        await controller
