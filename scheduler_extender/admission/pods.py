# SPDX-License-Identifier: Apache-2.0
"""Pods as admission looks at them: which ask for GPUs, and what their containers are told. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scheduler_extender import annotations as named

Raw = Mapping[str, Any]

DEFAULT_SCHEDULER: Final = "default-scheduler"
# Annotations that ask for GPUs. The others of ours say how, and ask for none by themselves.
ASKING: Final = (named.COUNT, named.MEMORY, named.CORE, named.PROFILE)
HOW: Final = (named.MODELS, named.POLICY, named.CONTAINER)
GRANTS: Final = (named.GRANTED_UUIDS, named.GRANTED_MIB, named.GRANTED_CORE, named.GRANTED_MESH)
GPU_KEYS: Final = f"{named.PREFIX}gpu"  # how all annotations about GPUs begin

VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
# By variable: the annotation of the grant from which the kubelet fills it in.
TOLD: Final = {
    VISIBLE: named.GRANTED_UUIDS,
    "TIDEGATE_GPU_UUIDS": named.GRANTED_UUIDS,
    "TIDEGATE_GPU_MEMORY_MIB": named.GRANTED_MIB,
    "TIDEGATE_GPU_CORE_PERCENT": named.GRANTED_CORE,
}
# Values with which NVIDIA's runtime shows no GPU.
NO_GPUS: Final = frozenset({"", "void", "none"})
HIDDEN: Final = "void"


@dataclass(frozen=True, slots=True)
class Wiring:
    """What this cluster gives to pods that ask for GPUs. `runtime_class` empty: leave it alone."""

    scheduler: str = "tidegate-scheduler"
    runtime_class: str = ""


def annotations_of(pod: Raw) -> Mapping[str, str]:
    return (pod.get("metadata") or {}).get("annotations") or {}


def asks(pod: Raw) -> bool:
    return any(key in annotations_of(pod) for key in ASKING)


def containers(pod: Raw) -> Iterator[tuple[str, Raw]]:
    """Every container with its path in the pod, the debugger's too."""
    spec = pod.get("spec") or {}
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(kind) or ()):
            yield f"/spec/{kind}/{index}", container


def added(pod: Raw, old: Raw) -> Iterator[tuple[str, Raw]]:
    """The containers that a pod has got since; only debuggers can be."""
    known = {path for path, _ in containers(old)}
    return ((path, container) for path, container in containers(pod) if path not in known)


def own_resources(container: Raw) -> dict[str, str]:
    return _resources(container, named.PREFIX)


def device_plugin_resources(container: Raw) -> dict[str, str]:
    """What it asks of NVIDIA's device plugin: whole GPUs, MIG instances."""
    return _resources(container, "nvidia.com/")


def tells(entry: Raw, variable: str) -> bool:
    """Whether an entry of `env` is the one that we write for a variable."""
    told = entry.get("valueFrom") or {}
    path = (told.get("fieldRef") or {}).get("fieldPath")
    return entry.get("name") == variable and path == f"metadata.annotations['{TOLD[variable]}']"


def hides(entry: Raw) -> bool:
    """Whether an entry of `env` shows no GPU to its container."""
    plain = not entry.get("valueFrom")
    return plain and entry.get("name") == VISIBLE and (entry.get("value") or "") in NO_GPUS


def _resources(container: Raw, prefix: str) -> dict[str, str]:
    resources = container.get("resources") or {}
    named_all = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return {key: str(text) for key, text in named_all.items() if key.startswith(prefix)}
