# SPDX-License-Identifier: Apache-2.0
"""What a pod's status says, from what its containers are. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.lab.rest import Object


class Seen(Protocol):
    """What is seen of a container."""

    spec: Object
    name: str
    policy: str
    state: Object
    last_state: Object
    restarts: int
    ready: bool
    id: str

    @property
    def started(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Life:
    """A pod as its kubelet knows it."""

    ip: str
    host_ip: str
    began: str
    init: Sequence[Seen]
    main: Sequence[Seen]
    initialized: bool
    ending: bool  # it is being deleted: what has ended will not come back


def phase(life: Life) -> str:
    """Pending, Running, Succeeded or Failed."""
    if failed_init(life):
        return "Failed"
    if not life.initialized:
        return "Pending"
    codes = [_final_code(one, ending=life.ending) for one in life.main]
    if all(code is not None for code in codes):
        return "Failed" if any(codes) else "Succeeded"
    if any(_never_ran(one) for one in life.main):
        return "Pending"
    return "Running"


def failed_init(life: Life) -> bool:
    return any(one.policy == "Never" and _final_code(one, ending=False) for one in life.init)


def _never_ran(one: Seen) -> bool:
    return "waiting" in one.state and not one.last_state


def _final_code(one: Seen, *, ending: bool) -> int | None:
    """The exit code of a container that will not run again."""
    ended = one.state.get("terminated")
    if ended is None:
        return None
    code = int(ended["exitCode"])
    final = ending or one.policy == "Never" or (one.policy == "OnFailure" and code == 0)
    return code if final else None


def status(life: Life, *, pod: Object, before: Sequence[Object], now: str) -> Object:
    """The whole status. `before` are the conditions sent last: unchanged ones keep their time."""
    told = phase(life)
    addresses = {"podIP": life.ip, "podIPs": [{"ip": life.ip}]} if life.ip else {}
    return {
        "phase": told,
        "hostIP": life.host_ip,
        "hostIPs": [{"ip": life.host_ip}],
        **addresses,
        "startTime": life.began,
        "qosClass": pod.get("status", {}).get("qosClass", "BestEffort"),
        "conditions": list(_conditions(life, pod=pod, phase=told, before=before, now=now)),
        "containerStatuses": [_of_container(one) for one in life.main],
        **({"initContainerStatuses": [_of_init(one) for one in life.init]} if life.init else {}),
    }


def _of_container(one: Seen) -> Object:
    return {
        "name": one.name,
        "image": one.spec["image"],
        "imageID": "",
        "containerID": one.id,
        "ready": one.ready,
        "started": one.started,
        "restartCount": one.restarts,
        "state": one.state,
        "lastState": one.last_state,
    }


def _of_init(one: Seen) -> Object:
    done = one.state.get("terminated", {}).get("exitCode") == 0
    return {**_of_container(one), "ready": done or one.ready}


def _conditions(
    life: Life, *, pod: Object, phase: str, before: Iterable[Object], now: str
) -> Iterable[Object]:
    known = {one["type"]: one for one in before}
    for kind, (holds, why) in _truths(life, pod=pod, phase=phase).items():
        text = "True" if holds else "False"
        old = known.get(kind)
        since = old["lastTransitionTime"] if old and old["status"] == text else now
        reason, message = ("", "") if holds else why
        yield {
            "type": kind,
            "status": text,
            "reason": reason or None,
            "message": message or None,
            "lastProbeTime": None,
            "lastTransitionTime": since,
        }


def _truths(life: Life, *, pod: Object, phase: str) -> Mapping[str, tuple[bool, tuple[str, str]]]:
    not_ready = [one.name for one in life.main if not one.ready]
    why = "ContainersNotReady", f"containers with unready status: [{' '.join(not_ready)}]"
    if phase in ("Succeeded", "Failed"):
        why = "PodCompleted" if phase == "Succeeded" else "PodFailed", ""
    ready = life.initialized and not not_ready
    gates = _closed_gates(pod)
    gated = ("ReadinessGatesNotReady", f"gates not passed: {', '.join(gates)}") if ready else why
    waiting = [one.name for one in life.init if not _of_init(one)["ready"]]
    incomplete = "ContainersNotInitialized", f"containers with incomplete status: {waiting}"
    return {
        "PodReadyToStartContainers": (bool(life.ip), ("", "")),
        "Initialized": (life.initialized, incomplete),
        "ContainersReady": (ready, why),
        "Ready": (ready and not gates, gated),
    }


def _closed_gates(pod: Object) -> list[str]:
    conditions: list[Any] = pod.get("status", {}).get("conditions") or []
    open_gates = {one["type"] for one in conditions if one["status"] == "True"}
    wanted = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", ())]
    return [gate for gate in wanted if gate not in open_gates]


def difference(old: Object, new: Object) -> Object:
    """What of `new` is to be sent when `old` was: whole entries, and single conditions."""
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    if "conditions" in changed:
        before = old.get("conditions", ())
        changed["conditions"] = [one for one in new["conditions"] if one not in before]
    if "podIPs" in changed:  # a list merged by address: without this an old one would stay
        changed["podIPs"] = [{"$patch": "replace"}, *new["podIPs"]]
    return changed


def same_news(shown: Object, sent: Object) -> bool:
    """Whether the API shows what was sent, as far as anybody acts on it."""
    return _news(shown) == _news(sent)


def _news(told: Object) -> tuple[Any, ...]:
    ours = {"PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"}
    conditions = told.get("conditions") or ()
    containers = told.get("containerStatuses") or ()
    return (
        told.get("phase"),
        told.get("podIP", ""),
        {one["type"]: one["status"] for one in conditions if one["type"] in ours},
        [
            (one["name"], one["ready"], one["restartCount"], sorted(one["state"]))
            for one in containers
        ],
    )
