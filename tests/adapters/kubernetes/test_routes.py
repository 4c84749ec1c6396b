# SPDX-License-Identifier: Apache-2.0
"""When a Service's slice of activators goes."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from typing import Any

import pytest

from autoscaler.adapters.kubernetes import objects
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.cluster import KubernetesCluster
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS, ENDPOINT_SLICES
from autoscaler.adapters.kubernetes.routes import KubernetesRoutes
from autoscaler.channel import Hello
from autoscaler.core.routes import Demand, Route
from autoscaler.core.signals import NoReading, ServiceId
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until
from tests.fakes import FakeClock

IRIS = ServiceId("shop", "iris")
SLICE = ENDPOINT_SLICES.path("shop", "tidegate-iris")


class NoActivators:
    """Nobody to tell; what stands in a slice stays as it is."""

    def publish(self, routes: Mapping[str, Route]) -> None:
        """Nobody hears it."""

    def demand(self, service: str) -> Demand | NoReading:
        return NoReading("no activator")

    def holders(self, service: str) -> Collection[Hello]:
        return ()


def a_deployment() -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "iris",
            "uid": "u",
            "resourceVersion": "1",
            "annotations": {"tidegate.dev/enabled": "true"},
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "iris"}},
            "template": {"metadata": {"labels": {"app": "iris"}}, "spec": {"containers": []}},
        },
    }


def a_service() -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": "iris"},
        "spec": {
            "clusterIP": "10.0.0.9",
            "selector": {"app": "iris"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    }


def a_slice() -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "tidegate-iris",
            "labels": {
                "kubernetes.io/service-name": "iris",
                "endpointslice.kubernetes.io/managed-by": "tidegate.dev",
            },
        },
        "endpoints": [{"addresses": ["10.1.0.1"]}],
        "ports": [{"name": "http", "port": 20000}],
    }


@pytest.fixture
def inventory() -> Inventory:
    return Inventory()


@pytest.fixture
def cluster(api: KubeApi, inventory: Inventory) -> KubernetesCluster:
    """One service and the Service before it."""
    cluster = KubernetesCluster(api, inventory, clock=FakeClock())
    cluster.synced = lambda: True
    cluster.scales(DEPLOYMENTS)
    cluster.workload_changed(None, objects.workload(a_deployment(), plural="deployments"))
    inventory.service_changed(None, objects.service(a_service()))
    return cluster


@pytest.fixture
async def routes(
    api: KubeApi, server: FakeApiServer, inventory: Inventory, cluster: KubernetesCluster
) -> AsyncIterator[KubernetesRoutes]:
    """Routes of one Service that has a slice of activators, with their writer running."""
    routes = KubernetesRoutes(
        api, inventory=inventory, cluster=cluster, activators=NoActivators(), clock=FakeClock()
    )
    await cluster.services()
    await server.put(SLICE, a_slice())
    routes.slice_changed(None, objects.our_slice(a_slice()))
    running = asyncio.create_task(routes.run())
    yield routes
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def slices(server: FakeApiServer) -> list[str]:
    return [name for _, plural, _, name in server.objects if plural == "endpointslices"]


async def test_a_slice_goes_only_once_no_kube_proxy_lags_behind(
    routes: KubernetesRoutes, server: FakeApiServer
) -> None:
    """One that hears of it before it hears of the pods would refuse the Service's clients."""
    lagging = True
    routes.proxies_lag = lambda: lagging
    await routes.announce(IRIS, state="active", why="")
    for _ in range(3):
        await routes.release(IRIS)
        await asyncio.sleep(0)
    await api_is_idle(server)
    assert slices(server) == ["tidegate-iris"]
    lagging = False
    await routes.release(IRIS)
    await until(lambda: not slices(server), "the slice to go")


async def test_a_slice_goes_after_the_lag_though_nobody_asks_again(
    routes: KubernetesRoutes, server: FakeApiServer
) -> None:
    """A service whose target is gone for now is in no tick."""
    lagging = True
    routes.proxies_lag = lambda: lagging
    await routes.release(IRIS)
    await api_is_idle(server)
    assert slices(server) == ["tidegate-iris"]
    lagging = False
    await until(lambda: not slices(server), "the slice to go")


async def test_a_service_that_is_withdrawn_does_not_wait_for_kube_proxies(
    routes: KubernetesRoutes, cluster: KubernetesCluster, server: FakeApiServer
) -> None:
    """Its activators stop to listen at once: the slice would lead clients to nobody."""
    routes.proxies_lag = lambda: True
    routes.begin()
    cluster.declared(("deployments", "shop", "iris"), ())
    routes.service_changed(IRIS)
    await until(lambda: not slices(server), "the slice to go")


async def api_is_idle(server: FakeApiServer) -> None:
    """Give whatever was begun the time of a request to this server."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
