# SPDX-License-Identifier: Apache-2.0
"""What a pod says: its wish for GPUs, and what it was given. Pure; every name of ours is here.

A wish is told by annotations (`tidegate.dev/gpu-memory: 12Gi`) or by extended resources of one
container (`tidegate.dev/gpu-mem-mib: 12288`); kube-scheduler asks the extender only for pods with
the latter. Where both tell a thing they must agree. The grant is written by us alone, inside the
Binding, and is the only place where it is kept.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from scheduler_extender.core import quantity
from scheduler_extender.core.demand import Demand, Policy
from scheduler_extender.core.gpus import Grant

Raw = Mapping[str, Any]

PREFIX: Final = "tidegate.dev/"
# Wishes, on the pod.
COUNT: Final = f"{PREFIX}gpu-count"
MEMORY: Final = f"{PREFIX}gpu-memory"
CORE: Final = f"{PREFIX}gpu-core"
PROFILE: Final = f"{PREFIX}mig-profile"
MODELS: Final = f"{PREFIX}gpu-models"
POLICY: Final = f"{PREFIX}gpu-policy"
MESH: Final = f"{PREFIX}mesh"
APART: Final = f"{PREFIX}mesh-apart"
CONTAINER: Final = f"{PREFIX}gpu-container"  # the only one that sees the cards
# The same as extended resources, which kube-scheduler passes by and we manage.
GPU_RESOURCE: Final = f"{PREFIX}gpu"
MEM_RESOURCE: Final = f"{PREFIX}gpu-mem-mib"
MEM_PERCENT_RESOURCE: Final = f"{PREFIX}gpu-mem-percent"
CORE_RESOURCE: Final = f"{PREFIX}gpu-core-percent"
MIG_RESOURCE: Final = f"{PREFIX}mig-"  # and the profile: tidegate.dev/mig-1g.10gb
# The grant, on the pod.
GRANTED_UUIDS: Final = f"{PREFIX}gpu-uuids"
GRANTED_MIB: Final = f"{PREFIX}gpu-mem-mib"
GRANTED_CORE: Final = f"{PREFIX}gpu-core-percent"
GRANTED_MESH: Final = f"{PREFIX}gpu-mesh"  # only of pods of a mesh
# On the pods of ours that take cards of mixed nodes from the device plugin.
PLUGIN_RESOURCE: Final = "nvidia.com/gpu"
RESERVATION: Final = f"{PREFIX}reservation"  # a label: its number on the node
RESERVES_ON: Final = f"{PREFIX}reserves-on"  # the node
RESERVED_UUID: Final = f"{PREFIX}reserved-uuid"  # told by its own process
# Labels of pods.
HAS_GPUS: Final = f"{PREFIX}has-gpus"  # "true": of pods with a grant
PLACEHOLDER: Final = f"{PREFIX}placeholder"  # for the pods of which pool; see `placeholders.plan`

MOST_CARDS: Final = 64
UNSCHEDULABLE: Final = "Unschedulable"  # reason of the condition PodScheduled
REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"  # of an affinity
TERMINAL: Final = frozenset({"Succeeded", "Failed"})
_PERCENT: Final = re.compile(r"([1-9][0-9]?|100)%?")
_PROFILE: Final = re.compile(r"[0-9]+g\.[0-9]+gb(\+[a-z0-9.]+)?")


@dataclass(frozen=True, slots=True)
class Unclear:
    """A pod's wish that cannot be met as it is written, with every problem and its remedy."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.problems)


@dataclass(frozen=True, slots=True)
class Granted:
    """What the annotations say that a pod has: on each card the same part."""

    uuids: tuple[str, ...]
    memory_mib: int
    milli: int
    mesh: str = ""  # as it was when the pod was bound: its wish may be edited later


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a pod says that looks like a reservation; whose pods count is not judged here.

    `uuid`: the card that the device plugin gave to it, as its process saw; "" until it has told.
    `holds`: it runs, so that card is given to nobody else; `ending`: it is being deleted.
    """

    node: str
    number: int
    uuid: str = ""
    holds: bool = False
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Of a pod that kube-scheduler calls unschedulable, and that asks for GPUs.

    `pool`: which nodes it may use, as JSON of the fields of its spec that say so. `scheduler`: its
    `schedulerName`; not every kube-scheduler asks us.
    """

    demand: Demand
    pool: str
    scheduler: str = ""


