# SPDX-License-Identifier: Apache-2.0
"""A cluster made up from a seed, as the API server would list it, and pods that want in."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from scheduler_extender import annotations as named
from scheduler_extender.core.gpus import Card, NodeGpus
from scheduler_extender.node_report import GPUS, NodeReport, write_report

Raw = dict[str, Any]

MODELS: Final = {
    "NVIDIA-A100-SXM4-80GB": 80_995,
    "NVIDIA-H100-80GB-HBM3": 81_089,
    "NVIDIA-L40S": 45_458,
    "Tesla-T4": 14_910,
}
# Memory and compute a card, in the mix that model servers ask for; none: whole cards.
SHARES: Final = ((4096, 0), (6144, 10), (8192, 20), (10240, 25), (12288, 30), (14000, 50))
WHOLE: Final = (1, 1, 2, 4, 8)
DEPLOYMENTS: Final = 100
CPUS: Final = (500, 1000, 2000, 4000, 8000)
_ENV: Final = [{"name": f"SETTING_{n}", "value": f"the value of setting {n}"} for n in range(40)]
_NOTES: Final = {f"example.org/note-{n}": f"a note of some length, number {n}" for n in range(10)}


@dataclass(frozen=True, slots=True)
class Size:
    nodes: int = 5000
    cards: int = 8
    pods: int = 50_000


def node_name(index: int) -> str:
    return f"gpu-node-{index:05d}.pool-a.example.org"


def nodes(size: Size) -> Iterator[Raw]:
    for index in range(size.nodes):
        name = node_name(index)
        model = list(MODELS)[index % len(MODELS)]
        cards = tuple(Card(uuid(index, card), MODELS[model]) for card in range(size.cards))
        links = tuple(
            tuple(400 if a // 4 == b // 4 and a != b else 20 for b in range(size.cards))
            for a in range(size.cards)
        )
        report = NodeReport(NodeGpus(name, cards, model=model, links=links))
        yield {
            "metadata": {
                "name": name, "uid": f"node-{index}", "resourceVersion": "1",
                "annotations": {GPUS: write_report(report)},
            },
            "spec": {},
            "status": {"allocatable": {"cpu": "192", "memory": "2000Gi", "pods": "250"}},
        }  # fmt: skip


def bound_pods(size: Size, chance: random.Random) -> Iterator[Raw]:
    """Two thirds with shares, packed a few to a card on three of four cards; the rest without."""
    made = 0
    for index in range(size.nodes):
        for card in range(size.cards):
            if card % 4 == 3:
                continue
            memory, core = chance.choice(SHARES[:3])
            grant = {
                named.GRANTED_UUIDS: uuid(index, card),
                named.GRANTED_MIB: str(memory),
                named.GRANTED_CORE: str(core),
            }
            if made < size.pods * 2 // 3:
                made += 1
                yield a_pod(made, {**share(memory, core), **grant}, node=node_name(index))
    for number in range(made + 1, size.pods + 1):
        yield a_pod(number, {}, node=node_name(chance.randrange(size.nodes)))


def wishes(chance: random.Random) -> list[tuple[dict[str, str], int]]:
    """Annotations and CPU (milli) of the pods of so many Deployments; 4 of 5 want a share."""
    found = []
    for _ in range(DEPLOYMENTS):
        if chance.random() < 0.8:
            wish = share(*chance.choice(SHARES))
        else:
            wish = {named.COUNT: str(chance.choice(WHOLE))}
        if chance.random() < 0.2:
            wish[named.MODELS] = chance.choice(list(MODELS))
        found.append((wish, chance.choice(CPUS)))
    return found


def share(memory_mib: int, core: int) -> dict[str, str]:
    return {named.MEMORY: f"{memory_mib}Mi"} | ({named.CORE: f"{core}%"} if core else {})


def a_pod(number: int, notes: dict[str, str], *, node: str = "", cpu_milli: int = 1000) -> Raw:
    container = {
        "name": "server", "image": "registry.example.org/team/model-server:1.2.3", "env": _ENV,
        "resources": {"requests": {"cpu": f"{cpu_milli}m", "memory": "4Gi"}},
    }  # fmt: skip
    return {
        "metadata": {
            "name": f"model-server-{number}", "namespace": "serving", "uid": f"pod-{number}",
            "resourceVersion": "1", "labels": {"app": "model-server"},
            "annotations": {**_NOTES, **notes},
        },
        "spec": {"containers": [container], **({"nodeName": node} if node else {})},
        "status": {"phase": "Running" if node else "Pending"},
    }  # fmt: skip


def uuid(node: int, card: int) -> str:
    return f"GPU-{node:08x}-0000-4000-8000-{card:012x}"
