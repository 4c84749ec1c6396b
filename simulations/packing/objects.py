# SPDX-License-Identifier: Apache-2.0
"""The nodes and pods of the lists as Kubernetes would show them to the extender. Pure."""

from collections.abc import Sequence
from typing import Any, Final

from scheduler_extender import annotations as named
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet, NodeGpus
from scheduler_extender.node_report import GPUS, NodeReport, write_report

Raw = dict[str, Any]

NAMESPACE: Final = "packing"
PER_CENT_MILLI: Final = 10  # pods ask for compute in whole per cent of a card


def node_names(fleet: Fleet) -> list[str]:
    """A name for each row, such that the extender's fixed order of names is the fleet's order."""
    names = [f"node-{number}" for number in range(fleet.rows)]
    ranks = Fleet(NodeGpus(name, ()) for name in names).order().tolist()
    by_rank = dict(zip(ranks, names, strict=True))
    return [by_rank[rank] for rank in fleet.order().tolist()]


def a_node(node: NodeGpus, *, name: str) -> Raw:
    room = {"cpu": (node.cpu_milli, "m"), "memory": (node.ram_mib, "Mi")}
    return {
        "metadata": {"name": name, "annotations": {GPUS: write_report(NodeReport(node))}},
        "status": {
            "allocatable": {
                key: f"{amount}{unit}" for key, (amount, unit) in room.items() if amount is not None
            }
        },
    }


def a_pod(demand: Demand, *, number: int) -> Raw:
    """A pod that asks as a user's would: by resources, and for models by an annotation."""
    asked = {}
    if demand.cards:
        asked[named.GPU_RESOURCE] = str(demand.cards)
    if demand.cards and not demand.exclusive:
        asked[named.CORE_RESOURCE] = str(demand.milli // PER_CENT_MILLI)
    requests = {"cpu": f"{demand.cpu_milli}m", "memory": f"{demand.ram_mib}Mi"}
    notes = {named.MODELS: ",".join(demand.models)} if demand.models else {}
    return {
        "metadata": {
            "name": f"pod-{number}",
            "namespace": NAMESPACE,
            "uid": f"uid-{number}",
            "annotations": notes,
        },
        "spec": {
            "containers": [
                {"name": "main", "resources": {"requests": {**requests, **asked}, "limits": asked}}
            ]
        },
        "status": {"phase": "Pending"},
    }


def cannot_be_asked(pods: Sequence[Demand]) -> Demand | None:
    """The first pod that wants a part which no whole per cent tells; None where none does."""
    return next((pod for pod in pods if pod.cards and pod.milli % PER_CENT_MILLI), None)
