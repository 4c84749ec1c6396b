# SPDX-License-Identifier: Apache-2.0
"""How well GPUs of a node are linked, as numbers of which more is better. Calls NVML.

NVLink: 100 for each link between two GPUs, straight or through switches. Without one, by the way
over PCI: 60 on one board, 50 and 40 over PCI switches, 30 by one host bridge, 20 on one NUMA node,
10 across. MIG instances have none, not even to one another.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from scheduler_extender.node_agent.asked import Asked
from scheduler_extender.node_agent.gpus import Links

PER_NVLINK: Final = 100
BY_WAY: Final = {
    pynvml.NVML_TOPOLOGY_INTERNAL: 60,
    pynvml.NVML_TOPOLOGY_SINGLE: 50,
    pynvml.NVML_TOPOLOGY_MULTIPLE: 40,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: 30,
    pynvml.NVML_TOPOLOGY_NODE: 20,
    pynvml.NVML_TOPOLOGY_SYSTEM: 10,
}

Place = tuple[int, int, int]  # on PCI: domain, bus, device


@dataclass(frozen=True, slots=True)
class _Ends:
    """Where one GPU is, and where its NVLinks lead. `switched`: how many lead to switches."""

    place: Place | None
    straight: Counter[Place]
    switched: int


def links_between(cards: Sequence[Asked | None]) -> Links:
    """None stands for what has no links. Empty where all pairs are alike."""
    ends = [None if card is None else _ends(card) for card in cards]
    scores = tuple(
        tuple(
            0 if a == b else _score(cards[a], cards[b], ends[a], ends[b]) for b in range(len(cards))
        )
        for a in range(len(cards))
    )
    told = {scores[a][b] for a in range(len(cards)) for b in range(len(cards)) if a != b}
    return scores if len(told) > 1 else ()


def _score(a: Asked | None, b: Asked | None, from_a: _Ends | None, from_b: _Ends | None) -> int:
    if a is None or b is None or from_a is None or from_b is None:
        return 0
    straight = 0 if from_b.place is None else from_a.straight[from_b.place]
    nvlinks = straight + min(from_a.switched, from_b.switched)
    if nvlinks:
        return PER_NVLINK * nvlinks
    way = a.again().ask("nvmlDeviceGetTopologyCommonAncestor", *b.handle)
    return BY_WAY.get(way, 0)


def _ends(card: Asked) -> _Ends:
    card = card.again()
    straight: Counter[Place] = Counter()
    switched = 0
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if not card.ask("nvmlDeviceGetNvLinkState", link):
            continue
        kind = card.ask("nvmlDeviceGetNvLinkRemoteDeviceType", link)
        if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            switched += 1
        elif (place := _place(card.ask("nvmlDeviceGetNvLinkRemotePciInfo", link))) is not None:
            straight[place] += 1
    return _Ends(_place(card.ask("nvmlDeviceGetPciInfo")), straight, switched)


def _place(pci: Any) -> Place | None:
    return None if pci is None else (pci.domain, pci.bus, pci.device)
