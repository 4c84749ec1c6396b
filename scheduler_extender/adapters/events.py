# SPDX-License-Identifier: Apache-2.0
"""Warnings on nodes that `kubectl describe` shows. Nobody waits for one; none fails anything."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import structlog

from scheduler_extender.adapters.api import Api
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.node_report import NodeSeen

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
        key, now_s = (node.name, reason, message), self._now_s()
        self._said = {old: at for old, at in self._said.items() if now_s - at < SAME_S}
        if key in self._said or len(self._said) >= MOST_SAID:
            return
        self._said[key] = now_s
        log.warning(message, node=node.name, reason=reason)
        task = asyncio.create_task(self._write(node, reason, message))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, node: NodeSeen, reason: str, message: str) -> None:
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{node.name}.{uuid4().hex[:16]}", "namespace": "default"},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": "Warning",
            "reason": reason,
            "note": message[:NOTE_CHARS],
            "action": "Counting",
            "reportingController": "tidegate.dev/extender",
            "reportingInstance": self._instance,
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid},
        }
        try:
            path = "/apis/events.k8s.io/v1/namespaces/default/events"
            await self._api.ask("POST", path, body=event, timeout_s=10.0)
        except (Refused, Unreachable) as trouble:
            log.warning("an Event was not written", why=str(trouble))
