# SPDX-License-Identifier: Apache-2.0
"""Mixed nodes as a cluster has them: kubelets that give cards, and who asks for them.

What is here knows pods as objects alone: it is what the extender is judged by.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scheduler_extender.binding import BIND_S
from scheduler_extender.core import annotations as named
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.reservations.pod import name_of, reservation_pod
from tests.scheduler_extender.builders import OURS
from tests.scheduler_extender.fakes import Clock, FakeCluster, Fate, Raw, a_pod

TEMPLATE = {"metadata": {}, "spec": {"containers": [{"name": "hold", "image": "tidegate"}]}}
ENDED = frozenset({"Failed", "Succeeded"})


class MixedCluster(FakeCluster):
    """`cards`: by node. Pods that ask for `nvidia.com/gpu` are `others`, by namespace and name."""

    def __init__(self, clock: Clock, cards: dict[str, list[str]]) -> None:
        super().__init__(clock)
        self.cards = cards
        self.others: dict[tuple[str, str], Raw] = {}
        self.given: dict[str, str] = {}  # by UID: the card that the kubelet gave
        self.late_asks: list[tuple[float, Callable[[], None]]] = []
        self.done: Counter[str] = Counter()  # what happened to reservations
        self._uids = 0

    def listed(self) -> list[Raw]:
        alive = (pod for pod in self.others.values() if pod["status"]["phase"] not in ENDED)
        return [*super().listed(), *alive]

    def land_late(self) -> None:
        super().land_late()
        due = [ask for at_s, ask in self.late_asks if at_s <= self.clock.s]
        self.late_asks = [(at_s, ask) for at_s, ask in self.late_asks if at_s > self.clock.s]
        for ask in due:
            try:
                ask()
            except Refused:
                continue

    # What users and we ask for

    def plain(self, name: str) -> None:
        """Somebody asks for a card of the device plugin."""
        pod = a_pod(name, cpu="0")
        pod["spec"]["containers"][0]["resources"] = {"limits": {named.PLUGIN_RESOURCE: "1"}}
        self._add(pod)

    def reserve(self, node: str, number: int) -> None:
        """Raises `Refused` as the API server would, and our adapter then."""
        known = self.others.get((OURS, name_of(node, number)))
        if known is None:
            pod = reservation_pod(TEMPLATE, node=node, number=number)
            self._add({**pod, "status": {"phase": "Pending"}}, namespace=OURS)
            self.done["made"] += 1
        elif known["status"]["phase"] in ENDED:
            del self.others[OURS, name_of(node, number)]
            raise Refused("it has ended, and is cleared away")

    def ask_to_end(self, namespace: str, name: str, uid: str) -> None:
        """With its grace, if it is on a node."""
        pod = self.others.get((namespace, name))
        if pod is None:
            return
        if pod["metadata"]["uid"] != uid:
            raise Refused("another UID (409)")
        self.done["ended"] += namespace == OURS
        if not pod["spec"].get("nodeName"):
            self._remove(pod)
            return
        meta = {**pod["metadata"], "deletionTimestamp": "now"}
        self._put({**pod, "metadata": meta})

    # What the scheduler of others and kubelets do

    def waiting(self) -> list[Raw]:
        return [pod for pod in self.others.values() if not pod["spec"].get("nodeName")]

    def place(self, pod: Raw) -> None:
        """Where so many are left, by count alone."""
        wanted = pod["metadata"]["annotations"].get(named.RESERVES_ON)
        for node, cards in self.cards.items():
            if wanted in {None, node} and len(self.on(node)) < len(cards):
                self._put({**pod, "spec": {**pod["spec"], "nodeName": node}})
                return

    def on(self, node: str) -> list[Raw]:
        """Others that the node's count holds."""
        return [
            pod
            for pod in self.others.values()
            if pod["spec"].get("nodeName") == node and pod["status"]["phase"] not in ENDED
        ]

    def starting(self) -> list[Raw]:
        return [pod for node in self.cards for pod in self.on(node) if _uid(pod) not in self.given]

    def start(self, pod: Raw, choose: Callable[[list[str]], str]) -> None:
        """The kubelet gives any card that nobody of those has; of shares it knows nothing."""
        node = pod["spec"]["nodeName"]
        had = {self.given.get(_uid(other)) for other in self.on(node)}
        self.given[_uid(pod)] = choose([card for card in self.cards[node] if card not in had])
        self._put({**pod, "status": {"phase": "Running"}})

    def fail(self, pod: Raw) -> None:
        """The object stays, and leaves what the extender watches."""
        self.given.pop(_uid(pod), None)
        self.done["failed"] += pod["metadata"]["namespace"] == OURS
        failed = {**pod, "status": {"phase": "Failed"}}
        self.others[pod["metadata"]["namespace"], pod["metadata"]["name"]] = failed
        self.history.append(("DELETED", failed))

    def untold(self) -> list[Raw]:
        return [
            pod
            for pod in self.others.values()
            if _uid(pod) in self.given
            and pod["metadata"]["namespace"] == OURS
            and named.RESERVED_UUID not in pod["metadata"]["annotations"]
        ]

    def tell(self, pod: Raw) -> None:
        """The reservation's process says which card it sees."""
        notes = {**pod["metadata"]["annotations"], named.RESERVED_UUID: self.given[_uid(pod)]}
        self._put({**pod, "metadata": {**pod["metadata"], "annotations": notes}})

    def ending(self) -> list[Raw]:
        return [pod for pod in self.others.values() if "deletionTimestamp" in pod["metadata"]]

    def reap(self, pod: Raw) -> None:
        """It has ended, and the kubelet has its card back."""
        self._remove(pod)

    def settle_others(self) -> None:
        """All that schedulers, kubelets and processes have left to do."""
        for pod in self.ending():
            self.reap(pod)
        for pod in self.waiting():
            self.place(pod)
        for pod in self.starting():
            self.start(pod, min)
        for pod in self.untold():
            self.tell(pod)

    # What is to be judged

    def reservations(self) -> list[Raw]:
        return [
            pod
            for pod in self.others.values()
            if pod["metadata"]["namespace"] == OURS and pod["status"]["phase"] not in ENDED
        ]

    def held(self) -> set[str]:
        """Cards that the kubelet keeps for a reservation that nobody is ending."""
        return {
            self.given[_uid(pod)]
            for pod in self.reservations()
            if _uid(pod) in self.given and "deletionTimestamp" not in pod["metadata"]
        }

    def _add(self, pod: Raw, *, namespace: str = "ns") -> None:
        self._uids += 1
        meta = {**pod["metadata"], "namespace": namespace, "uid": f"other-{self._uids}"}
        self._put({**pod, "metadata": meta})

    def _put(self, pod: Raw) -> None:
        self.others[pod["metadata"]["namespace"], pod["metadata"]["name"]] = pod
        self.history.append(("MODIFIED", pod))

    def _remove(self, pod: Raw) -> None:
        del self.others[pod["metadata"]["namespace"], pod["metadata"]["name"]]
        self.given.pop(_uid(pod), None)
        self.history.append(("DELETED", pod))


