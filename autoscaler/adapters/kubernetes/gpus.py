# SPDX-License-Identifier: Apache-2.0
"""What is kept of pods and nodes for the budget: the GPUs they use, wait for, or have. Pure.

GPUs that a device plugin gives out have no name: they are counted by node, as cards of a profile of
their own, which nothing but a request for that resource takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from scheduler_extender.core import quantity
from scheduler_extender.core.annotations import (
    TERMINAL,
    Granted,
    Unclear,
    demand_of,
    granted_to,
    requested,
)
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Card, NodeGpus
from scheduler_extender.core.node_report import node_seen

Raw = Mapping[str, Any]

PLUGIN: Final = "nvidia.com/gpu"  # what NVIDIA's device plugin gives out
FAILED: Final = "SchedulerError"  # of a pod that is looked at again
PRODUCT: Final = "nvidia.com/gpu.product"  # the label of a node's model, and how pods choose it


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Of a pod on a node what it has; of one that a scheduler has yet to judge, its demand."""

    node: str
    granted: Granted | None = None
    plugin: int = 0  # GPUs of a device plugin
    waits_for: Demand | None = None


@dataclass(frozen=True, slots=True)
class GpuNode:
    """The cards that a node reports, and how many its device plugin gives out."""

    gpus: NodeGpus
    plugin: int = 0

    def beside(self, used: int) -> NodeGpus:
        """As the core sees it, with `used` of the device plugin's taken."""
        name = self.gpus.name
        left = range(max(self.plugin - used, 0))
        unnamed = (Card(f"{name}/{n}", 1, slots=1, profile=PLUGIN) for n in left)
        return replace(self.gpus, cards=(*self.gpus.cards, *unnamed))


def use_of(raw: Raw) -> GpuUse | None:
    """None: no GPU, or not any more. Of a grant that makes no sense the extender complains.

    A pod that no scheduler could place, or that is gated, takes nothing: where there is room for
    others, it waits for something else than GPUs. One whose scheduler failed is tried again, as the
    second of two that were meant for the same place.
    """
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    if status.get("phase") in TERMINAL:
        return None
    node = spec.get("nodeName") or ""
    if not node:
        if any(
            c["type"] == "PodScheduled" and c.get("reason") != FAILED
            for c in status.get("conditions") or ()
        ):
            return None
        waits_for = needs_of(raw)
        return None if waits_for is None else GpuUse("", waits_for=waits_for)
    granted, plugin = _granted(meta.get("annotations") or {}), _plugin(spec)
    return GpuUse(node, granted, plugin) if granted is not None or plugin else None


def needs_of(raw: Raw) -> Demand | None:
    """What a pod, or a template of pods, asks of GPUs; None: of none, or nobody can read it.

    Of CPU and memory, and of places beside others, the budget knows nothing.
    """
    wish = demand_of(raw)
    if isinstance(wish, Unclear):
        return None
    if wish.cards:
        return Demand(
            cards=wish.cards, whole=wish.whole, memory_mib=wish.memory_mib,
            memory_milli=wish.memory_milli, milli=wish.milli, profile=wish.profile,
            models=wish.models,
        )  # fmt: skip
    spec = raw.get("spec") or {}
    count = _plugin(spec)
    model = (spec.get("nodeSelector") or {}).get(PRODUCT)
    return Demand(count, profile=PLUGIN, models=(model,) if model else ()) if count else None


def node(raw: Raw) -> GpuNode | None:
    """None: it has no GPU, or takes no pods now. Raises ValueError for a report that is none."""
    meta, status = raw["metadata"], raw.get("status") or {}
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()
    )
    if not ready or (raw.get("spec") or {}).get("unschedulable") or "deletionTimestamp" in meta:
        return None
    seen = node_seen(raw)
    if seen.unread:
        raise ValueError(seen.unread)
    plugin = quantity.whole(str((status.get("allocatable") or {}).get(PLUGIN, "0")))
    told = seen.report.gpus if seen.report is not None else NodeGpus(seen.name, ())
    if not told.cards and not plugin:
        return None
    model = told.model or (meta.get("labels") or {}).get(PRODUCT, "")
    return GpuNode(NodeGpus(seen.name, told.cards, model), plugin)


def _granted(annotations: Mapping[str, str]) -> Granted | None:
    try:
        return granted_to(annotations)
    except ValueError:
        return None


def _plugin(spec: Raw) -> int:
    """0 where it cannot be read: only in templates of kinds that the API server does not know."""
    try:
        return requested(spec, PLUGIN, quantity.whole)
    except ValueError:
        return 0
