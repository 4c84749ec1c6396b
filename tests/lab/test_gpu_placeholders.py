# SPDX-License-Identifier: Apache-2.0
"""GPU pods that fit nowhere bring a node, by a pod that a cluster autoscaler understands.

No such autoscaler is here: the test adds the node that one would add. That it would is judged by
what all of them go by, kube-scheduler's own rules: the placeholder fits no node there is, and the
fresh one.
"""

import json
from collections.abc import Iterator
from functools import partial

import pytest

from tests.lab import gpu
from tests.lab.gpu import a_gpu_pod, granted
from tests.lab.lab import Lab
from tests.lab.place import Object, Place
from tests.lab.test_chart_install import CHART, complete, pods, scoped

pytestmark = pytest.mark.lab

CARD_MIB = 24_000
POOL = {"pool": "gpu"}
TAINT = {"key": "gpu", "value": "only", "effect": "NoSchedule"}
ROOM = {"cpu": "16", "memory": "64Gi", "pods": "50"}
LABEL = "tidegate.dev/placeholder"
HAS_GPUS = "tidegate.dev/has-gpus"
# Seconds that the extender takes on purpose, before it asks for a node and between two steps, and
# as many for a machine that is busy.
SOON_S = 120.0


@pytest.fixture(scope="module")
def home(lab: Lab) -> Iterator[Place]:
    """The chart's kube-scheduler and extender, with the rights that they have there.

    In a namespace with restricted Pod Security; over a pool of nodes that kwok plays, one at first.
    """
    lab.kwok()
    add_node(lab, "gpu-old")
    report(lab, "gpu-old")
    with lab.namespace("home") as namespace:
        restricted = "pod-security.kubernetes.io/enforce=restricted"
        lab.kubectl("label", "namespace", namespace, restricted)
        home, objects = Place(lab, namespace), chart(lab, namespace)
        lab.apply(objects)
        try:
            home.until(partial(is_up, home), within_s=SOON_S)
            yield home
        finally:
            lab.kubectl("delete", "--wait=false", "-f", "-", stdin=objects)
    lab.kubectl("delete", "nodes", "-l", "pool=gpu", "--wait=false")
    lab.stop_component("kwok")


def chart(lab: Lab, namespace: str) -> str:
    """What it installs for pods with GPUs, but for agents and webhook: nodes tell of their own."""
    asked = {"enabled": True, "gpuNodes": "pool=gpu", "most": 2}
    flags = scoped(namespace, {"scheduler": {"enabled": True, "placeholders": asked}})
    shown = ("-s", "templates/scheduler.yaml", "-s", "templates/placeholders.yaml")
    return lab.helm("template", "tide", str(CHART), "-n", namespace, *flags, *shown)


def is_up(home: Place) -> bool:
    return complete(home.get("deployment", "tidegate-scheduler"))


@pytest.fixture
def place(lab: Lab, home: Place) -> Iterator[Place]:
    with lab.namespace("gpu") as namespace:
        place = Place(lab, namespace)
        yield place
        place.kubectl("delete", "pods", "--all", "--wait=true")


def add_node(lab: Lab, name: str) -> None:
    """As an autoscaler would; the driver and the agent come later."""
    lab.apply(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {"type": "kwok", "kubernetes.io/hostname": name, **POOL},
            },
            "spec": {"taints": [TAINT]},
        }
    )
    status = {"status": {"capacity": ROOM, "allocatable": ROOM}}
    words = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    lab.kubectl("patch", "node", name, *words)


def report(lab: Lab, name: str) -> None:
    said = {"metadata": {"annotations": gpu.report(name, 2, CARD_MIB)}}
    lab.kubectl("patch", "node", name, "--type=merge", "-p", json.dumps(said))


def of_the_pool(name: str) -> Object:
    """A pod that wants a whole card and little else."""
    pod = a_gpu_pod(name, {gpu.WHOLE: "1", "cpu": "1", "memory": "1Gi"})
    pod["spec"] |= {
        "nodeSelector": POOL,
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }
    return pod


def placeholders(home: Place) -> list[Object]:
    found: list[Object] = home.lab.get("pods", "-n", home.namespace, "-l", LABEL)["items"]
    return found


def why_unscheduled(pod: Object) -> str:
    """kube-scheduler's word; empty while it has none."""
    conditions = pod.get("status", {}).get("conditions", ())
    return next((one["message"] for one in conditions if one.get("reason") == "Unschedulable"), "")


def have_cards(place: Place, *names: str) -> bool:
    return all(granted(place.get("pod", name)) for name in names)


def test_a_pod_that_fits_nowhere_brings_a_node_and_its_placeholder_goes(
    place: Place, home: Place
) -> None:
    """One placeholder for two pods: they fit one node."""
    place.apply(of_the_pool("first-0"), of_the_pool("first-1"))
    place.until(lambda: have_cards(place, "first-0", "first-1"))
    # As an older API server leaves it.
    place.kubectl("label", "pods", "first-0", "first-1", f"{HAS_GPUS}-")
    place.apply(of_the_pool("late-0"), of_the_pool("late-1"))
    # Nothing but the pods with GPUs keeps it from the old node, which has CPU and memory left.
    place.until(lambda: any(map(why_unscheduled, placeholders(home))), within_s=SOON_S)
    (waiting,) = placeholders(home)
    assert "anti-affinity" in why_unscheduled(waiting)
    (container,) = waiting["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "2Gi"}
    assert waiting["spec"]["priority"] == -1
    assert waiting["spec"]["preemptionPolicy"] == "Never"

    add_node(place.lab, "gpu-new")
    place.until(
        lambda: [p["spec"].get("nodeName") for p in placeholders(home)] == ["gpu-new"],
        within_s=SOON_S,
    )
    assert not have_cards(place, "late-0")

    report(place.lab, "gpu-new")
    place.until(lambda: have_cards(place, "late-0", "late-1"), within_s=SOON_S)
    place.until(lambda: not placeholders(home), within_s=SOON_S)
    found = place.lab.get("pods", "-n", place.namespace)["items"]
    assert {p["spec"]["nodeName"] for p in found if "late" in p["metadata"]["name"]} == {"gpu-new"}
    assert all(pod["metadata"]["labels"] == {HAS_GPUS: "true"} for pod in found)
    nodes = ("gpu-old", "gpu-new")
    room = {node: {c.uuid: CARD_MIB for c in gpu.cards(node, 2, CARD_MIB)} for node in nodes}
    assert not gpu.doubts(found, room)
    (scheduler,) = pods(place.lab, home.namespace, "scheduler")
    said = home.log_of(scheduler, "extender")
    assert "a node is asked of cluster autoscalers" in said
    assert "forbidden" not in said.lower(), said
