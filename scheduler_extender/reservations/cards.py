# SPDX-License-Identifier: Apache-2.0
"""Which cards of mixed nodes are ours: those that a reservation pod holds. Pure.

On a mixed node the device plugin gives cards to other pods. A reservation is a pod of our own that
takes one from it, and tells which. While it runs, the kubelet gives that card to nobody else. So a
card counts from the moment that its reservation has told it until that ends, or until we decide to
end it: first the card is out of use, then nobody is on it, and only then the pod is deleted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from scheduler_extender.core.annotations import PodSeen, Reservation


@dataclass(frozen=True, slots=True)
class Reserved:
    """One reservation pod, and what it says."""

    uid: str
    name: str
    told: Reservation

    @property
    def node(self) -> str:
        return self.told.node


class Reservations:
    """Those in `namespace`, which is ours alone: elsewhere anybody could make one."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._on: dict[str, dict[str, Reserved]] = {}  # by node and UID
        self._node: dict[str, str] = {}  # by UID
        self._leaving: set[str] = set()  # UIDs
        self.awaited_by: frozenset[str] = frozenset()  # UIDs of pods that cards are reserved for

    def __iter__(self) -> Iterator[Reserved]:
        return iter([one for here in self._on.values() for one in here.values()])

    @property
    def uids(self) -> frozenset[str]:
        return frozenset(self._node)

    def on(self, node: str) -> tuple[Reserved, ...]:
        return tuple(self._on.get(node, {}).values())

    def seen(self, pod: PodSeen) -> str | None:
        """The node of which something changed; None: nothing did."""
        told = pod.reservation
        if told is None or pod.namespace != self._namespace or pod.ended:
            return None
        one = Reserved(pod.uid, pod.name, told)
        here = self._on.setdefault(told.node, {})
        if here.get(pod.uid) == one:
            return None
        here[pod.uid] = one
        self._node[pod.uid] = told.node
        return told.node

    def gone(self, uid: str) -> str | None:
        """The node that it was on; None: it was no reservation."""
        node = self._node.pop(uid, None)
        if node is not None:
            del self._on[node][uid]
            self._leaving.discard(uid)
        return node

    def leave(self, uid: str) -> None:
        """Its card goes out of use, for good: it is about to be deleted."""
        self._leaving.add(uid)

    def leaving(self, uid: str) -> bool:
        return uid in self._leaving

    def held(self, node: str) -> frozenset[str]:
        """UUIDs that no other pod can have."""
        return frozenset(one.told.uuid for one in self.on(node) if one.told.holds) - {""}

    def usable(self, node: str) -> frozenset[str]:
        """UUIDs that may be given to pods."""
        staying = (one for one in self.on(node) if one.uid not in self._leaving)
        return frozenset(one.told.uuid for one in staying if one.told.holds) - {""}
