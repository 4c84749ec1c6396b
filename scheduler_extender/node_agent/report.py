# SPDX-License-Identifier: Apache-2.0
"""What the agent writes on its node, from what it read, and what it reads there of its past. Pure.

It fails closed: when the driver does not tell, the GPUs that were known stay, and none is healthy.
Beside what `node_report.py` reads there are, for people and for the next agent: `driver`, `why`
(what is not as it should be), `boot` and, of each card, `xid`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from scheduler_extender.core.gpus import SLOTS, Card, NodeGpus
from scheduler_extender.core.node_report import Enforcement, NodeReport, read_report, write_report
from scheduler_extender.node_agent.gpus import Machine, NotRead

ONE_PROCESS_SLOTS = 1


@dataclass(frozen=True, slots=True)
class Written:
    """The annotation as it stands on the node. `xids`: by UUID, of the same boot."""

    report: NodeReport
    xids: Mapping[str, int]


def written_of(node: str, text: str, *, boot: str) -> Written:
    """Raises ValueError, KeyError, TypeError or AttributeError for what we did not write."""
    report, raw = read_report(node, text), orjson.loads(text)
    same = raw.get("boot") == boot
    xids = {card["uuid"]: int(card["xid"]) for card in raw["cards"] if same and card.get("xid")}
    return Written(report, xids)


def report_of(node: str, machine: Machine, level: Enforcement) -> NodeReport:
    """A node of several models tells none, so that a pod that asks for one does not come."""
    models = {gpu.model for gpu in machine.gpus}
    # One process at a time that is no MPS server: a second pod would find the GPU taken.
    slots = ONE_PROCESS_SLOTS if machine.one_process and level is not Enforcement.MPS else SLOTS
    cards = tuple(
        Card(
            gpu.uuid,
            gpu.memory_mib,
            healthy=not gpu.ails,
            slots=slots,
            profile=gpu.profile,
        )
        for gpu in machine.gpus
    )
    ill = tuple((gpu.uuid, gpu.ails) for gpu in machine.gpus if gpu.ails)
    model = models.pop() if len(models) == 1 else ""
    return NodeReport(NodeGpus(node, cards, model=model, links=machine.links), level, ill)


def report_of_silence(node: str, silence: NotRead, last: NodeReport | None) -> NodeReport:
    return NodeReport(NodeGpus(node, ())) if last is None else with_none_well(last, silence.why)


def with_none_well(report: NodeReport, why: str) -> NodeReport:
    """The same GPUs, of which no pod is given any."""
    cards = tuple(replace(card, healthy=False) for card in report.gpus.cards)
    ill = tuple((card.uuid, why) for card in cards)
    return replace(report, gpus=replace(report.gpus, cards=cards), ill=ill)


def text_of(
    report: NodeReport, *, boot: str, driver: str, why: tuple[str, ...], xids: Mapping[str, int]
) -> str:
    raw: dict[str, Any] = orjson.loads(write_report(report))
    for card in raw["cards"]:
        if card["uuid"] in xids:
            card["xid"] = xids[card["uuid"]]
    raw |= {"driver": driver, "boot": boot, "why": "; ".join(why)}
    return orjson.dumps(raw).decode()
