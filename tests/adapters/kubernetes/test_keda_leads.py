# SPDX-License-Identifier: Apache-2.0
"""A whole controller, as its pod runs it: KEDA is served by whoever leads, and by nobody else."""

import asyncio
import signal

import grpc
import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS, LEASES
from autoscaler.app.kubernetes import LEASE, KubernetesController, Place
from autoscaler.app.serving import bound
from autoscaler.cluster_settings import ClusterSettings
from autoscaler.errors import BadInput
from autoscaler.settings import Address
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.test_beside_keda import a_deployment
from tests.adapters.kubernetes.waiting import PATIENCE_S, until
from tests.api.keda.client import Client

HOME = Address("127.0.0.1", 0)
POD = Place("tidegate-0", "tidegate", "127.0.0.1")


def a_free_place() -> Address:
    with bound(HOME, "a port") as found:
        return Address(*found.getsockname())


def a_lease(holder: str) -> dict[str, object]:
    return {
        "metadata": {"name": LEASE, "namespace": POD.namespace},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 3600, "leaseTransitions": 1},
    }


async def test_who_stands_by_refuses_keda_and_who_leads_answers(
    api: KubeApi, server: FakeApiServer
) -> None:
    """A client that reached another would stay there; refused, it tries again and finds the leader.

    When the leader goes, streams end well.
    """
    lease = LEASES.path(POD.namespace, LEASE)
    await server.put(lease, a_lease("tidegate-1"))
    llm = a_deployment(2, version=1, **{"dry-run": "true"})
    await server.put(DEPLOYMENTS.path("team", "llm"), llm)
    settings = ClusterSettings(api=HOME, channel=HOME, keda=a_free_place())
    controller = asyncio.create_task(KubernetesController(api, settings, POD).run())
    async with grpc.aio.insecure_channel(str(settings.keda)) as channel:
        client = Client(channel)
        asked = client.ref("llm", "team", {})
        # It knows the cluster, and waits for the Lease.
        await until(lambda: ("list", "leases") in api.requests, "a look at the Lease")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.ask("IsActive", asked)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not controller.done()
        await server.put(lease, a_lease(""))
        async with asyncio.timeout(PATIENCE_S):
            await channel.channel_ready()
        assert (await client.ask("IsActive", asked)).result
        stream = aiter(client.listen("StreamIsActive", asked))
        assert (await anext(stream)).result
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    async with asyncio.timeout(PATIENCE_S):
        await controller


async def test_a_port_that_is_taken_is_said_before_anything_begins(api: KubeApi) -> None:
    """With the key of the settings that names it."""
    with bound(HOME, "a port") as taken:
        taken.listen()
        settings = ClusterSettings(api=HOME, keda=Address(*taken.getsockname()))
        with pytest.raises(BadInput, match=r"keda\.listen: cannot listen on 127"):
            KubernetesController(api, settings, POD)
