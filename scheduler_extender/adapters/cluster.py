# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods by list and watch, and Bindings. It never forgets on silence.

Nothing raw is kept. All nodes are told before any pod, so that what pods have is counted once. A
watch that breaks off goes on where it was; one whose place is no longer kept lists anew.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from random import uniform
from typing import Final

import orjson
import structlog

from scheduler_extender.adapters.api import STRATEGIC, Api, Raw, pod_path
from scheduler_extender.binding import BIND_S
from scheduler_extender.core.annotations import HAS_GPUS, PodSeen, demand_of, pod_seen
from scheduler_extender.core.node_report import node_seen
from scheduler_extender.errors import Gone, NotFound, Refused, Unreachable
from scheduler_extender.ports import Binding, PodRead, Watched
from scheduler_extender.waiting import Waiting

log = structlog.get_logger(__name__)

PAGE: Final = "1000"
WATCH_S: Final = 270
STATUS_S: Final = 5.0
EVICT_S: Final = 5.0
ROOM: Final = "tidegate.dev/GPURoom"  # conditions of pods
TARGET: Final = "DisruptionTarget"
LONGEST_WAIT_S: Final = 8.0
# A pod that ends leaves this selection, and the watch tells that as if it were deleted.
RUNNING: Final = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
# What a reader may stumble on in an object that is not shaped as expected.
MISSHAPEN: Final = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where one kind is, and whom to tell of it. Keys: names of nodes, UIDs of pods."""

    path: str
    params: dict[str, str]
    key: Callable[[Raw], str]
    seen: Callable[[Raw], None]
    gone: Callable[[str], None]
    listed: Callable[[set[str], float], None]


class KubernetesPodsAndNodes:
    """`now_s` is the clock by which `Watched` is told when a list began."""

    def __init__(self, api: Api, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._now_s = now_s

    async def follow(self, watched: Watched) -> None:
        nodes, pods = _kinds(watched)
        since = await self._until_listed(nodes)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._keep(nodes, since))
            both.create_task(self._keep(pods, ""))

    async def _until_listed(self, kind: _Kind) -> str:
        wait_s = 0.5
        while True:
            try:
                return await self._list(kind)
            except (Refused, Unreachable) as trouble:
                log.warning("not listed; trying again", path=kind.path, why=str(trouble))
            await asyncio.sleep(wait_s * uniform(0.5, 1.0))  # noqa: S311 - it only spreads load
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _keep(self, kind: _Kind, since: str) -> None:
        """Watch for ever, from `since` or from a list."""
        wait_s = 0.5
        while True:
            try:
                since = since or await self._until_listed(kind)
                async with aclosing(self._events(kind, since)) as events:
                    async for version in events:
                        since, wait_s = version, 0.5
                continue
            except Gone as trouble:
                log.info("listing anew", path=kind.path, why=str(trouble))
                since = ""
            except (Refused, Unreachable) as trouble:
                log.warning("not heard; trying again", path=kind.path, why=str(trouble))
            await asyncio.sleep(wait_s * uniform(0.5, 1.0))  # noqa: S311 - it only spreads load
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _list(self, kind: _Kind) -> str:
        """Tell all there is; returns the version from which to watch."""
        began_s, seen = self._now_s(), set[str]()
        params = {**kind.params, "limit": PAGE}
        while True:
            page = await self._api.ask("GET", kind.path, params=params)
            for raw in page.get("items") or ():
                seen.add(kind.key(raw))
                _tell(kind, raw)
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                kind.listed(seen, began_s)
                return str(meta.get("resourceVersion", ""))
            params["continue"] = meta["continue"]

    async def _events(self, kind: _Kind, since: str) -> AsyncGenerator[str, None]:
        """Tell each change, and yield its version."""
        params = {
            **kind.params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(round(WATCH_S * uniform(1.0, 1.2))),  # noqa: S311
        }
        async with aclosing(self._api.lines(kind.path, params)) as lines:
            async for line in lines:
                yield _event(kind, line)


class KubernetesBinder:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def bind(self, binding: Binding) -> None:
        """One request: the API server writes node and annotations together, or nothing.

        It is told to give up when we do, so that no Binding is made long after.
        """
        await self._api.ask(
            "POST",
            f"{pod_path(binding.namespace, binding.pod)}/binding",
            params={"timeout": f"{BIND_S:g}s"},
            body={
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {
                    "name": binding.pod,
                    "namespace": binding.namespace,
                    "uid": binding.uid,
                    "annotations": dict(binding.annotations),
                    # Kubernetes 1.35 and newer take it over; see `placeholders.growing` for others.
                    "labels": {HAS_GPUS: "true"} if binding.annotations else {},
                },
                "target": {"apiVersion": "v1", "kind": "Node", "name": binding.node},
            },
            timeout_s=BIND_S,
        )

    async def read(self, namespace: str, name: str) -> PodRead | None:
        try:
            raw = await self._api.ask("GET", pod_path(namespace, name), timeout_s=BIND_S)
        except NotFound:
            return None
        return PodRead(pod_seen(raw), demand_of(raw))


class KubernetesEvictor:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def evict(self, victim: PodSeen, *, dry_run: bool = False) -> None:
        options: Raw = {"preconditions": {"uid": victim.uid}}
        if dry_run:
            options["dryRun"] = ["All"]
        await self._api.ask(
            "POST",
            f"{pod_path(victim.namespace, victim.name)}/eviction",
            body={
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": victim.name, "namespace": victim.namespace},
                "deleteOptions": options,
            },
            timeout_s=EVICT_S,
        )

    async def tell_why(self, victim: PodSeen, preemptor: Waiting) -> None:
        """By the condition of kube-scheduler's own victims: as long as one is there, it leaves the
        preemptor's nomination alone. The Eviction API writes another reason; this comes after it.
        """
        why = f"making room for pod {preemptor.namespace}/{preemptor.name} of higher priority"
        told = _condition(TARGET, "PreemptionByScheduler", why)
        await _write_status(self._api, victim, {"conditions": [told]})

    async def nominate(self, pod: Waiting, node: str) -> None:
        await _write_status(self._api, pod, {"nominatedNodeName": node})


class KubernetesRetries:
    """By a condition of the pod: kube-scheduler tries a pod of its own again that changes.

    The right to write a pod's status is less than that to write the pod.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def retry(self, pod: Waiting) -> None:
        why = "GPUs were freed, or could be, after this pod was refused; it is tried again"
        await _write_status(self._api, pod, {"conditions": [_condition(ROOM, "RoomMade", why)]})