@dataclass
class FakeReservations:
    """One process's way to make and end them. `gate` waits until a test lets a request go on."""

    cluster: MixedCluster
    fate: Callable[[], Fate] = lambda: Fate.ANSWERED
    delay_s: Callable[[], float] = lambda: 1.0
    gate: Callable[[], Any] | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def create(self, node: str, number: int) -> None:
        self.asked.append(("create", node, number))
        await self._ask(lambda: self.cluster.reserve(node, number))

    async def delete(self, name: str, uid: str) -> None:
        self.asked.append(("delete", name, uid))
        await self._ask(lambda: self.cluster.ask_to_end(OURS, name, uid))

    async def _ask(self, do: Callable[[], None]) -> None:
        fate, until_s = self.fate(), self.cluster.clock.s + BIND_S
        if self.gate is not None:
            await self.gate()
        if self.cluster.clock.s > until_s:  # it was told to take no longer
            raise Unreachable("no answer in time", after_s=0.0)
        if fate is Fate.BUSY:
            raise Refused("the server is busy (429)")
        if fate is Fate.LATE:
            at_s = min(self.cluster.clock.s + self.delay_s(), until_s)
            self.cluster.late_asks.append((at_s, do))
        if fate in {Fate.LATE, Fate.REQUEST_LOST}:
            raise Unreachable("no answer in time", after_s=0.0)
        do()
        if fate is Fate.REPLY_LOST:
            raise Unreachable("the reply was lost", after_s=0.0)


def _uid(pod: Raw) -> str:
    return str(pod["metadata"]["uid"])
