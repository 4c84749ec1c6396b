# SPDX-License-Identifier: Apache-2.0
"""Warnings on nodes and pods for `kubectl describe`. Nobody waits for one; none fails anything."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import structlog

from scheduler_extender.adapters.api import Api, Raw
from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.errors import Refused, Unreachable

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
        regarding = {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}
        self._say({"regarding": regarding, "reason": reason, "action": "Counting"}, message)

    def tell_pod(self, pod: PodSeen, *, reason: str, message: str) -> None:
        regarding = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
        }
        self._say({"regarding": regarding, "reason": reason, "action": "Scheduling"}, message)

    def _say(self, event: Raw, message: str) -> None:
        """Unless it was said of late."""
        key, now_s = (event["regarding"]["uid"], event["reason"], message), self._now_s()
        self._said = {old: at for old, at in self._said.items() if now_s - at < SAME_S}
        if key in self._said or len(self._said) >= MOST_SAID:
            return
        self._said[key] = now_s
        log.warning(message, regarding=event["regarding"]["name"], reason=event["reason"])
        task = asyncio.create_task(self._write(event, message))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, event: Raw, message: str) -> None:
        named, namespace = event["regarding"]["name"], event["regarding"].get("namespace")
        namespace = namespace or "default"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{named}.{uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": "Warning",
            "note": message[:NOTE_CHARS],
            "reportingController": "tidegate.dev/extender",
            "reportingInstance": self._instance,
            **event,
        }
        try:
            path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
            await self._api.ask("POST", path, body=body, timeout_s=10.0)
        except (Refused, Unreachable) as trouble:
            log.warning("an Event was not written", why=str(trouble))