async def _write_status(api: Api, pod: PodSeen | Waiting, status: Raw) -> None:
    """Of this very pod; what is not named stays."""
    await api.ask(
        "PATCH",
        f"{pod_path(pod.namespace, pod.name)}/status",
        body={"metadata": {"uid": pod.uid}, "status": status},
        kind=STRATEGIC,
        timeout_s=STATUS_S,
    )


def _condition(kind: str, reason: str, message: str) -> Raw:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _kinds(watched: Watched) -> tuple[_Kind, _Kind]:
    nodes = _Kind(
        path="/api/v1/nodes",
        params={},
        key=lambda raw: str(raw["metadata"]["name"]),
        seen=lambda raw: watched.node_seen(node_seen(raw)),
        gone=watched.node_gone,
        listed=lambda names, _: watched.nodes_listed(names),
    )
    pods = _Kind(
        path="/api/v1/pods",
        params=RUNNING,
        key=lambda raw: str(raw["metadata"]["uid"]),
        seen=lambda raw: watched.pod_seen(pod_seen(raw)),
        gone=watched.pod_gone,
        listed=lambda uids, began_s: watched.pods_listed(uids, began_s=began_s),
    )
    return nodes, pods


def _tell(kind: _Kind, raw: Raw) -> None:
    try:
        kind.seen(raw)
    except MISSHAPEN as error:
        log.warning("an object cannot be read", path=kind.path, why=repr(error))


def _event(kind: _Kind, line: bytes) -> str:
    try:
        event = orjson.loads(line)
        what, raw = event["type"], event["object"]
        if what == "ERROR":
            raise _ended(kind, raw)
        version, key = str(raw["metadata"]["resourceVersion"]), None
        if what == "DELETED":
            key = kind.key(raw)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Gone(f"the watch of {kind.path} said what is no event: {error!r}") from error
    if key is not None:
        kind.gone(key)
    elif what != "BOOKMARK":
        _tell(kind, raw)
    return version


def _ended(kind: _Kind, status: Raw) -> Refused | Unreachable:
    said = f"the watch of {kind.path} ended: {status.get('message')}"
    if status.get("code") == HTTPStatus.GONE:
        return Gone(said)
    return Unreachable(said, after_s=1.0)
