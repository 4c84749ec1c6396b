# SPDX-License-Identifier: Apache-2.0
"""The main job on a real Kubernetes: an InferenceService to zero and back, and no request lost."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from autoscaler.app.kubernetes import PROXIES_LAG_S
from tests.lab.installed import Tidegate
from tests.lab.lab import Lab, kserve_crds
from tests.lab.place import Place
from tests.lab.traffic import Clients, Tally

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

NAME = "sklearn-iris"
TARGET = f"{NAME}-predictor"
ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
CYCLES = 20


def an_inference_service(**annotations: str) -> dict[str, Any]:
    """The example of KServe's own documentation, opted in."""
    ours = {f"tidegate.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": NAME,
            "annotations": {
                "serving.kserve.io/autoscalerClass": "external",
                "tidegate.dev/enabled": "true",
                **ours,
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": 0,
                "maxReplicas": 3,
                "model": {
                    "modelFormat": {"name": "sklearn"},
                    "storageUri": "gs://kfserving-examples/models/sklearn/1.0/model",
                },
            }
        },
    }


@pytest.fixture
def iris(lab: Lab, tidegate: Tidegate) -> Iterator[str]:
    """The namespace of a sleeping sklearn-iris."""
    if kserve_crds() is None:
        pytest.skip("KServe's CRDs are not on this machine; name them with TIDEGATE_KSERVE_CRDS")
    lab.kserve()
    with lab.namespace("iris") as namespace:
        quick = {"scale_to_zero_after": "2s", "targets": "concurrency=16"}
        lab.apply(an_inference_service(**quick), namespace=namespace)
        lab.wait_for(lambda: replicas(lab, namespace) == 1, what="KServe's first replica")
        asleep(lab, namespace, within_s=60 + PROXIES_LAG_S)
        Place(lab, namespace).emptied()
        yield namespace


def replicas(lab: Lab, namespace: str) -> int | None:
    words = ("get", "deployment", TARGET, "-n", namespace, "-o", "jsonpath={.spec.replicas}")
    said = lab.kubectl(*words, check=False).strip()
    return int(said) if said.isdecimal() else None


def asleep(lab: Lab, namespace: str, *, within_s: float = 40 + PROXIES_LAG_S) -> None:
    lab.wait_for(lambda: replicas(lab, namespace) == 0, what="sleep", within_s=within_s)


def events_on(lab: Lab, namespace: str, kind: str, name: str) -> str:
    """The Events on one object that say it was put to sleep."""
    about = f"reason=Slept,regarding.kind={kind},regarding.name={name}"
    words = ("get", "events.events.k8s.io", "-n", namespace, "--field-selector", about)
    return lab.kubectl(*words, "-o", "name").strip()


def status(lab: Lab, namespace: str) -> str:
    deployment = lab.get("deployment", TARGET, "-n", namespace)
    return str(deployment["metadata"]["annotations"].get("tidegate.dev/status", ""))


def our_slices(lab: Lab, namespace: str) -> list[str]:
    label = "endpointslice.kubernetes.io/managed-by=tidegate.dev"
    return lab.kubectl("get", "endpointslices", "-n", namespace, "-l", label, "-o", "name").split()


def stands_still(tidegate: Tidegate, namespace: str) -> bool:
    """Whether the activators saw no request for three seconds."""
    before = tidegate.passed(namespace)
    time.sleep(3)
    return tidegate.passed(namespace) == before


def url(lab: Lab, namespace: str) -> str:
    address = lab.get("service", TARGET, "-n", namespace)["spec"]["clusterIP"]
    return f"http://{address}/v1/models/{NAME}:predict"


async def test_one_request_wakes_a_sleeping_model(lab: Lab, iris: str) -> None:
    """The client waits for the start, gets its answer, and is told that it was a cold start."""
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(url(lab, iris), json=ROWS)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"predictions": [1, 1]}
    assert answer.headers["x-cold-start"] == "true"


async def test_twenty_cycles_of_two_hundred_clients_lose_nothing(
    lab: Lab, tidegate: Tidegate, iris: str
) -> None:
    """From zero under a crowd, up, and idle to zero again; half the clients keep connections."""
    total, most = Tally(), 0
    async with Clients(url(lab, iris), ROWS, count=200) as clients:
        for _ in range(CYCLES):
            storm = asyncio.create_task(clients.storm(each=5))
            while not storm.done():
                most = max(most, await asyncio.to_thread(lambda: replicas(lab, iris) or 0))
                await asyncio.sleep(0.2)
            total += await storm
            assert not total.lost, total
            await asyncio.to_thread(asleep, lab, iris)
    assert total.answered == total.sent == CYCLES * 200 * 5
    assert most > 1, "one replica was never joined by another"


async def test_once_warm_requests_do_not_pass_the_activator(
    lab: Lab, tidegate: Tidegate, iris: str
) -> None:
    """The slice is gone and the activator's counter stands still while requests go on."""
    async with Clients(url(lab, iris), ROWS, count=8) as clients:
        busy = True
        sending = asyncio.create_task(clients.until(lambda: not busy, pause_s=0.05))
        await asyncio.to_thread(
            lab.wait_for,
            lambda: not our_slices(lab, iris),
            what="the slice to go",
            within_s=60 + PROXIES_LAG_S,
        )
        await asyncio.to_thread(
            lab.wait_for, lambda: stands_still(tidegate, iris), what="the activators' counter"
        )
        busy = False
        tally = await sending
    assert not tally.lost, tally


def test_people_see_what_happened(lab: Lab, iris: str) -> None:
    """Events on the InferenceService and on its Deployment; the status line on the latter alone."""
    for kind, name in (("InferenceService", NAME), ("Deployment", TARGET)):
        lab.wait_for(partial(events_on, lab, iris, kind, name), what=f"an Event on {name}")
    lab.wait_for(lambda: status(lab, iris).startswith("asleep: 0"), what="the status line")
    served = lab.get("inferenceservice", NAME, "-n", iris)
    assert "tidegate.dev/status" not in served["metadata"]["annotations"]