@dataclass(frozen=True, slots=True)
class PodSeen:
    """All that is kept of a pod. `unread`: annotations of ours on it that make no sense.

    `wish`: of pods with a grant, for what to expect is learned from it after a restart, and of
    pods that wait for a node that was `nominated` for them. `created`, and `leaving`, when a pod
    that is being deleted has to be gone: as the API server writes times, which sort as texts do.
    `plugin`: how many GPUs it has of a device plugin. `labelled`, `placeholder`: whether it has
    that label, what that label says.
    """

    uid: str
    namespace: str
    name: str
    node: str = ""
    ended: bool = False
    cpu_milli: int = 0
    ram_mib: int = 0
    priority: int = 0
    granted: Granted | None = None
    wish: Demand | None = None
    unread: str = ""
    created: str = ""
    leaving: str = ""
    nominated: str = ""
    plugin: int = 0
    reservation: Reservation | None = None
    unplaced: Unplaced | None = None
    labelled: bool = False
    placeholder: str = ""


def pod_seen(raw: Raw) -> PodSeen:
    """Raises KeyError, TypeError, ValueError or AttributeError for what is no pod."""
    meta, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    labels = meta.get("labels") or {}
    nominated = "" if spec.get("nodeName") else status.get("nominatedNodeName") or ""
    granted, wish, unread = None, None, ""
    try:
        granted = granted_to(meta.get("annotations") or {})
        wish = demand_of(raw) if nominated or granted is not None else None
    except ValueError as error:
        unread = str(error)
    return PodSeen(
        uid=meta["uid"],
        namespace=meta["namespace"],
        name=meta["name"],
        node=spec.get("nodeName") or "",
        ended=status.get("phase") in TERMINAL,
        cpu_milli=requested(spec, "cpu", quantity.milli),
        ram_mib=requested(spec, "memory", quantity.mib),
        priority=spec.get("priority") or 0,
        granted=granted,
        wish=wish if isinstance(wish, Demand) else None,
        unread=unread,
        created=meta.get("creationTimestamp") or "",
        leaving=meta.get("deletionTimestamp") or "",
        nominated=nominated,
        plugin=_plugin(spec),
        reservation=_reservation(raw) if RESERVATION in labels else None,
        unplaced=_unplaced(raw),
        labelled=HAS_GPUS in labels,
        placeholder=labels.get(PLACEHOLDER) or "",
    )


def _plugin(spec: Raw) -> int:
    """Few pods have it; and who asks for such a resource sets its limit."""
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        if PLUGIN_RESOURCE in ((container.get("resources") or {}).get("limits") or ()):
            return requested(spec, PLUGIN_RESOURCE, quantity.whole)
    return 0


def _reservation(raw: Raw) -> Reservation | None:
    meta, spec = raw["metadata"], raw.get("spec") or {}
    notes, number = meta.get("annotations") or {}, str(meta["labels"][RESERVATION])
    node = notes.get(RESERVES_ON) or ""
    if not node or spec.get("nodeName") not in {None, "", node} or not number.isdecimal():
        return None
    ending = bool(meta.get("deletionTimestamp"))
    runs = (raw.get("status") or {}).get("phase") == "Running"
    uuid = notes.get(RESERVED_UUID) or ""
    return Reservation(node, int(number), uuid, holds=runs and not ending, ending=ending)


def _unplaced(raw: Raw) -> Unplaced | None:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    if spec.get("nodeName"):
        return None
    if not any(one.get("reason") == UNSCHEDULABLE for one in status.get("conditions") or ()):
        return None
    demand = demand_of(raw)
    if isinstance(demand, Unclear) or not demand.cards:
        return None
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    pool = {
        "nodeSelector": spec.get("nodeSelector") or {},
        "affinity": node_affinity.get(REQUIRED),
        "tolerations": spec.get("tolerations") or [],
    }
    text = orjson.dumps(pool, option=orjson.OPT_SORT_KEYS).decode()
    return Unplaced(demand, text, spec.get("schedulerName") or "")


