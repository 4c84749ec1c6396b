# SPDX-License-Identifier: Apache-2.0
"""The whole together: a worker with three models and a GPU share, scaled from zero and packed.

Controller, activators, extender and its kube-scheduler run as the chart installs them. Cards are
judged by the pods' annotations alone.
"""

import asyncio
import base64
import json
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scheduler_extender.core.node_report import GPUS
from tests.lab import gpu
from tests.lab.gpu import granted
from tests.lab.installed import Tidegate
from tests.lab.lab import NODES, Lab
from tests.lab.place import Object, Place, a_deployment, a_service
from tests.lab.test_chart_install import complete
from tests.lab.traffic import Clients, Tally
from tests.serving.models import write_add, write_echo, write_sklearn

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

NAME = "models"
CARD_MIB = 40 * 1024
SHARE_MIB = 12 * 1024
A_CARD = CARD_MIB // SHARE_MIB  # replicas
MOST = A_CARD * len(NODES)  # on one card a node
WISHED = 10
A_REPLICA = 5  # requests at once
SOON_S = 120.0

FILES = {"iris": "iris.skops", "add": "add.onnx", "echo": "echo-FP32.onnx"}
PAIR = {"datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
ASKED: dict[str, tuple[str, Object]] = {
    "iris": ("v1/models/iris:predict", {"instances": [[6.8, 2.8, 4.8, 1.4]]}),
    "add": ("v2/models/add/infer", {"inputs": [{"name": n, **PAIR} for n in ("a", "b")]}),
    "echo": ("v2/models/echo/infer", {"inputs": [{"name": "in", **PAIR}]}),
}


@pytest.fixture(scope="module")
def gpus(lab: Lab, tidegate: Tidegate) -> Iterator[Tidegate]:
    """With scheduler and budget, over nodes of one card each."""
    for node in NODES:
        said = {"metadata": {"annotations": gpu.report(node, 1, CARD_MIB)}}
        lab.kubectl("patch", "node", node, "--type=merge", "-p", json.dumps(said))
    tidegate.upgrade("scheduler.enabled=true", "budget.enabled=true")
    there = Place(lab, tidegate.namespace)
    there.until(lambda: complete(there.get("deployment", "tidegate-scheduler")), within_s=SOON_S)
    yield tidegate
    tidegate.upgrade("scheduler.enabled=false", "budget.enabled=false")
    for node in NODES:
        lab.kubectl("annotate", "node", node, f"{GPUS}-")


@dataclass(frozen=True, slots=True)
class Models:
    """The Deployment of workers, and what one sees of it."""

    place: Place
    tidegate: Tidegate

    @property
    def replicas(self) -> int:
        return int(self.place.get("deployment", NAME)["spec"]["replicas"])

    @property
    def ready(self) -> int:
        return int(self.place.get("deployment", NAME).get("status", {}).get("readyReplicas", 0))

    @property
    def status(self) -> str:
        said = self.place.get("deployment", NAME)["metadata"]["annotations"]
        return str(said.get("tidegate.dev/status", ""))

    def cards(self) -> Counter[str]:
        """How many pods have each card. No card ever gave more than it has."""
        pods = self.place.lab.get("pods", "-n", self.place.namespace)["items"]
        room = {node: {c.uuid: CARD_MIB for c in gpu.cards(node, 1, CARD_MIB)} for node in NODES}
        assert not gpu.doubts(pods, room)
        return Counter(uuid for pod in pods for uuid in granted(pod))

    def packed(self, count: int) -> bool:
        """Whether so many replicas are ready, on as few cards as can be."""
        cards = self.cards()
        few = -(-count // A_CARD)
        return self.replicas == self.ready == cards.total() == count and len(cards) == few

    def events(self) -> list[str]:
        about = f"regarding.name={NAME}"
        where = ("events.events.k8s.io", "-n", self.place.namespace, "--field-selector", about)
        return [item["note"] for item in self.place.lab.get(*where)["items"]]

    def capped(self) -> float:
        """Decisions that the budget bound, by the metrics of the controller that leads."""
        leader = self.tidegate.leader()
        (pod,) = (p for p in self.tidegate.pods("controller") if p["metadata"]["name"] == leader)
        url = f"http://{pod['status']['podIP']}:8070/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        wanted = {"namespace": self.place.namespace, "name": NAME, "rule": "budget"}
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "tidegate_decisions_total" and wanted.items() <= sample.labels.items()
        )


@pytest.fixture
def models(lab: Lab, gpus: Tidegate, tmp_path: Path) -> Iterator[Models]:
    """Asleep."""
    with lab.namespace("whole") as namespace:
        place = Place(lab, namespace)
        place.apply(the_files(tmp_path), a_worker(), a_service(NAME))
        models = Models(place, gpus)
        place.until(lambda: "asleep" in models.status, within_s=SOON_S)
        yield models
        place.kubectl("delete", "deployment", NAME, "--cascade=foreground", "--wait=true")


def the_files(folder: Path) -> Object:
    """The models, as a ConfigMap: they are small."""
    write_add(folder / FILES["add"])
    write_echo(folder / FILES["echo"], "FP32")
    write_sklearn(folder)
    held = {
        name: base64.b64encode((folder / name).read_bytes()).decode() for name in FILES.values()
    }
    meta = {"name": NAME}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "binaryData": held}


