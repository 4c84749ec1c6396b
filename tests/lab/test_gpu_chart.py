# SPDX-License-Identifier: Apache-2.0
"""The chart with its kube-scheduler for GPUs switched on: it places pods, under its own rights."""

import json
from collections.abc import Iterator

import pytest

from scheduler_extender.core.node_report import GPUS
from tests.lab import gpu
from tests.lab.gpu import a_gpu_pod, granted, share
from tests.lab.lab import NODES, Lab
from tests.lab.place import Place
from tests.lab.test_chart_install import CHART, complete, may, pods, scoped

pytestmark = pytest.mark.lab

CARD_MIB = 24_000
SOON_S = 90.0


@pytest.fixture
def installed(lab: Lab) -> Iterator[Place]:
    """In a namespace with restricted Pod Security, over nodes with two cards each."""
    for node in NODES:
        said = {"metadata": {"annotations": gpu.report(node, 2, CARD_MIB)}}
        lab.kubectl("patch", "node", node, "--type=merge", "-p", json.dumps(said))
    with lab.namespace("gate") as namespace:
        label = "pod-security.kubernetes.io/enforce=restricted"
        lab.kubectl("label", "namespace", namespace, label)
        flags = scoped(namespace, {"scheduler": {"enabled": True}})
        lab.helm("install", "tide", str(CHART), "-n", namespace, *flags)
        place = Place(lab, namespace)
        try:
            place.until(
                lambda: complete(place.get("deployment", "tidegate-scheduler")), within_s=SOON_S
            )
            yield place
        finally:
            lab.helm("uninstall", "tide", "-n", namespace, "--ignore-not-found", check=False)
    for node in NODES:
        lab.kubectl("annotate", "node", node, f"{GPUS}-")


def test_pods_get_their_cards_and_the_scheduler_is_forbidden_nothing(installed: Place) -> None:
    """Neither container, by the API server."""
    lab = installed.lab
    with lab.namespace("team") as namespace:
        team = Place(lab, namespace)
        says = ["sh", "-c", "echo seen=$NVIDIA_VISIBLE_DEVICES.; exec sleep 1000"]
        wish = share(8_000, 30)
        team.apply(*(a_gpu_pod(f"p{n}", wish, image="shell", command=says) for n in range(3)))
        team.until(lambda: all("seen=GPU" in team.log_of(f"p{n}") for n in range(3)), within_s=60)
        found = lab.get("pods", "-n", namespace)["items"]
        assert len({tuple(granted(pod)) for pod in found}) == 1
        room = {node: {c.uuid: CARD_MIB for c in gpu.cards(node, 2, CARD_MIB)} for node in NODES}
        assert not gpu.doubts(found, room)
    (name,) = pods(lab, installed.namespace, "scheduler")
    for container in ("extender", "kube-scheduler"):
        said = installed.log_of(name, container)
        assert said
        assert "forbidden" not in said.lower(), said


def test_the_scheduler_may_bind_pods_and_not_read_secrets(installed: Place) -> None:
    """The API server's own answer."""
    user = f"system:serviceaccount:{installed.namespace}:tidegate-scheduler"
    lab, where = installed.lab, installed.namespace
    for verb, what in (
        ("create", "/pods/binding"),
        ("watch", "/nodes/"),
        ("patch", "/pods/status"),
        ("create", "/pods/eviction"),
    ):
        assert may(lab, user, verb, what, where), (verb, what)
    for verb, what in (("get", "/secrets/"), ("create", "/pods/"), ("patch", "/nodes/")):
        assert not may(lab, user, verb, what, where), (verb, what)
