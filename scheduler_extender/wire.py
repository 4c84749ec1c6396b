# SPDX-License-Identifier: Apache-2.0
"""kube-scheduler's extender protocol: bytes to values and back. Pure; knows no GPU.

Keys are read in any letter case, as Go does, and written as Go's field names, all of them, numbers
as integers: Go refuses `5.0`. A reply never names a node that was not asked for, for that fails the
whole call; and where it means "none" it says an empty list, never null.

Source: k8s.io/kube-scheduler/extender/v1/types.go.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from scheduler_extender.errors import Malformed

Raw = dict[str, Any]

MAX_SCORE: Final = 10  # MaxExtenderPriority


@dataclass(frozen=True, slots=True)
class Candidates:
    """ExtenderArgs: where may this pod go, of these nodes?

    `nodes`: the whole Node objects in the order of `names`, where kube-scheduler sent those; it
    then wants whole ones back.
    """

    pod: Raw
    names: Sequence[str]
    nodes: Sequence[Raw] | None = None


@dataclass(frozen=True, slots=True)
class Filtered:
    """ExtenderFilterResult. `hopeless`: not even the eviction of pods would help there."""

    fitting: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    hopeless: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class BindAsk:
    """ExtenderBindingArgs."""

    pod: str
    namespace: str
    uid: str
    node: str


@dataclass(frozen=True, slots=True)
class Victims:
    """Pods that would have to go from a node, by UID. MetaVictims."""

    uids: tuple[str, ...]
    disruptions: int = 0  # budgets (PDBs) that it would violate


@dataclass(frozen=True, slots=True)
class PreemptAsk:
    """ExtenderPreemptionArgs: on which of these nodes would the evictions help?"""

    pod: Raw
    victims: Mapping[str, Victims]


def candidates(body: bytes) -> Candidates:
    """Read the body of filter and prioritise. Raises `Malformed`."""
    args = _object(body, "ExtenderArgs")
    pod = _pod(args, "ExtenderArgs")
    names, nodes = _field(args, "NodeNames"), _field(args, "Nodes")
    if names is not None:
        if not isinstance(names, list):
            raise Malformed("ExtenderArgs.NodeNames is no list of names")
        return Candidates(pod, names)
    if nodes is None:  # null asks for no node; it never means "all"
        return Candidates(pod, ())
    try:
        items = _field(nodes, "items") or []
        return Candidates(pod, [node["metadata"]["name"] for node in items], items)
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"ExtenderArgs.Nodes is no list of Nodes: {error!r}") from error


def filter_reply(asked: Candidates, found: Filtered) -> bytes:
    """In whole Nodes if those were asked, else in names."""
    nodes = None
    if asked.nodes is not None:
        kept = set(found.fitting)
        items = [node for name, node in zip(asked.names, asked.nodes, strict=True) if name in kept]
        nodes = {"metadata": {}, "items": items}
    return orjson.dumps(
        {
            "Nodes": nodes,
            "NodeNames": list(found.fitting) if nodes is None else None,
            "FailedNodes": found.failed,
            "FailedAndUnresolvableNodes": found.hopeless,
            "Error": found.error,
        }
    )


def host_priorities(name: str) -> tuple[bytes, ...]:
    """A HostPriority for each score 0..10, kept so that a reply only puts them together.

    5,000 small dicts would cost more than all the rest of the call.
    """
    begun = b'{"Host":' + orjson.dumps(name) + b',"Score":'
    return tuple(begun + b"%d}" % score for score in range(MAX_SCORE + 1))


def scores_reply(priorities: Iterable[bytes]) -> bytes:
    """A HostPriorityList of what `host_priorities` made."""
    return b"[" + b",".join(priorities) + b"]"


def bind_ask(body: bytes) -> BindAsk:
    args = _object(body, "ExtenderBindingArgs")
    named = [_field(args, name) for name in ("PodName", "PodNamespace", "PodUID", "Node")]
    if not all(isinstance(text, str) and text for text in named):
        raise Malformed(
            "ExtenderBindingArgs lacks one of PodName, PodNamespace, PodUID, Node; "
            "is this call from kube-scheduler?"
        )
    return BindAsk(*named)


def bind_reply(error: str = "") -> bytes:
    return orjson.dumps({"Error": error})


def preempt_ask(body: bytes) -> PreemptAsk:
    """Victims come as whole pods, or as UIDs where the extender is `nodeCacheCapable`."""
    args = _object(body, "ExtenderPreemptionArgs")
    pod = _pod(args, "ExtenderPreemptionArgs")
    by_node = _field(args, "NodeNameToMetaVictims")
    whole = by_node is None
    if by_node is None:
        by_node = _field(args, "NodeNameToVictims") or {}
    try:
        victims = {node: _victims(raw or {}, whole=whole) for node, raw in by_node.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Malformed(
            f"ExtenderPreemptionArgs has victims of no known form: {error!r}"
        ) from error
    return PreemptAsk(pod, victims)


def preempt_reply(victims: Mapping[str, Victims]) -> bytes:
    """Always in the form with UIDs: kube-scheduler reads no other."""
    return orjson.dumps(
        {
            "NodeNameToMetaVictims": {
                node: {
                    "Pods": [{"UID": uid} for uid in those.uids],
                    "NumPDBViolations": those.disruptions,
                }
                for node, those in victims.items()
            }
        }
    )


def _victims(raw: Raw, *, whole: bool) -> Victims:
    pods = _field(raw, "Pods") or []
    uids = tuple(pod["metadata"]["uid"] if whole else _field(pod, "UID") for pod in pods)
    if not all(isinstance(uid, str) and uid for uid in uids):
        raise ValueError("a victim has no UID")
    return Victims(uids, int(_field(raw, "NumPDBViolations") or 0))


def _object(body: bytes, what: str) -> Raw:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"{what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Malformed(f"{what} is no JSON object")
    return found


def _pod(args: Raw, what: str) -> Raw:
    pod = _field(args, "Pod")
    if not isinstance(pod, dict):
        raise Malformed(f"{what}.Pod is missing; is this call from kube-scheduler?")
    return pod


def _field(raw: Raw, name: str) -> Any:
    """The exact name if it is there, else the same in other letters; None if neither is."""
    if name in raw:
        return raw[name]
    wanted = name.lower()
    return next((value for key, value in raw.items() if key.lower() == wanted), None)
