# SPDX-License-Identifier: Apache-2.0
"""What a node says of its GPUs: one annotation of JSON, written by its agent. Pure.

    tidegate.dev/gpus: {"version": 1, "model": "NVIDIA-A100-SXM4-80GB", "enforcement": "mps",
      "cards": [{"uuid": "GPU-…", "memory_mib": 80995, "healthy": true, "why": ""},
                {"uuid": "MIG-…", "memory_mib": 9728, "profile": "1g.10gb"}],
      "links": [[0, 400], [400, 0]]}

`memory_mib` is what pods may have: the driver's reserve is taken off by who writes it. `links` may
be left out. Keys that are not known are passed by, so that a newer agent is understood; another
`version` is not. `mixed: true`: the device plugin gives cards of this node to other pods, so that
only those are ours that a reservation holds (see `reservations.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from scheduler_extender.core import quantity
from scheduler_extender.core.annotations import PLUGIN_RESOURCE, PREFIX
from scheduler_extender.core.gpus import SLOTS, Card, NodeGpus

GPUS: Final = f"{PREFIX}gpus"
VERSION: Final = 1
MOST_CARDS: Final = 128  # of a node, MIG instances counted


class Enforcement(StrEnum):
    """What holds a pod to its share of a card on this node."""

    NONE = "none"
    COOPERATIVE = "cooperative"
    MPS = "mps"
    DMEM = "dmem"


@dataclass(frozen=True, slots=True)
class NodeReport:
    gpus: NodeGpus
    enforcement: Enforcement = Enforcement.NONE
    ill: tuple[tuple[str, str], ...] = ()  # UUID and why, of the cards that are not healthy
    mixed: bool = False  # a device plugin gives cards of this node to other pods


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """All that is kept of a node. `unread`: what is wrong with its report.

    `plugin`: how many GPUs its device plugin has to give, taken ones counted.
    """

    name: str
    uid: str = ""
    report: NodeReport | None = None
    unread: str = ""
    plugin: int = 0


def node_seen(raw: Mapping[str, Any]) -> NodeSeen:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is no node."""
    meta = raw["metadata"]
    name, uid = meta["name"], meta.get("uid", "")
    text = (meta.get("annotations") or {}).get(GPUS)
    if text is None:
        return NodeSeen(name, uid)
    allocatable = (raw.get("status") or {}).get("allocatable") or {}
    try:
        report = read_report(name, text)
        room = replace(
            report.gpus,
            cpu_milli=_known(allocatable, "cpu", milli=True),
            ram_mib=_known(allocatable, "memory"),
        )
        plugin = quantity.whole(str(allocatable.get(PLUGIN_RESOURCE, 0)))
        return NodeSeen(name, uid, replace(report, gpus=room), plugin=plugin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return NodeSeen(name, uid, unread=f"{GPUS}: {error!r}; is the node's agent of our version?")


def read_report(name: str, text: str) -> NodeReport:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no report."""
    raw = orjson.loads(text)
    if raw["version"] != VERSION:
        raise ValueError(f"version {raw['version']}, and only {VERSION} is known here")
    cards = tuple(_card(card) for card in raw["cards"])
    uuids = [card.uuid for card in cards]
    if len(set(uuids)) != len(uuids) or len(cards) > MOST_CARDS:
        raise ValueError(f"{len(cards)} cards: a UUID is named twice, or they are too many")
    links = tuple(tuple(map(int, row)) for row in raw.get("links") or ())
    if links and [len(row) for row in links] != [len(cards)] * len(cards):
        raise ValueError("links is no square of the cards")
    mixed = raw.get("mixed", False)
    if type(mixed) is not bool:
        raise ValueError(f"mixed is {mixed!r}, neither true nor false")
    return NodeReport(
        NodeGpus(name, cards, model=str(raw.get("model", "")), links=links),
        Enforcement(raw.get("enforcement", Enforcement.NONE)),
        tuple(
            (card["uuid"], str(card.get("why") or "no reason given"))
            for card in raw["cards"]
            if not card.get("healthy", True)
        ),
        mixed,
    )


def write_report(report: NodeReport) -> str:
    """The text that `read_report` reads; CPU and memory are the kubelet's to tell."""
    why, gpus = dict(report.ill), report.gpus
    cards = [
        {
            "uuid": card.uuid,
            "memory_mib": card.memory_mib,
            "healthy": card.healthy,
            "why": why.get(card.uuid, ""),
            "profile": card.profile,
            "slots": card.slots,
        }
        for card in gpus.cards
    ]
    return orjson.dumps(
        {
            "version": VERSION,
            "model": gpus.model,
            "enforcement": report.enforcement,
            "cards": cards,
            "links": gpus.links,
            **({"mixed": True} if report.mixed else {}),
        }
    ).decode()


def _card(raw: Mapping[str, Any]) -> Card:
    card = Card(
        uuid=raw["uuid"],
        memory_mib=raw["memory_mib"],
        healthy=raw.get("healthy", True),
        slots=raw.get("slots", SLOTS),
        profile=raw.get("profile", ""),
    )
    kinds = (card.uuid, str), (card.memory_mib, int), (card.slots, int), (card.profile, str)
    if not all(type(value) is kind for value, kind in kinds) or type(card.healthy) is not bool:
        raise ValueError(f"a card of no known form: {str(raw)[:200]}")
    if not card.uuid or "," in card.uuid or not 0 < card.memory_mib < 2**31 or card.slots < 1:
        raise ValueError(f"card {card.uuid!r}: no UUID, or no memory, or no slots")
    return card


def _known(allocatable: Mapping[str, Any], name: str, *, milli: bool = False) -> int | None:
    """Rounded down where a whole number cannot tell it: what is given out must be there."""
    text = allocatable.get(name)
    if text is None:
        return None
    exact = quantity.quantity(str(text))
    return int(exact * 1000) if milli else int(exact // quantity.MIB)
