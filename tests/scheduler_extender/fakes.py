# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the part of the API server that binds pods, and a clock that tests turn.

It has the real one's preconditions: a Binding is refused where the UID differs, the pod is gone,
being deleted or bound already; else node and annotations are written in one. What a client does not
hear of may be done, not done, or done a little later.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from scheduler_extender.core.annotations import PodSeen, demand_of, pod_seen
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.errors import NotFound, Refused, Unreachable
from scheduler_extender.ports import Binding, PodRead, Watched
from scheduler_extender.preemption.preempting import stamp
from scheduler_extender.waiting import Waiting

Raw = dict[str, Any]

GRACE_S = 30.0  # a pod's own time to end


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def now_s(self) -> float:
        return self.s


class Fate(Enum):
    """What becomes of one Binding request."""

    ANSWERED = "answered"
    REPLY_LOST = "done, and the reply is lost"
    REQUEST_LOST = "never arrives"
    LATE = "is given up by the client, and done later"
    BUSY = "is refused before anything is looked at"


@dataclass(slots=True)
class Late:
    at_s: float
    binding: Binding


class FakeCluster:
    """Pods by namespace and name, as raw objects, and the history that watches follow."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.pods: dict[tuple[str, str], Raw] = {}
        self.history: list[tuple[str, Raw]] = []  # DELETED or MODIFIED, and the pod then
        self.late: list[Late] = []
        self.bound = 0

    def create(self, name: str, *, uid: str, annotations: dict[str, str], priority: int = 0) -> Raw:
        pod = a_pod(name, uid=uid, annotations=annotations, priority=priority)
        return self._write(pod)

    def delete(self, name: str) -> None:
        pod = self.pods.pop(("ns", name))
        self.history.append(("DELETED", pod))

    def end(self, name: str) -> None:
        self._write({**self.pods["ns", name], "status": {"phase": "Succeeded"}})

    def leave(self, name: str) -> None:
        """Its deletion begins."""
        pod = self.pods["ns", name]
        leaving = stamp(self.clock.s + GRACE_S)
        self._write({**pod, "metadata": {"deletionTimestamp": leaving, **pod["metadata"]}})

    def write_status(self, name: str, **fields: Any) -> None:
        pod = self.pods["ns", name]
        self._write({**pod, "status": {**pod["status"], **fields}})

    def bind(self, binding: Binding) -> None:
        """Raises `Refused` as the API server would."""
        pod = self.pods.get((binding.namespace, binding.pod))
        if pod is None:
            raise Refused(f"no pod {binding.pod} (404)")
        if "deletionTimestamp" in pod["metadata"]:
            raise Refused(f"{binding.pod} is being deleted (409)")
        if pod["metadata"]["uid"] != binding.uid:
            raise Refused(f"{binding.pod} has another UID (409)")
        if pod["spec"].get("nodeName"):
            raise Refused(f"{binding.pod} is bound already (409)")
        meta = pod["metadata"]
        written = {**meta, "annotations": {**meta["annotations"], **binding.annotations}}
        self.bound += 1
        self._write({**pod, "metadata": written, "spec": {**pod["spec"], "nodeName": binding.node}})

    def land_late(self) -> None:
        """Do what is due of the requests that arrive late."""
        due = [late for late in self.late if late.at_s <= self.clock.s]
        self.late = [late for late in self.late if late.at_s > self.clock.s]
        for late in due:
            try:
                self.bind(late.binding)
            except Refused:
                continue

    def listed(self) -> list[Raw]:
        """All that a list would hold now."""
        return list(self.pods.values())

    def running(self) -> list[Raw]:
        """Pods that have what their annotations say."""
        return [
            pod
            for pod in self.pods.values()
            if pod["spec"].get("nodeName") and pod["status"]["phase"] != "Succeeded"
        ]

    def _write(self, pod: Raw) -> Raw:
        meta = pod["metadata"]
        self.pods[meta["namespace"], meta["name"]] = pod
        self.history.append(("MODIFIED", pod))
        return pod


class FakeBinder:
    """One process's way to the cluster. `fate` decides; while `gated`, requests wait for `go`."""

    def __init__(
        self,
        cluster: FakeCluster,
        *,
        fate: Callable[[], Fate] = lambda: Fate.ANSWERED,
        delay_s: Callable[[], float] = lambda: 1.0,
        gated: Callable[[], bool] = lambda: False,
    ) -> None:
        self.cluster = cluster
        self.posts: list[Binding] = []
        self._fate = fate
        self._delay_s = delay_s
        self._gated = gated
        self._waiting: list[asyncio.Future[None]] = []
        self._dead = False

    async def bind(self, binding: Binding) -> None:
        self._live()
        self.posts.append(binding)
        fate = self._fate()
        await self._gate()
        if fate is Fate.REQUEST_LOST:
            raise Unreachable("the request was lost", after_s=0.0)
        if fate is Fate.LATE:
            at_s = self.cluster.clock.s + self._delay_s()
            self.cluster.late.append(Late(at_s, binding))
            raise Unreachable("no answer in time", after_s=0.0)
        if fate is Fate.BUSY:
            raise Refused("the server is busy (429)")
        done: Refused | None = None
        try:
            self.cluster.bind(binding)
        except Refused as refused:
            done = refused
        await self._gate()
        if fate is Fate.REPLY_LOST:
            raise Unreachable("the reply was lost", after_s=0.0)
        if done is not None:
            raise done

    async def read(self, namespace: str, name: str) -> PodRead | None:
        self._live()
        pod = self.cluster.pods.get((namespace, name))
        await self._gate()
        return None if pod is None else PodRead(pod_seen(pod), demand_of(pod))

    def go(self, index: int = 0) -> None:
        if self._waiting:
            waiting = self._waiting.pop(index % len(self._waiting))
            if not waiting.done():
                waiting.set_result(None)

    def die(self) -> None:
        """The process ends: whoever waits for an answer never gets it, and nobody asks any more."""
        self._dead = True
        for waiting in self._waiting:
            waiting.cancel()
        self._waiting.clear()

    def _live(self) -> None:
        if self._dead:
            raise asyncio.CancelledError

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def _gate(self) -> None:
        if self._gated():
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting


