# SPDX-License-Identifier: Apache-2.0
"""GPUs in the lab: a second real kube-scheduler beside our extender, and what one asks of them.

Nodes have GPUs because an annotation says so. What was given out is judged from the pods'
annotations alone, by arithmetic that shares nothing with the extender's.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from scheduler_extender.core.gpus import Card, NodeGpus
from scheduler_extender.core.node_report import GPUS, NodeReport, write_report
from tests.lab import asking, parts
from tests.lab.lab import Lab

Object = dict[str, Any]

SCHEDULER: Final = "tidegate-scheduler"
STAND_IN: Final = "lab.example/gpu-mib"  # what `best_fit` counts: a node's cards in sum
LOGIN: Final = "kube-scheduler.kubeconfig"

EXTENDER: Final = "extender"  # names of the two processes
SECOND: Final = "gpu-scheduler"

URL: Final = "http://127.0.0.1:8073"
UUIDS: Final = "tidegate.dev/gpu-uuids"
MEMORY: Final = "tidegate.dev/gpu-mem-mib"
CORE: Final = "tidegate.dev/gpu-core-percent"
WHOLE: Final = "tidegate.dev/gpu"

SOON_S: Final = 40.0  # a candidate waits 15 s for the Lease of one that was killed

_MANAGED: Final = (WHOLE, MEMORY, "tidegate.dev/gpu-mem-percent", CORE)
_SECURE_PORT: Final = 10260


@dataclass(frozen=True, slots=True)
class GpuScheduler:
    """The two processes, in one lab."""

    lab: Lab
    audit_s: float = 60.0

    def start(self) -> None:
        """Both answer when this returns. Raises `LabError`."""
        self.start_extender()
        self.start_scheduler(packing(self.lab.folder / LOGIN))

    def start_extender(self) -> None:
        words = ("extender", "--listen", URL.removeprefix("http://"), "--namespace", "default")
        login = ("--kubeconfig", str(self.lab.kubeconfig), "--audit-s", f"{self.audit_s:g}")
        ours = parts.ours(EXTENDER, "autoscaler.cli", self.lab.folder, *words, *login)
        self.lab.run(EXTENDER, *ours.command, env=ours.env)
        self.wait_ready()

    def wait_ready(self) -> None:
        """The extender leads. Raises `LabError`."""
        ready = partial(asking.answers, f"{URL}/readyz")
        self.lab.wait_for(ready, what="the extender to lead", within_s=SOON_S)

    def start_scheduler(self, configuration: Object) -> None:
        """The second kube-scheduler."""
        config = self.lab.folder / f"{SECOND}.yaml"
        config.write_text(yaml.safe_dump(configuration))
        flags = (f"--config={config}", f"--secure-port={_SECURE_PORT}")
        self.lab.run(SECOND, self.lab.binaries["kube"], "kube-scheduler", *flags)
        health = f"https://127.0.0.1:{_SECURE_PORT}/healthz"
        self.lab.wait_for(partial(asking.answers, health), what=SECOND)

    def stop(self, *names: str, kill: bool = False) -> None:
        for name in names or (SECOND, EXTENDER):
            self.lab.stop_component(name, kill=kill)


@contextmanager
def gpu_scheduler(lab: Lab, *, audit_s: float = 60.0) -> Iterator[GpuScheduler]:
    """Running, and ended afterwards."""
    scheduler = GpuScheduler(lab, audit_s)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


SCORED: Final = {"filterVerb": "filter", "prioritizeVerb": "prioritize"}
PICKED: Final = {"filterVerb": "pick"}


def packing(login: Path, verbs: Mapping[str, str] = PICKED) -> Object:
    """kube-scheduler's configuration with our extender, as docs/extender.md has it."""
    extender = {
        "urlPrefix": URL,
        **verbs,
        "bindVerb": "bind",
        "preemptVerb": "preempt",
        "weight": 200,
        "nodeCacheCapable": True,
        "ignorable": False,
        "httpTimeout": "6s",
        "managedResources": [{"name": name, "ignoredByScheduler": True} for name in _MANAGED],
    }
    return {
        **_alone(login),
        "profiles": [{"schedulerName": SCHEDULER}],
        "extenders": [extender],
    }


def best_fit(login: Path) -> Object:
    """kube-scheduler by itself: the fullest node that has room for what it can count."""
    strategy = {"type": "MostAllocated", "resources": [{"name": STAND_IN, "weight": 1}]}
    fit = {"name": "NodeResourcesFit", "args": {"scoringStrategy": strategy}}
    first = {
        "disabled": [{"name": "NodeResourcesFit"}],
        "enabled": [{"name": "NodeResourcesFit", "weight": 100}],
    }
    profile = {"schedulerName": SCHEDULER, "pluginConfig": [fit], "plugins": {"score": first}}
    return {**_alone(login), "profiles": [profile]}


def _alone(login: Path) -> Object:
    """The only one of its kind, as fast as it can."""
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(login), "qps": 1000, "burst": 2000},
        "leaderElection": {"leaderElect": False},
        "percentageOfNodesToScore": 100,
    }


def cards(node: str, count: int, memory_mib: int) -> tuple[Card, ...]:
    return tuple(Card(f"GPU-{node}-{number}", memory_mib) for number in range(count))


def report(node: str, count: int, memory_mib: int) -> dict[str, str]:
    """The annotation of a node that has so many cards."""
    gpus = NodeGpus(node, cards(node, count, memory_mib), model="NVIDIA-LAB")
    return {GPUS: write_report(NodeReport(gpus))}


def share(memory_mib: int, core_percent: int) -> dict[str, str]:
    """What a container asks for that wants a part of one card."""
    return {MEMORY: str(memory_mib), CORE: str(core_percent)}


def a_gpu_pod(name: str, asked: Mapping[str, str], **container: Any) -> Object:
    """It sees the cards that its annotation names, and none without it."""
    granted = {"fieldRef": {"fieldPath": f"metadata.annotations['{UUIDS}']"}}
    one = {
        "name": "c",
        "image": "lab/played",
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": granted}],
        "resources": {"limits": dict(asked)},
        **container,
    }
    spec = {
        "schedulerName": SCHEDULER,
        "terminationGracePeriodSeconds": 1,
        "containers": [one],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def granted(pod: Object) -> list[str]:
    """The cards that a pod was given."""
    named = (pod["metadata"].get("annotations") or {}).get(UUIDS, "")
    return named.split(",") if named else []


def doubts(pods: Iterable[Object], cards_of: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What is wrong with what these pods were given; `cards_of`: node, UUID, MiB.

    From annotations alone: no card has more than its memory or its compute given away, and every
    pod's cards are on its own node.
    """
    wrong, used = [], defaultdict[str, list[int]](lambda: [0, 0])
    room = {uuid: mib for on_node in cards_of.values() for uuid, mib in on_node.items()}
    for pod in pods:
        if not (uuids := granted(pod)):
            continue
        node = pod["spec"].get("nodeName", "")
        said = pod["metadata"]["annotations"]
        if strange := set(uuids) - set(cards_of.get(node, ())):
            wrong.append(f"{pod['metadata']['name']} on {node} has {sorted(strange)}")
        for uuid in uuids:
            used[uuid][0] += int(said[MEMORY])
            used[uuid][1] += int(said[CORE])
    for uuid, (mib, percent) in used.items():
        if mib > room.get(uuid, 0) or percent > 100:
            wrong.append(f"{uuid} gave {mib} of {room.get(uuid, 0)} MiB and {percent} %")
    return wrong
