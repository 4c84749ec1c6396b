# SPDX-License-Identifier: Apache-2.0
"""How fast pods get their cards through a real kube-scheduler, beside its own best-fit.

`python -m tests.lab bench-extender`: kwok plays the nodes, the same pods are placed again and again
in the same lab: by kube-scheduler alone, which counts a node's GPU memory as one sum, and with our
extender, which also says which cards; asked to filter and prioritise ("scored"), or to pick.
Judged from the pods' annotations alone.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.lab import gpu, played
from tests.lab.gpu import EXTENDER, SECOND, GpuScheduler
from tests.lab.lab import Lab
from tests.lab.rest import Mirror, Rest, connect

Object = dict[str, Any]

CARD_MIB: Final = 80_995  # an A100 of 80 GB without the driver's reserve
BEST_FIT: Final = "best-fit"
AT_ONCE: Final = 50  # requests under way
CORES: Final = os.sysconf("SC_CLK_TCK")
WITHIN_S: Final = 300.0
# Weight, cards, and for a share GiB and percent of compute.
SHAPES: Final = (
    (30, 1, 8, 10), (20, 1, 12, 20), (15, 1, 24, 30), (10, 1, 40, 50), (15, 1, 0, 0),
    (6, 2, 0, 0), (4, 2, 40, 50),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    nodes: int = 500
    cards: int = 8
    pods: int = 2000
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Placed:
    """One way of placing all pods. `cpu_s`: of each process, while it lasted."""

    how: str
    pods_per_s: float
    took_s: float
    nodes_used: int
    cards_used: int
    wrong: tuple[str, ...]
    cpu_s: dict[str, float]
    load: float


def bench(lab: Lab, options: Sequence[str]) -> int:
    """One way after the other; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab bench-extender", description=__doc__)
    usual = Asked()
    for name, what in (
        ("nodes", "nodes that kwok plays"), ("cards", "GPUs of each"),
        ("pods", "pods that are placed"), ("seed", "which pods"),
    ):  # fmt: skip
        parser.add_argument(
            f"--{name}", type=int, default=getattr(usual, name), help=f"{what} (%(default)s)"
        )
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    said = vars(parser.parse_args(options))
    as_json = said.pop("json")
    for name in played.BESIDE:
        lab.stop_component(name)
    ways = run(lab, Asked(**said))
    lines = [json.dumps([asdict(one) for one in ways])] if as_json else map(_told, ways)
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if any(one.wrong for one in ways) else 0


def run(lab: Lab, asked: Asked) -> list[Placed]:
    """kube-scheduler by itself, then with the extender. Raises `LabError`."""
    lab.kwok()
    return asyncio.run(_run(lab, asked))


async def _run(lab: Lab, asked: Asked) -> list[Placed]:
    login = lab.folder / gpu.LOGIN
    ways = {
        BEST_FIT: gpu.best_fit(login),
        "scored": gpu.packing(login, gpu.SCORED),
        "picked": gpu.packing(login, gpu.PICKED),
    }
    scheduler = GpuScheduler(lab)
    async with connect(lab.kubeconfig) as rest, _nodes(rest, asked):
        await asyncio.to_thread(scheduler.start_extender)
        placed = [
            await _placed(how, scheduler, rest, asked=asked, configuration=configuration)
            for how, configuration in ways.items()
        ]
        await asyncio.to_thread(scheduler.stop, EXTENDER)
    return placed