class FakeEvictor:
    """Evicts whom no budget protects; `fate` decides what becomes of a request."""

    def __init__(
        self, cluster: FakeCluster, *, fate: Callable[[], Fate] = lambda: Fate.ANSWERED
    ) -> None:
        self.cluster = cluster
        self.protected: set[str] = set()
        self.evicted: list[str] = []
        self.pairs: list[tuple[Raw, Waiting]] = []  # victim and preemptor
        self.nominated: dict[str, str] = {}  # by name: the node
        self.refuses: Callable[[], bool] = lambda: False  # also whom no budget protects
        self._fate = fate

    async def evict(self, victim: PodSeen, *, dry_run: bool = False) -> None:
        pod = self._found(victim)
        if victim.name in self.protected or (not dry_run and self.refuses()):
            raise Refused(f"{victim.name} is protected by its budget (429)")
        fate = Fate.ANSWERED if dry_run else self._fate()
        if fate is Fate.BUSY:
            raise Refused("the server is busy (429)")
        if fate in (Fate.REQUEST_LOST, Fate.LATE):
            raise Unreachable("no answer in time", after_s=0.0)
        if dry_run:
            return
        self.evicted.append(victim.name)
        if "deletionTimestamp" not in pod["metadata"]:
            self.cluster.leave(victim.name)
        if fate is Fate.REPLY_LOST:
            raise Unreachable("the reply was lost", after_s=0.0)

    async def tell_why(self, victim: PodSeen, preemptor: Waiting) -> None:
        self.pairs.append((self._found(victim), preemptor))

    async def nominate(self, pod: Waiting, node: str) -> None:
        self._found(pod)
        self.nominated[pod.name] = node
        self.cluster.write_status(pod.name, nominatedNodeName=node)

    def _found(self, asked: PodSeen | Waiting) -> Raw:
        pod = self.cluster.pods.get((asked.namespace, asked.name))
        if pod is None or pod["metadata"]["uid"] != asked.uid:
            raise NotFound(f"no pod {asked.name} of this UID (404)")
        return pod


class FakeRetries:
    """`down`: the API server does not answer."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.down = False

    async def retry(self, pod: Waiting) -> None:
        if self.down:
            raise Unreachable("no answer", after_s=0.0)
        self.names.append(pod.name)


class FakeReporter:
    """What was told, in a line each."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def warn(self, *, node: NodeSeen, reason: str, message: str) -> None:
        self.told.append(f"{node.name}: {message}")

    def tell_pod(self, pod: PodSeen, *, reason: str, message: str) -> None:
        self.told.append(f"{pod.name}: {message}")

    def preempted(self, victim: PodSeen, *, by: Waiting, node: str) -> None:
        self.told.append(f"{victim.name} made room on {node} for {by.name}")

    def preempting(self, pod: Waiting, *, node: str, victims: Sequence[PodSeen]) -> None:
        self.told.append(f"{pod.name} gets room on {node}")


class FakeLease:
    def __init__(self) -> None:
        self.leading = True


class FakeWatch:
    """Plays a cluster's history to `watched`, as far as a test lets it."""

    def __init__(self, cluster: FakeCluster, watched: Watched) -> None:
        self._cluster = cluster
        self._watched = watched
        self._next = 0

    def list_all(self, *, began_s: float) -> None:
        self.finish_list(self.begin_list(), began_s=began_s)

    def begin_list(self) -> list[Raw]:
        """What a list will hold that is taken now; the watch goes on from here."""
        self._next = len(self._cluster.history)
        return self._cluster.listed()

    def finish_list(self, pods: list[Raw], *, began_s: float) -> None:
        for pod in pods:
            self._watched.pod_seen(pod_seen(pod))
        self._watched.pods_listed({pod["metadata"]["uid"] for pod in pods}, began_s=began_s)

    def deliver(self, most: int = 10**9) -> None:
        for kind, pod in self._cluster.history[self._next : self._next + most]:
            self._next += 1
            if kind == "DELETED":
                self._watched.pod_gone(pod["metadata"]["uid"])
            else:
                self._watched.pod_seen(pod_seen(pod))


def a_pod(
    name: str,
    *,
    uid: str = "",
    annotations: dict[str, str] | None = None,
    node: str = "",
    priority: int = 0,
    cpu: str = "1",
) -> Raw:
    container = {"name": "main", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}
    spec = {"containers": [container], "priority": priority}
    if node:
        spec["nodeName"] = node
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid or f"uid-{name}",
            "annotations": annotations or {},
        },
        "spec": spec,
        "status": {"phase": "Pending"},
    }
