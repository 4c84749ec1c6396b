# SPDX-License-Identifier: Apache-2.0
"""The kubelet: keeps a `Pod` running for every pod that is bound to its node."""

import asyncio

import structlog

from tests.lab.kubelet.node import NodeFacts, keep_alive, register
from tests.lab.kubelet.pod import Pod
from tests.lab.kubelet.sandbox import Node
from tests.lab.rest import Mirror, Object, Rest

log = structlog.get_logger(__name__)


class Kubelet:
    """Runs until it is cancelled; its pods' processes end with it."""

    def __init__(self, node: Node, facts: NodeFacts) -> None:
        self._node = node
        self._facts = facts
        self._pods: dict[str, Pod] = {}  # by uid, kept until the object is gone
        self._runs: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        rest: Rest = self._node.rest
        await register(rest, self._facts)
        log.info("node_registered", node=self._facts.name, pods=self._facts.pod_cidr)
        bound = f"spec.nodeName={self._facts.name}"
        mirror = Mirror(rest, "/api/v1/pods", on_change=self._on_change, fieldSelector=bound)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(keep_alive(rest, self._facts))
                group.create_task(mirror.run())
        finally:
            for run in self._runs.values():
                run.cancel()
            await asyncio.gather(*self._runs.values(), return_exceptions=True)

    def _on_change(self, kind: str, item: Object) -> None:
        uid = item["metadata"]["uid"]
        if kind == "DELETED":
            if pod := self._pods.pop(uid, None):
                pod.vanish()
        elif pod := self._pods.get(uid):
            pod.update(item)
        else:
            self._take(item)

    def _take(self, item: Object) -> None:
        pod = Pod(item, self._node)
        self._pods[pod.uid] = pod
        run = asyncio.create_task(pod.run())
        self._runs[pod.uid] = run
        run.add_done_callback(lambda done: self._done(pod.uid, done))

    def _done(self, uid: str, run: "asyncio.Task[None]") -> None:
        del self._runs[uid]
        if not run.cancelled() and (error := run.exception()):
            log.error("pod_run_failed", uid=uid, exc_info=error)
