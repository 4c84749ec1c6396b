# SPDX-License-Identifier: Apache-2.0
"""What is added to a pod that asks for GPUs by annotations, as a JSON Patch. Pure.

Nothing that is there is replaced but the default scheduler's name, so a second pass adds nothing.
The kubelet fills the variables in from the grant, which is written in the Binding: a pod without a
grant sees no GPU.
"""

from collections.abc import Iterable
from typing import Any, Final

from scheduler_extender import annotations as named
from scheduler_extender.admission.pods import (
    DEFAULT_SCHEDULER,
    HIDDEN,
    TOLD,
    VISIBLE,
    Raw,
    Wiring,
    added,
    annotations_of,
    containers,
    own_resources,
)
from scheduler_extender.core.demand import Demand

Operation = dict[str, Any]

CAPABILITIES: Final = {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}


def patch_of(pod: Raw, demand: Demand, *, wiring: Wiring) -> list[Operation]:
    """`demand` is what the pod's annotations ask for; they are known to be in order."""
    spec = pod["spec"]
    patch = []
    if (spec.get("schedulerName") or DEFAULT_SCHEDULER) == DEFAULT_SCHEDULER:
        patch.append(_add("/spec/schedulerName", wiring.scheduler))
    if wiring.runtime_class and not spec.get("runtimeClassName"):
        patch.append(_add("/spec/runtimeClassName", wiring.runtime_class))
    path, container = asking_container(pod)
    patch += _resources(path, container, resources_of(demand))
    return patch + _env_of(containers(pod), pod)


def patch_of_debuggers(pod: Raw, old: Raw) -> list[Operation]:
    """Debuggers see what the other containers see."""
    return _env_of(added(pod, old), pod)


def resources_of(demand: Demand) -> dict[str, str]:
    """A demand as extended resources, by which kube-scheduler knows that we are concerned."""
    asked: dict[str, int] = {
        named.MEM_RESOURCE: demand.memory_mib,
        named.MEM_PERCENT_RESOURCE: demand.memory_milli // 10,
        named.CORE_RESOURCE: demand.milli // 10,
    }
    asked = {key: amount for key, amount in asked.items() if amount}
    if demand.cards > 1 or not asked:
        asked[named.GPU_RESOURCE] = demand.cards
    return {key: str(amount) for key, amount in asked.items()}


def asking_container(pod: Raw) -> tuple[str, Raw]:
    """The one that bears our resources: which has some, else which is named, else the first."""
    every = list(containers(pod))
    only = annotations_of(pod).get(named.CONTAINER)
    having = [pair for pair in every if own_resources(pair[1])]
    chosen = [pair for pair in every if pair[1]["name"] == only]
    first = [pair for pair in every if pair[0].startswith("/spec/containers/")]
    return (having or chosen or first)[0]


def _env_of(every: Iterable[tuple[str, Raw]], pod: Raw) -> list[Operation]:
    only, patch = annotations_of(pod).get(named.CONTAINER), []
    for path, container in every:
        sees = only is None or container["name"] == only
        patch += _env(path, container, _seeing() if sees else _blind())
    return patch


def _resources(path: str, container: Raw, wanted: dict[str, str]) -> list[Operation]:
    """Extended resources are the same in requests and limits, or the API server refuses them."""
    there = container.get("resources") or {}
    patch = [] if there else [_add(f"{path}/resources", {})]
    for part in ("requests", "limits"):
        has = there.get(part) or {}
        lacks = {key: text for key, text in wanted.items() if key not in has}
        if not has:
            patch.append(_add(f"{path}/resources/{part}", lacks))
        else:
            patch += [
                _add(f"{path}/resources/{part}/{_escaped(key)}", text)
                for key, text in lacks.items()
            ]
    return patch


def _env(path: str, container: Raw, wanted: list[Raw]) -> list[Operation]:
    """In front of what is there, whose values may then name ours as `$(TIDEGATE_GPU_UUIDS)`."""
    there = container.get("env") or []
    names = {entry["name"] for entry in there}
    lacks = [entry for entry in wanted if entry["name"] not in names]
    if not there:
        return [_add(f"{path}/env", lacks)] if lacks else []
    return [_add(f"{path}/env/{index}", entry) for index, entry in enumerate(lacks)]


def _seeing() -> list[Raw]:
    told = [
        {
            "name": variable,
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}},
        }
        for variable, annotation in TOLD.items()
    ]
    return [*told, CAPABILITIES]


def _blind() -> list[Raw]:
    """An image may show itself every GPU unless it is told otherwise."""
    return [{"name": VISIBLE, "value": HIDDEN}]


def _add(path: str, value: Any) -> Operation:
    return {"op": "add", "path": path, "value": value}


def _escaped(key: str) -> str:
    """As RFC 6901 says."""
    return key.replace("~", "~0").replace("/", "~1")
