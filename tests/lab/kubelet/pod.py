# SPDX-License-Identifier: Apache-2.0
"""One pod on its node, from being bound to being gone.

1. an address, folders for its volumes; 2. init containers in order; 3. its containers, until all
have ended or the pod is deleted; 4. stopped with its grace, reported, and removed from the API.
"""

import asyncio
from collections.abc import Sequence

import structlog

from autoscaler.errors import RetryLater
from tests.lab.kubelet.container import Container, Runtime, now, waiting
from tests.lab.kubelet.env import NotYet
from tests.lab.kubelet.sandbox import Node, Sandbox
from tests.lab.kubelet.status import Life, difference, same_news, status
from tests.lab.rest import STRATEGIC, Conflict, NotFound, Object, Refused

log = structlog.get_logger(__name__)

RETRY_S = 0.5
SETTLE_S = 0.02  # changes this close together are one patch
FOREIGN_S = 1.0  # how long the API may show another status than ours before it is sent again


class Pod:
    """A pod that is bound to this node. `object` is its newest known form."""

    def __init__(self, pod: Object, node: Node) -> None:
        self.object = pod
        self.uid: str = pod["metadata"]["uid"]
        self._path = (
            f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/" + (pod["metadata"]["name"])
        )
        self._node = node
        self._sandbox = Sandbox(pod, node)
        self._sent: Object = dict(pod.get("status", {}))
        self._began: str = self._sent.get("startTime") or now()
        self._deleted = asyncio.Event()
        self._dirty = asyncio.Event()
        self._vanished = self._initialized = self._ending = False
        self._init = self._make("initContainers")
        self._main = self._make("containers")
        self._runs: dict[str, asyncio.Task[None]] = {}
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()

    def update(self, pod: Object) -> None:
        """A newer form came by the watch."""
        self.object = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()
            if self._ending:  # a shorter grace than the one before
                asyncio.get_running_loop().call_later(self._grace_s(), self._kill)
        if not same_news(pod.get("status", {}), self._sent):
            asyncio.get_running_loop().call_later(FOREIGN_S, self._compare)
        if pod["spec"].get("readinessGates"):
            self._dirty.set()

    def vanish(self) -> None:
        """The object is gone: end everything at once."""
        self._vanished = True
        self._deleted.set()
        self._kill()

    async def run(self) -> None:
        """Returns once nothing of the pod is left, neither here nor in the API."""
        telling = asyncio.create_task(self._tell_changes())
        deleted = asyncio.create_task(self._deleted.wait())
        living = asyncio.create_task(self._live())
        try:
            await asyncio.wait({living, deleted}, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()  # a fault of ours is to be seen
            await deleted
            living.cancel()
            await self._end()
        finally:
            telling.cancel()
            deleted.cancel()
            self._kill()
        await self._bury()

    # 1. to 3.

    async def _live(self) -> None:
        if self._sent.get("phase") in ("Succeeded", "Failed"):
            return
        await self._settle_in()
        refreshing = asyncio.create_task(self._refresh())
        try:
            if not await self._initialize():
                return
            self._initialized = True
            self._dirty.set()
            await asyncio.wait([self._spawn(one) for one in self._main])
            await self._stop_sidecars()
        finally:
            refreshing.cancel()

    async def _settle_in(self) -> None:
        """An address and all volumes; until then the containers say what is missing."""
        while True:
            try:
                if not self._sandbox.ip:
                    self._sandbox.open()
                await self._sandbox.refresh()
            except NotYet as error:
                self._say_waiting(error.reason, str(error))
            except RetryLater as error:
                self._say_waiting("ContainerCreating", str(error))
            else:
                self._dirty.set()
                return
            await asyncio.sleep(RETRY_S)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._node.refresh_s)
            try:
                await self._sandbox.refresh()
            except (NotYet, RetryLater) as error:
                log.info("volumes_as_before", pod=self._path, why=str(error))

    async def _initialize(self) -> bool:
        """Whether all init containers did their work."""
        for one in self._init:
            run = self._spawn(one)
            if one.policy == "Always":  # a sidecar: it goes on beside the rest
                await one.ever_started.wait()
                continue
            await asyncio.wait([run])
            if one.state.get("terminated", {}).get("exitCode") != 0:
                return False
        return True

    def _spawn(self, one: Container) -> "asyncio.Task[None]":
        self._runs[one.name] = asyncio.create_task(one.run())
        return self._runs[one.name]

    # 4.

    async def _end(self) -> None:
        self._ending = True
        grace_s = 0.0 if self._vanished else self._grace_s()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_s
        sidecars = self._sidecars()
        first = [one for one in (*self._init, *self._main) if one not in sidecars]
        await self._stop(first, grace_s=grace_s)
        await self._stop_sidecars(grace_s=max(until_s - loop.time(), 0.0))
        self._sandbox.kill_rest()

    async def _stop(self, containers: Sequence[Container], *, grace_s: float) -> None:
        running = [one for one in containers if one.name in self._runs]
        await asyncio.gather(*(one.stop(grace_s=grace_s) for one in running))

    async def _stop_sidecars(self, *, grace_s: float | None = None) -> None:
        given_s = self._grace_s() if grace_s is None else grace_s
        for one in reversed(self._sidecars()):
            await self._stop([one], grace_s=given_s)

    async def _bury(self) -> None:
        """Report the end, remove the object, then let the address go."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        while not self._vanished:
            try:
                await self._tell()
                await self._node.rest.delete(self._path, options)
                break
            except (NotFound, Conflict):
                break
            except RetryLater as later:
                await asyncio.sleep(later.after_s)
        if self._sandbox.ip:
            self._sandbox.close()

    def _kill(self) -> None:
        for one in (*self._init, *self._main):
            one.kill()

    # The status

    async def _tell_changes(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SETTLE_S)
            self._dirty.clear()
            try:
                await self._tell()
            except RetryLater as later:
                self._dirty.set()
                await asyncio.sleep(later.after_s)
            except (NotFound, Conflict):
                log.info("pod_is_gone", pod=self._path)
            except Refused as error:
                log.warning("status_refused", pod=self._path, why=str(error))

    async def _tell(self) -> None:
        if self._sent.get("phase") in ("Succeeded", "Failed") and not self._runs:
            return  # it had ended before this kubelet knew it
        told = status(
            self._life(), pod=self.object, before=self._sent.get("conditions", ()), now=now()
        )
        changed = difference(self._sent, told)
        if changed:
            patch = {"metadata": {"uid": self.uid}, "status": changed}
            await self._node.rest.patch(f"{self._path}/status", patch, kind=STRATEGIC)
            self._sent = told

    def _compare(self) -> None:
        """Send all again if what the API shows is still not what was sent."""
        if not same_news(self.object.get("status", {}), self._sent):
            self._sent = {"conditions": [], "phase": ""}
            self._dirty.set()

    def _life(self) -> Life:
        return Life(
            ip=self._sandbox.ip,
            host_ip=self._node.ip,
            began=self._began,
            init=self._init,
            main=self._main,
            initialized=self._initialized,
            ending=self._ending,
        )

    # What it is made of

    def _make(self, field: str) -> list[Container]:
        known = {
            one["name"]: one
            for key in ("containerStatuses", "initContainerStatuses")
            for one in self._sent.get(key, ())
        }
        runtime = Runtime(
            address=lambda: self._sandbox.ip,
            start=self._sandbox.start,
            inside=self._sandbox.inside,
            changed=self._dirty.set,
            backoff_s=self._node.backoff_s,
            grace_s=float(self.object["spec"].get("terminationGracePeriodSeconds", 30)),
        )
        made = []
        for spec in self.object["spec"].get(field, ()):
            policy = self._policy(spec, init=field == "initContainers")
            before = known.get(spec["name"], {})
            restarts = before.get("restartCount", 0) + ("running" in before.get("state", {}))
            made.append(Container(spec, runtime, policy=policy, restarts=restarts))
        return made

    def _policy(self, spec: Object, *, init: bool) -> str:
        policy: str = self.object["spec"].get("restartPolicy", "Always")
        if not init or "restartPolicy" in spec:
            return str(spec.get("restartPolicy", policy))
        return "Never" if policy == "Never" else "OnFailure"

    def _sidecars(self) -> list[Container]:
        return [one for one in self._init if one.policy == "Always"]

    def _grace_s(self) -> float:
        meta, spec = self.object["metadata"], self.object["spec"]
        default = spec.get("terminationGracePeriodSeconds", 30)
        return float(meta.get("deletionGracePeriodSeconds", default))

    def _say_waiting(self, reason: str, message: str) -> None:
        told = waiting(reason, message)
        for one in self._main:
            if one.state != told:
                one.state = told
                self._dirty.set()