def a_worker() -> Object:
    """One Deployment of the worker, with what the webhook would add to its pods written out."""
    words = ["worker", "--host=$(POD_IP)", "--max-queue-delay=1s"]
    words += [f"--model={name}=/mnt/models/{file}" for name, file in FILES.items()]
    fields = {
        "POD_IP": "status.podIP",
        "NVIDIA_VISIBLE_DEVICES": f"metadata.annotations['{gpu.UUIDS}']",
        "TIDEGATE_GPU_UUIDS": f"metadata.annotations['{gpu.UUIDS}']",
        "TIDEGATE_GPU_MEMORY_MIB": f"metadata.annotations['{gpu.MEMORY}']",
    }
    container = {
        "name": "worker",
        "image": "tidegate",
        "args": words,
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in fields.items()
        ],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": 8080},
            "periodSeconds": 1,
        },
        "resources": {"limits": {gpu.MEMORY: str(SHARE_MIB)}},
        "volumeMounts": [{"name": "models", "mountPath": "/mnt/models"}],
    }
    spec = {
        "schedulerName": gpu.SCHEDULER,
        "containers": [container],
        "volumes": [{"name": "models", "configMap": {"name": NAME}}],
    }
    made = a_deployment(NAME, 0, spec)
    made["metadata"]["annotations"] = {
        "tidegate.dev/enabled": "true",
        "tidegate.dev/targets": f"concurrency={A_REPLICA}",
        "tidegate.dev/max-replicas": str(WISHED),
        "tidegate.dev/scale-to-zero-after": "3s",
        "tidegate.dev/scale-down": "window=5s",
    }
    made["spec"]["template"]["metadata"]["annotations"] = {"tidegate.dev/gpu-memory": "12Gi"}
    return made


async def under(models: Models, clients: int, reached: Any) -> Tally:
    """So many clients, a third of them to each model, go on until it is reached."""
    over = False
    address = await asyncio.to_thread(models.place.cluster_ip, NAME)
    async with AsyncExitStack() as stack:
        crowds = [
            await stack.enter_async_context(
                Clients(f"http://{address}/{path}", body, count=clients // len(ASKED))
            )
            for path, body in ASKED.values()
        ]
        sending = asyncio.gather(*(crowd.until(lambda: over) for crowd in crowds))
        try:
            await asyncio.to_thread(models.place.until, reached, within_s=SOON_S)
        finally:
            over = True
            tallies = await sending
    return sum(tallies, Tally())


async def test_a_worker_wakes_is_packed_is_capped_and_sleeps_again(models: Models) -> None:
    """No request is lost on the way, and no card gives more than it has."""
    few = await under(models, 12, lambda: models.packed(A_CARD))
    before = await asyncio.to_thread(models.capped)
    assert before == 0

    def full() -> bool:
        return models.packed(MOST) and models.capped() > 3

    many = await under(models, 48, full)
    print(few, many, models.status, models.events())
    for tally in (few, many):
        assert not tally.lost, tally
        assert tally.answered == tally.sent > 0
    await asyncio.to_thread(models.place.until, lambda: not models.cards(), within_s=SOON_S)
    assert models.replicas == 0
