# SPDX-License-Identifier: Apache-2.0
"""What the extender needs of the world, by role. `adapters/kubernetes.py` is the real one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scheduler_extender.core.annotations import PodSeen, Unclear
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.placeholders.plan import Wanted
from scheduler_extender.waiting import Waiting


@dataclass(frozen=True, slots=True)
class Binding:
    """A pod's place and its grant, to be written in one."""

    namespace: str
    pod: str
    uid: str
    node: str
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodRead:
    """A pod as it is now."""

    seen: PodSeen
    demand: Demand | Unclear


class Watched(Protocol):
    """Where `PodsAndNodes` tells what it sees, in this order: first all nodes, then all pods.

    A list that began at `began_s` is told by each of its objects and then by `…_listed`: of what
    was known before it began, no more than these are left.
    """

    def node_seen(self, node: NodeSeen) -> None: ...

    def node_gone(self, name: str) -> None: ...

    def nodes_listed(self, names: set[str]) -> None: ...

    def pod_seen(self, pod: PodSeen) -> None: ...

    def pod_gone(self, uid: str) -> None: ...

    def pods_listed(self, uids: set[str], *, began_s: float) -> None: ...


class PodsAndNodes(Protocol):
    async def follow(self, watched: Watched) -> None:
        """List and watch until cancelled; goes on by itself after any loss."""
        ...


class Binder(Protocol):
    async def bind(self, binding: Binding) -> None:
        """Bind the pod of this UID, if it is not bound.

        Raises `Refused` when nothing was changed, `Unreachable` when that is not known. What was
        not answered takes effect within `BIND_S`, or never.
        """
        ...

    async def read(self, namespace: str, name: str) -> PodRead | None:
        """The newest state, never a cached one; None where there is no such pod."""
        ...


class Retries(Protocol):
    async def retry(self, pod: Waiting) -> None:
        """Have kube-scheduler try this pod again. Raises `Refused`, `Unreachable`."""
        ...


class ReservationPods(Protocol):
    """Pods that take cards of mixed nodes from the device plugin, in a namespace of ours."""

    async def create(self, node: str, number: int) -> None:
        """Have that reservation there, now or in a moment; one that is there will do.

        Raises `Refused` where it is not made (a former one that has ended is cleared away),
        `Unreachable` where that is not known.
        """
        ...

    async def delete(self, name: str, uid: str) -> None:
        """Delete that pod and no other of its name. Raises `Refused`, `Unreachable`.

        What was not answered takes effect within `BIND_S`, or never.
        """
        ...


class Evictor(Protocol):
    """Makes room for a pod. Each raises `Refused` when nothing was changed, and `Unreachable`."""

    async def evict(self, victim: PodSeen, *, dry_run: bool = False) -> None:
        """Have this very pod end in its own time, if its disruption budgets allow it."""
        ...

    async def tell_why(self, victim: PodSeen, preemptor: Waiting) -> None:
        """Write on a pod that is leaving that a scheduler made it go."""
        ...

    async def nominate(self, pod: Waiting, node: str) -> None:
        """Have kube-scheduler keep CPU and memory of this node for the pod."""
        ...


class Placeholders(Protocol):
    """Raises `Refused`, `Unreachable`."""

    async def make(self, wanted: Wanted) -> None: ...

    async def remove(self, pod: PodSeen) -> None:
        """At once. `NotFound` where it is gone."""
        ...

    async def label(self, pod: PodSeen) -> None:
        """Mark it as one with GPUs, so that placeholders keep away from it."""
        ...


class Lease(Protocol):
    @property
    def leading(self) -> bool:
        """Whether this process may bind now; false at once after it was stopped for long."""
        ...


class Reporter(Protocol):
    """Tells people. Nobody waits for it, and nothing fails by it."""

    def warn(self, *, node: NodeSeen, reason: str, message: str) -> None: ...

    def preempted(self, victim: PodSeen, *, by: Waiting, node: str) -> None: ...

    def preempting(self, pod: Waiting, *, node: str, victims: Sequence[PodSeen]) -> None: ...
    def tell_pod(self, pod: PodSeen, *, reason: str, message: str) -> None: ...