def grant_annotations(grant: Grant) -> dict[str, str]:
    """What is written on the pod. One size for all its cards: the least, should they differ."""
    return {
        GRANTED_UUIDS: ",".join(grant.uuids),
        GRANTED_MIB: str(min(part.memory_mib for part in grant.parts)),
        GRANTED_CORE: str(min(part.milli for part in grant.parts) // 10),
        **({GRANTED_MESH: grant.mesh} if grant.mesh else {}),
    }


def granted_to(annotations: Mapping[str, str]) -> Granted | None:
    """None where nothing was granted. Raises ValueError for what we would not write."""
    uuids = annotations.get(GRANTED_UUIDS)
    if not uuids:
        return None
    names = tuple(uuids.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise ValueError(f"{GRANTED_UUIDS}: {uuids!r} does not name each card once")
    sizes = [annotations.get(key, "") for key in (GRANTED_MIB, GRANTED_CORE)]
    if not all(re.fullmatch("[0-9]{1,9}", size) for size in sizes):
        raise ValueError(f"{GRANTED_MIB}, {GRANTED_CORE}: {sizes} are not two whole numbers")
    memory_mib, percent = map(int, sizes)
    return Granted(names, memory_mib, percent * 10, annotations.get(GRANTED_MESH, ""))


def demand_of(raw: Raw) -> Demand | Unclear:
    """The wish of a pod; of one that has none, a demand of 0 cards."""
    meta, spec = raw.get("metadata") or {}, raw.get("spec") or {}
    told = _Told()
    told.annotations(meta.get("annotations") or {})
    try:
        told.resources(_gpu_requests(spec))
        cpu_milli = requested(spec, "cpu", quantity.milli)
        ram_mib = requested(spec, "memory", quantity.mib)
    except ValueError as error:
        told.problems.append(str(error))
    told.check()
    if told.problems:
        return Unclear(tuple(told.problems))
    return told.demand(cpu_milli=cpu_milli, ram_mib=ram_mib)


class _Told:
    """A wish as far as it is read, and what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._values: dict[str, Any] = {}  # by the name of Demand's field, or `count`
        self._from: dict[str, str] = {}

    def annotations(self, annotations: Mapping[str, str]) -> None:
        for key, (field, read) in WISHES.items():
            if key in annotations:
                self._read(key, annotations[key], field=field, read=read)

    def resources(self, resources: Mapping[str, str]) -> None:
        for key, text in resources.items():
            if key.startswith(MIG_RESOURCE):
                self._tell("profile", key.removeprefix(MIG_RESOURCE), source=key)
                self._read(key, text, field="count", read=_count)
            elif key in _RESOURCES:
                field, read = _RESOURCES[key]
                self._read(key, text, field=field, read=read)

    def check(self) -> None:
        """What cannot be asked for together."""
        values = self._values
        if "memory_mib" in values and "memory_milli" in values:
            self.problems.append(f"{MEMORY}: ask for MiB or for a percentage, not for both")
        parts = [field for field in ("memory_mib", "memory_milli", "milli") if field in values]
        if "profile" in values and parts:
            where = ", ".join(self._from[field] for field in parts)
            self.problems.append(
                f"{where}: a MIG instance is given as a whole; leave this out, or the profile"
            )

    def demand(self, *, cpu_milli: int, ram_mib: int) -> Demand:
        values = dict(self._values)
        shares = {"memory_mib", "memory_milli", "milli", "profile"} & values.keys()
        cards = values.pop("count", 1 if shares else 0)
        return Demand(
            cards=cards, whole=cards > 0 and not shares, cpu_milli=cpu_milli, ram_mib=ram_mib,
            **values,
        )  # fmt: skip

    def _read(self, key: str, text: Any, *, field: str, read: Callable[[str], Any]) -> None:
        try:
            self._tell(field, read(str(text)), source=key)
        except ValueError as error:
            self.problems.append(f"{key}: {str(text)[:80]!r} is not {error}")

    def _tell(self, field: str, value: Any, *, source: str) -> None:
        if isinstance(value, tuple) and field == "memory":  # percentage or MiB
            field, value = value
        known = self._values.setdefault(field, value)
        if known != value:
            self.problems.append(
                f"{source}: {value} where {self._from[field]} says {known}; "
                "make them agree, or leave one out"
            )
        self._from.setdefault(field, source)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_CARDS:
        raise ValueError(f"a whole number from 1 to {MOST_CARDS}")
    return int(text)


def _memory(text: str) -> tuple[str, int]:
    if text.endswith("%"):
        return "memory_milli", _percent(text)
    try:
        memory_mib = quantity.mib(text)
    except ValueError:
        memory_mib = 0
    if not 1 <= memory_mib < 2**31:
        raise ValueError("memory on each card, such as 12Gi, 800Mi or 25%")
    return "memory_mib", memory_mib


def _mib(text: str) -> int:
    """A whole number, which the API server may have written anew: 6000 as 6k."""
    try:
        memory_mib = 0 if text.endswith("i") else quantity.whole(text)
    except ValueError:
        memory_mib = 0
    if not 1 <= memory_mib < 2**31:
        raise ValueError("memory on each card as a whole number of MiB, such as 12288")
    return memory_mib


def _percent(text: str) -> int:
    """Thousandths."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise ValueError("a whole percentage of each card from 1% to 100%")
    return int(match[1]) * 10


def _profile(text: str) -> str:
    if not _PROFILE.fullmatch(text):
        raise ValueError("a MIG profile such as 1g.10gb")
    return text


def _models(text: str) -> tuple[str, ...]:
    models = tuple(sorted({part.strip() for part in text.split(",")}))
    if not all(models):
        raise ValueError("a list of GPU models such as NVIDIA-A100-SXM4-80GB,NVIDIA-H100-80GB-HBM3")
    return models


def _policy(text: str) -> Policy:
    if text not in list(Policy):
        raise ValueError(f"one of {', '.join(Policy)}")
    return Policy(text)


def _mesh(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?", text):
        raise ValueError("the name of a group of pods: letters, digits, dashes and dots")
    return text


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("true or false")
    return text == "true"


# By annotation: the field of Demand that it tells, and its reader, whose ValueError says what is
# permitted.
WISHES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    COUNT: ("count", _count),
    MEMORY: ("memory", _memory),
    CORE: ("milli", _percent),
    PROFILE: ("profile", _profile),
    MODELS: ("models", _models),
    POLICY: ("policy", _policy),
    MESH: ("mesh", _mesh),
    APART: ("apart", _flag),
}
_RESOURCES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    GPU_RESOURCE: ("count", _count),
    MEM_RESOURCE: ("memory_mib", _mib),
    MEM_PERCENT_RESOURCE: ("memory_milli", _percent),
    CORE_RESOURCE: ("milli", _percent),
}


def _gpu_requests(spec: Raw) -> dict[str, str]:
    """The own resources of the one container that asks. All containers share the pod's cards."""
    asking = []
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        resources = container.get("resources") or {}
        named = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        ours = {key: str(text) for key, text in named.items() if key.startswith(PREFIX)}
        if ours:
            asking.append((container.get("name", "?"), ours))
    if len(asking) > 1:
        names = ", ".join(name for name, _ in asking)
        raise ValueError(
            f"containers {names}: only one may ask for {PREFIX}… resources; "
            "all containers of a pod share what the pod is given"
        )
    return asking[0][1] if asking else {}


def requested(spec: Raw, name: str, read: Callable[[str], int]) -> int:
    """What kube-scheduler counts for the pod: init containers run one after the other."""
    of = partial(_request, name=name, read=read)
    running = sum(map(of, spec.get("containers") or ()))
    sidecars = peak = 0
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            sidecars += of(container)
            peak = max(peak, sidecars)
        else:
            peak = max(peak, sidecars + of(container))
    overhead = (spec.get("overhead") or {}).get(name)
    return max(running + sidecars, peak) + (read(str(overhead)) if overhead else 0)


def _request(container: Raw, *, name: str, read: Callable[[str], int]) -> int:
    resources = container.get("resources") or {}
    text = (resources.get("requests") or {}).get(name)
    if text is None:
        text = (resources.get("limits") or {}).get(name)
    return 0 if text is None else read(str(text))
