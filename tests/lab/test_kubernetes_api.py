# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes layer over the real API server: the contract, and what only it can show."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi, Limits, Patch
from autoscaler.adapters.kubernetes.credentials import Credentials
from autoscaler.adapters.kubernetes.errors import Forbidden, Unauthorized
from autoscaler.adapters.kubernetes.events import EventRecorder, Kind, ObjectRef
from autoscaler.adapters.kubernetes.resources import CONFIG_MAPS, PODS
from tests.adapters.kubernetes.contract import ApiContract, Place
from tests.lab import access
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


@pytest.fixture
async def place(lab: Lab) -> AsyncIterator[Place]:
    @asynccontextmanager
    async def away() -> AsyncIterator[None]:
        lab.stop_component("kube-apiserver")
        yield
        lab.compact()
        lab.start_component("kube-apiserver")

    limits = Limits(page_items=2)
    with lab.namespace() as namespace:
        async with KubeApi(Credentials(lab.kubeconfig), limits=limits) as api:
            yield Place(api, namespace, away)


class TestReal(ApiContract):
    """Over the real one."""


async def test_a_role_that_lacks_a_rule_is_told_which(lab: Lab) -> None:
    with lab.namespace() as namespace:
        config = lab.kubeconfig_for("default", namespace=namespace)
        async with KubeApi.connect(config) as api:
            with pytest.raises(Forbidden) as refused:
                await api.get(PODS.path(namespace))
    assert "pods is forbidden" in str(refused.value)
    assert f'a Role in namespace {namespace} that is bound to us: apiGroups [""]' in str(
        refused.value
    )


async def test_a_wrong_token_is_told_apart_from_a_missing_right(lab: Lab) -> None:
    config = access.write_kubeconfig(lab.folder / "wrong.kubeconfig", "wrong")
    async with KubeApi.connect(config) as api:
        with pytest.raises(Unauthorized):
            await api.get(PODS.path("default"))


async def test_the_server_notes_our_writes_as_ours(place: Place) -> None:
    """The loop tells its own scalings from a person's by this name."""
    metadata = {"name": "a"}
    await place.api.create(place.path(), {"metadata": metadata, "data": {"x": "1"}})
    await place.api.patch(place.path("a"), {"data": {"x": "2"}})
    whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"y": "1"}}
    seen = await place.api.patch(place.path("a"), whole, kind=Patch.APPLY)
    writers = {entry["manager"] for entry in seen["metadata"]["managedFields"]}
    assert writers == {"tidegate"}


async def test_kubectl_describe_shows_our_events(lab: Lab, place: Place) -> None:
    uid = (await place.put("a", "1"))["metadata"]["uid"]
    recorder = EventRecorder(place.api, instance="tidegate-0")
    recorder.start()
    for _ in range(2):
        recorder.record(
            ObjectRef(CONFIG_MAPS, place.namespace, "a", uid),
            reason="Refused",
            message="an HPA scales it too",
            kind=Kind.WARNING,
        )
        await recorder.stop()
        recorder.start()
    await recorder.stop()
    shown = lab.kubectl("describe", "configmap", "a", "-n", place.namespace)
    assert "Warning" in shown
    assert "(x2 over" in shown
    assert "tidegate-controller  an HPA scales it too" in shown
