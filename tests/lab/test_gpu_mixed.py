# SPDX-License-Identifier: Apache-2.0
"""A node whose cards kube-scheduler gives to plain pods by count, and we to shares by name.

The count of `nvidia.com/gpu` is a number in the node's status; which card a pod gets is played by
the pods' own processes (`plugin.py`).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scheduler_extender.core.gpus import NodeGpus
from scheduler_extender.core.node_report import GPUS, NodeReport, write_report
from tests.lab import gpu
from tests.lab.gpu import a_gpu_pod, granted, share
from tests.lab.lab import NODES, REPOSITORY, Lab
from tests.lab.place import Object, Place, a_pod

pytestmark = pytest.mark.lab

CARD_MIB = 24_000
NODE = NODES[0]
CARDS = gpu.cards(NODE, 2, CARD_MIB)
IDLE_S = 3
PLUGIN = "nvidia.com/gpu"
OURS = "default"  # the extender's namespace
RESERVER = "reserver"  # a ServiceAccount
SAYS = "echo seen=$NVIDIA_VISIBLE_DEVICES.; exec sleep 1000"


@pytest.fixture
def folder(lab: Lab) -> Path:
    """A file for each card."""
    folder = lab.folder / "cards"
    folder.mkdir(exist_ok=True)
    for card in CARDS:
        (folder / card.uuid).touch()
    return folder


@pytest.fixture
def place(lab: Lab, folder: Path) -> Iterator[Place]:
    """A node of two cards that is mixed, and an extender that may reserve them."""
    report = NodeReport(NodeGpus(NODE, CARDS, model="NVIDIA-LAB"), mixed=True)
    told(lab, GPUS, write_report(report))
    count(lab, "2")
    lab.apply(*its_rights(), namespace=OURS)
    template = lab.folder / "reservation.yaml"
    template.write_text(yaml.safe_dump({"spec": its_pod(folder)}))
    options = ("--reservation-pod", str(template), "--reservation-idle-s", str(IDLE_S))
    with gpu.gpu_scheduler(lab, options=options), lab.namespace("mixed") as namespace:
        place = Place(lab, namespace)
        yield place
        place.kubectl("delete", "pods", "--all", "--wait=true")
        place.until(lambda: not reservations(lab))
    told(lab, GPUS, None)
    count(lab, None)


def told(lab: Lab, key: str, text: str | None) -> None:
    said = {"metadata": {"annotations": {key: text}}}
    lab.kubectl("patch", "node", NODE, "--type=merge", "-p", json.dumps(said))


def count(lab: Lab, cards: str | None) -> None:
    """What a device plugin makes the kubelet say."""
    status = {"status": {"capacity": {PLUGIN: cards}, "allocatable": {PLUGIN: cards}}}
    words = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    lab.kubectl("patch", "node", NODE, *words)


def its_rights() -> tuple[Object, ...]:
    """All that a reservation's process may do."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": RESERVER},
        "rules": [{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": RESERVER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": RESERVER},
        "subjects": [{"kind": "ServiceAccount", "name": RESERVER, "namespace": OURS}],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": RESERVER}}
    return account, role, binding


def its_pod(folder: Path) -> Object:
    container = {"name": "c", **a_process(folder, "reserve")}
    return {
        "serviceAccountName": RESERVER,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }


def a_process(folder: Path, how: str) -> Object:
    return {
        "image": "lab/plugin",
        "command": [sys.executable, "-m", "tests.lab.plugin", str(folder), how],
        "env": [{"name": "PYTHONPATH", "value": str(REPOSITORY)}],
    }


def a_plain_pod(name: str, folder: Path) -> Object:
    """Through the default scheduler, as anybody's."""
    limits = {"limits": {PLUGIN: "1"}}
    return a_pod(name, {"name": "c", "resources": limits, **a_process(folder, "hold")})


def a_share(name: str) -> Object:
    return a_gpu_pod(name, share(6_000, 25), image="shell", command=["sh", "-c", SAYS])


def reservations(lab: Lab) -> list[Object]:
    found: list[Object] = lab.get("pods", "-n", OURS, "-l", "tidegate.dev/reservation")["items"]
    return found


def cards_of(place: Place, *names: str) -> set[str]:
    return {uuid for name in names for uuid in granted(place.get("pod", name))}


def has(place: Place, pod: str) -> str:
    """The card that a plain pod's process took; empty while it has not."""
    said = [line for line in place.log_of(pod).splitlines() if line.startswith("has=")]
    return said[-1].removeprefix("has=").removesuffix(".") if said else ""


def test_shares_and_plain_pods_never_have_the_same_card(place: Place, folder: Path) -> None:
    """Shares go together on one that is reserved for them, and leave it when they are gone."""
    shares = ("share-0", "share-1", "share-2")
    place.apply(*map(a_share, shares))
    place.until(
        lambda: all(f"seen={CARDS[0].uuid[:4]}" in place.log_of(n) for n in shares), within_s=60
    )
    ours = cards_of(place, *shares)
    assert len(ours) == 1
    (reserved,) = reservations(place.lab)
    assert {reserved["metadata"]["annotations"]["tidegate.dev/reserved-uuid"]} == ours
    place.apply(a_plain_pod("first", folder))
    place.until(lambda: has(place, "first"))
    assert {has(place, "first")} | ours == {card.uuid for card in CARDS}
    place.apply(a_plain_pod("second", folder), a_gpu_pod("whole", {gpu.WHOLE: "1"}))
    place.until(lambda: place.condition("pod", "second", "PodScheduled") == "False")
    place.kubectl("delete", "pod", "whole", *shares)
    place.until(lambda: has(place, "second"), within_s=60)
    assert {has(place, "second")} == ours
    assert not reservations(place.lab)


def test_a_whole_card_is_reserved_and_given_and_a_restart_loses_nothing(
    place: Place, folder: Path
) -> None:
    """The extender is killed while its reservation is on the way."""
    place.apply(a_gpu_pod("whole", {gpu.WHOLE: "1"}, image="shell", command=["sh", "-c", SAYS]))
    place.until(lambda: reservations(place.lab))
    place.lab.stop_component(gpu.EXTENDER, kill=True)
    place.lab.start_component(gpu.EXTENDER)
    place.until(lambda: cards_of(place, "whole"), within_s=60)
    assert len(reservations(place.lab)) == 1
    place.apply(a_plain_pod("plain", folder))
    place.until(lambda: has(place, "plain"))
    assert {has(place, "plain")}.isdisjoint(cards_of(place, "whole"))
