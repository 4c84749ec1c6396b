# SPDX-License-Identifier: Apache-2.0
"""What `kubectl describe` shows of nodes and pods. Nobody waits for it; it fails nothing."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import structlog

from scheduler_extender.adapters.api import Api, Raw
from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.waiting import Waiting

log = structlog.get_logger(__name__)

SAME_S: Final = 600.0  # the same is not said again within it
MOST_SAID: Final = 1000
NOTE_CHARS: Final = 1000  # the API server refuses more than 1024 bytes


class KubernetesReporter:
    """`instance` is this process's pod."""

    def __init__(
        self, api: Api, *, instance: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._instance = instance
        self._now_s = now_s
        self._said: dict[tuple[str, str, str], float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def warn(self, *, node: NodeSeen, reason: str, message: str) -> None:
        about = {"kind": "Node", "name": node.name, "uid": node.uid}
        self._warn({"reason": reason, "action": "Counting"}, about, message)

    def tell_pod(self, pod: PodSeen, *, reason: str, message: str) -> None:
        self._warn({"reason": reason, "action": "Scheduling"}, _pod(pod), message)

    def _warn(self, what: Raw, about: Raw, message: str) -> None:
        """Unless it was said of late."""
        key, now_s = (about["uid"], what["reason"], message), self._now_s()
        self._said = {old: at for old, at in self._said.items() if now_s - at < SAME_S}
        if key in self._said or len(self._said) >= MOST_SAID:
            return
        self._said[key] = now_s
        log.warning(message, about=about["name"], reason=what["reason"])
        self._soon({"type": "Warning", **what}, about, message)

    def preempted(self, victim: PodSeen, *, by: Waiting, node: str) -> None:
        message = f"made room on {node} for pod {by.namespace}/{by.name} ({by.uid})"
        log.info("evicted", pod=f"{victim.namespace}/{victim.name}", why=message)
        what = {**_PREEMPTED, "related": _API | _pod(by)}
        self._soon(what, _pod(victim), message)

    def preempting(self, pod: Waiting, *, node: str, victims: Sequence[PodSeen]) -> None:
        names = ", ".join(f"{victim.namespace}/{victim.name}" for victim in victims)
        message = f"room on {node} is kept for this pod; evicted for it: {names}"
        log.info("room is made for a pod", pod=f"{pod.namespace}/{pod.name}", why=message)
        self._soon(_PREEMPTED | {"reason": "Preempting"}, _pod(pod), message)

    def _soon(self, what: Raw, about: Raw, message: str) -> None:
        task = asyncio.create_task(self._write(what, about, message))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, what: Raw, about: Raw, message: str) -> None:
        namespace = about.get("namespace", "default")
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{about['name']}.{uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "note": message[:NOTE_CHARS],
            "reportingController": "tidegate.dev/extender",
            "reportingInstance": self._instance,
            "regarding": _API | about,
            **what,
        }
        try:
            path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
            await self._api.ask("POST", path, body=event, timeout_s=10.0)
        except (Refused, Unreachable) as trouble:
            log.warning("an Event was not written", why=str(trouble))


_API: Final = {"apiVersion": "v1"}
_PREEMPTED: Final = {"type": "Normal", "reason": "Preempted", "action": "Preempting"}


def _pod(pod: PodSeen | Waiting) -> Raw:
    return {"kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid}
