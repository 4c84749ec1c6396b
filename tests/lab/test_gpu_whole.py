# SPDX-License-Identifier: Apache-2.0
"""The whole together: a worker with three models and a GPU share, scaled from zero and packed.

Controller, activators, extender with its kube-scheduler, and webhook run as the chart installs
them. Cards are judged by the pods' annotations alone.
"""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from scheduler_extender.core.node_report import GPUS
from tests.lab import gpu
from tests.lab.gpu import granted
from tests.lab.installed import Tidegate
from tests.lab.lab import NODES, REPOSITORY, Lab
from tests.lab.place import Object, Place, a_service
from tests.lab.test_chart_install import ask, complete
from tests.lab.traffic import Clients, Tally
from tests.serving.models import write_add, write_echo, write_sklearn

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

NAME = "models"
CARD_MIB = 40 * 1024
SHARE_MIB = 12 * 1024
A_CARD = CARD_MIB // SHARE_MIB  # so many replicas
MOST = A_CARD * len(NODES)  # on one card a node
ROOM = {node: {card.uuid: CARD_MIB for card in gpu.cards(node, 1, CARD_MIB)} for node in NODES}
FULL = Counter({uuid: A_CARD for cards in ROOM.values() for uuid in cards})
WISHED = 10  # at most
SOON_S = 120.0

FILES = {"iris": "iris.skops", "add": "add.onnx", "echo": "echo.onnx"}
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
    runtime = "scheduler.runtimeClassName="  # the lab has none for GPUs
    tidegate.upgrade("scheduler.enabled=true", "budget.enabled=true", runtime)
    there = Place(lab, tidegate.namespace)
    names = ("tidegate-scheduler", "tidegate-admission")

    def up() -> bool:
        return all((one := there.get("deployment", name)) and complete(one) for name in names)

    there.until(up, within_s=SOON_S)
    yield tidegate
    tidegate.upgrade("scheduler.enabled=false", "budget.enabled=false")
    for node in NODES:
        lab.kubectl("annotate", "node", node, f"{GPUS}-")


@dataclass(frozen=True, slots=True)
class Models:
    """The Deployment of workers, and what one sees of it."""

    place: Place
    tidegate: Tidegate

    def deployment(self) -> Object:
        return self.place.get("deployment", NAME)

    def status(self) -> str:
        said = self.deployment()["metadata"]["annotations"]
        return str(said.get("tidegate.dev/status", ""))

    def pods(self) -> list[Object]:
        """Never more than fit, and no card ever gave more than it has."""
        found: list[Object] = self.place.lab.get("pods", "-n", self.place.namespace)["items"]
        assert len(found) <= MOST
        assert not gpu.doubts(found, ROOM)
        return found

    def cards(self) -> Counter[str]:
        """How many replicas have each card, once all that are asked for are ready; else none."""
        deployment, pods = self.deployment(), self.pods()
        wanted = deployment["spec"]["replicas"]
        ready = deployment.get("status", {}).get("readyReplicas", 0)
        had = Counter(uuid for pod in pods for uuid in granted(pod))
        return had if ready == wanted == had.total() else Counter()

    def events(self) -> list[str]:
        about = f"regarding.name={NAME}"
        where = ("events.events.k8s.io", "-n", self.place.namespace, "--field-selector", about)
        return [item["note"] for item in self.place.lab.get(*where)["items"]]

    def told(self) -> Object:
        """As the API of the controller that leads tells it."""
        return self.tidegate.service(self.place.namespace, NAME) or {}

    def capped(self) -> float:
        """Decisions that the budget bound, by that controller's metrics."""
        wanted = {"namespace": self.place.namespace, "name": NAME, "rule": "budget"}
        leader = self.tidegate.leader()
        text = next(
            ask(f"http://{pod['status']['podIP']}:8070/metrics")
            for pod in self.tidegate.pods("controller")
            if pod["metadata"]["name"] == leader
        )
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "tidegate_decisions_total" and wanted.items() <= sample.labels.items()
        )


@pytest.fixture
def models(lab: Lab, gpus: Tidegate, tmp_path: Path) -> Iterator[Models]:
    """Asleep, with an activator in the path of the new Service."""
    with lab.namespace("whole") as namespace:
        place = Place(lab, namespace)
        place.apply(the_files(tmp_path), a_worker(), a_service(NAME))
        models = Models(place, gpus)
        place.until(lambda: "asleep" in models.status(), within_s=SOON_S)
        place.until(lambda: place.answers(NAME), within_s=SOON_S)  # a health check, by an activator
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
    """The one of the documentation at the pod's own address, and slower: requests wait a second."""
    page = (REPOSITORY / "docs" / "worker.md").read_text()
    made: Object = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    made["metadata"]["annotations"] |= {
        "tidegate.dev/scale-to-zero-after": "3s",
        "tidegate.dev/scale-down": "window=5s",
    }
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["args"] = [
        "--host=$(POD_IP)" if word.startswith("--host=") else word for word in container["args"]
    ]
    container["args"].append("--max-queue-delay=1s")
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    container["env"] = [{"name": "POD_IP", "valueFrom": address}]
    container["readinessProbe"] |= {"periodSeconds": 1, "timeoutSeconds": 10}
    return made | {"spec": made["spec"] | {"replicas": 0}}


async def under(models: Models, clients: int, reached: Callable[[], bool]) -> Tally:
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

    def side_by_side() -> bool:
        cards = models.cards()
        return cards.total() > 1 and len(cards) == 1

    def full() -> bool:
        """Decided several times over that there shall be no more."""
        return models.cards() == FULL and models.capped() > 3

    tallies = [await under(models, 12, side_by_side), await under(models, 48, full)]
    assert not any(tally.lost for tally in tallies), tallies
    assert all(tally.answered == tally.sent > 0 for tally in tallies), tallies
    await asyncio.to_thread(asleep, models)
    said = " ".join(models.events())
    assert "0 -> " in said
    assert "more fit: 12 GiB each, largest hole 4 GiB" in said
    assert models.tidegate.passed(models.place.namespace) > 0


def asleep(models: Models) -> None:
    models.place.until(lambda: "asleep: 0" in models.status(), within_s=SOON_S)
    models.place.until(lambda: not models.pods(), within_s=SOON_S)


def test_who_wishes_more_than_fits_is_told_why(models: Models) -> None:
    """By the status line, the decision and an Event; and each worker has what it was given."""
    place = models.place
    place.kubectl("annotate", f"deployment/{NAME}", f"tidegate.dev/min-replicas={WISHED}")
    place.until(lambda: models.cards() == FULL, within_s=SOON_S)
    place.until(lambda: "no free GPU has room for more" in models.status())
    place.until(lambda: models.told().get("bound_by") == "budget")
    assert "budget: 0 of 4 more fit: 12 GiB each, largest hole 4 GiB" in models.told()["because"]
    first = "0 -> 6 replicas: budget: 6 of 10 more fit: 12 GiB each, largest hole 4 GiB"
    place.until(lambda: first in models.events())
    for pod in models.pods():
        log = place.log_of(pod["metadata"]["name"], "worker")
        assert f'"granted":{json.dumps(granted(pod))},"memory_mib":{SHARE_MIB}' in log
        assert log.count('"model loaded"') == len(FILES)