async def _placed(
    how: str, scheduler: GpuScheduler, rest: Rest, *, asked: Asked, configuration: Object
) -> Placed:
    """All pods wait when kube-scheduler starts; the clock runs from first Binding to last."""
    lab, name = scheduler.lab, f"bench-{how}"
    await rest.create("/api/v1/namespaces", {"metadata": {"name": name}})
    await asyncio.to_thread(lab.wait_for, lambda: _has_account(lab, name), what=name)
    path = f"/api/v1/namespaces/{name}/pods"
    await _each([(path, pod) for pod in _pods(asked, extender=how != BEST_FIT)], rest.create)
    bindings = _Bindings(asked.pods)
    mirror = Mirror(rest, path, on_change=bindings.seen)
    watching = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    before = _cpu_s(lab)
    await asyncio.to_thread(scheduler.start_scheduler, configuration)
    await asyncio.wait_for(bindings.all.wait(), WITHIN_S)
    after = _cpu_s(lab)
    watching.cancel()
    pods = (await rest.get(path))["items"]
    await asyncio.to_thread(scheduler.stop, SECOND)
    gone = [(f"{path}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0}) for pod in pods]
    await _each(gone, rest.delete)
    took_s = max(bindings.times.values()) - min(bindings.times.values())
    return Placed(
        how=how,
        pods_per_s=round((asked.pods - 1) / took_s, 1),
        took_s=round(took_s, 1),
        nodes_used=len({pod["spec"]["nodeName"] for pod in pods}),
        cards_used=len({uuid for pod in pods for uuid in gpu.granted(pod)}),
        wrong=tuple(_wrong(pods, asked) if how != BEST_FIT else ()),
        cpu_s={one: round(after[one] - before.get(one, 0.0), 1) for one in after},
        load=round(os.getloadavg()[0], 1),
    )


def _wrong(pods: Sequence[Object], asked: Asked) -> list[str]:
    """Pods without the cards that they asked for, and cards that gave more than they have."""
    wanted = {f"p{number}": shape[1] for number, shape in enumerate(_shapes(asked))}
    short = [
        f"{pod['metadata']['name']} has {len(gpu.granted(pod))} cards"
        for pod in pods
        if len(gpu.granted(pod)) != wanted[pod["metadata"]["name"]]
    ]
    room = {
        node: {card.uuid: card.memory_mib for card in gpu.cards(node, asked.cards, CARD_MIB)}
        for node in _names(asked)
    }
    return short + gpu.doubts(pods, room)


class _Bindings:
    """When each pod was seen with a node for the first time."""

    def __init__(self, count: int) -> None:
        self.times: dict[str, float] = {}
        self.all = asyncio.Event()
        self._count = count

    def seen(self, _: str, pod: Object) -> None:
        if pod["spec"].get("nodeName"):
            self.times.setdefault(pod["metadata"]["name"], time.monotonic())
        if len(self.times) == self._count:
            self.all.set()


def _pods(asked: Asked, *, extender: bool) -> list[Object]:
    make = _asking if extender else _counted
    return [make(f"p{number}", *shape[1:]) for number, shape in enumerate(_shapes(asked))]


def _shapes(asked: Asked) -> list[tuple[int, int, int, int]]:
    """What each pod wants, as in `SHAPES`."""
    rng = random.Random(asked.seed)
    return rng.choices(SHAPES, weights=[shape[0] for shape in SHAPES], k=asked.pods)


def _asking(name: str, cards: int, gib: int, percent: int) -> Object:
    """One extended resource, and by annotations how much of a card: kube-scheduler checks the name
    of each resource against a pattern, on every node, and two more cost a fifth of its time.
    """
    pod = _pod(name, gpu.WHOLE, cards)
    if gib:
        wish = {"tidegate.dev/gpu-memory": f"{gib}Gi", "tidegate.dev/gpu-core": f"{percent}%"}
        pod["metadata"]["annotations"] = wish
    return pod


def _counted(name: str, cards: int, gib: int, percent: int) -> Object:
    """The same pod for kube-scheduler alone, which knows no cards."""
    return _pod(name, gpu.STAND_IN, cards * (gib * 1024 or CARD_MIB))


def _pod(name: str, resource: str, amount: int) -> Object:
    pod = gpu.a_gpu_pod(name, {resource: str(amount), "cpu": "1", "memory": "4Gi"})
    pod["spec"]["tolerations"] = [{"key": "played", "operator": "Exists"}]
    return pod


@asynccontextmanager
async def _nodes(rest: Rest, asked: Asked) -> AsyncIterator[None]:
    path = "/api/v1/nodes"
    await _each([(path, _node(name, asked.cards)) for name in _names(asked)], rest.create)
    while await _not_ready(rest):  # noqa: ASYNC110  the API server tells no event of it
        await asyncio.sleep(0.5)
    yield
    await rest.delete(f"{path}?labelSelector={played.LABEL}")


async def _not_ready(rest: Rest) -> bool:
    """Whether any of them still has the taint of a node that is not ready."""
    found = (await rest.get("/api/v1/nodes", labelSelector=played.LABEL))["items"]
    return any(len(node["spec"].get("taints", ())) != 1 for node in found)


def _names(asked: Asked) -> list[str]:
    return [f"gpu-{number:04}" for number in range(asked.nodes)]


def _node(name: str, cards: int) -> Object:
    key, value = played.LABEL.split("=")
    room = {"cpu": "128", "memory": "1Ti", "pods": "250", gpu.STAND_IN: str(cards * CARD_MIB)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {key: value},
            "annotations": gpu.report(name, cards, CARD_MIB),
        },
        "spec": {"taints": [{"key": "played", "value": "yes", "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room},
    }


async def _each(asks: Sequence[tuple[str, Object]], ask: Any) -> None:
    for start in range(0, len(asks), AT_ONCE):
        some = asks[start : start + AT_ONCE]
        await asyncio.gather(*(ask(path, body) for path, body in some))


def _has_account(lab: Lab, namespace: str) -> bool:
    found = lab.kubectl("get", "serviceaccount", "default", "-n", namespace, check=False)
    return "default" in found and "NotFound" not in found


def _cpu_s(lab: Lab) -> dict[str, float]:
    """Processor time of each process that counts."""
    names = (SECOND, EXTENDER, "kube-apiserver", "etcd", "kwok")
    return {name: used for name in names if (used := _used_s(lab, name)) is not None}


def _used_s(lab: Lab, name: str) -> float | None:
    component = lab.find(name)
    if component is None or component.process is None:
        return None
    with open(f"/proc/{component.process.pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CORES


def _told(one: Placed) -> str:
    cpu = ", ".join(f"{name} {used:g} s" for name, used in one.cpu_s.items())
    cards = f", {one.cards_used} cards" if one.cards_used else ""
    doubts = f"; WRONG: {'; '.join(one.wrong[:5])}" if one.wrong else ""
    return (
        f"{one.how:9} {one.pods_per_s:g} pods/s ({one.took_s:g} s) on {one.nodes_used} nodes{cards}"
        f"; CPU {cpu}; load {one.load:g}{doubts}"
    )
