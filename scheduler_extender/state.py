# SPDX-License-Identifier: Apache-2.0
"""What is known of the cluster: nodes, pods, who has which card. No I/O; driven by what is told.

Annotations of bound pods are the truth. A hold is ours alone, and stands until the API server's
word on it is known: its answer, the watch, or a reading after the deadline. What contradicts the
rest is counted as far as it can be, its cards are cordoned, and it is told; nothing is dropped.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.cache import ScoreCache
from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.fit import Refusal, why_not
from scheduler_extender.core.gpus import Fleet
from scheduler_extender.core.ledger import Conflict, Entry, Fact, Ledger, Stage
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.core.typical import Arrivals, Typical
from scheduler_extender.core.verdicts import VerdictCache
from scheduler_extender.preemption.promises import Promises
from scheduler_extender.reservations.cards import Reservations
from scheduler_extender.waiting import WaitingPods
from scheduler_extender.wire import BindAsk

# Beyond what a Binding may take to be answered, by far; see `binding.BIND_S`.
HOLD_S: Final = 60.0
MOST_GONE: Final = 10_000  # UIDs that are remembered a while

PROMISED: Final = Refusal("GPUs kept for a pod of no less priority", permanent=False)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Cards of a node that cannot be trusted: two accounts of them differ."""

    node: str
    uuids: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """A pod with a hold or a grant that the watch has not shown on its node yet."""

    uid: str
    namespace: str
    name: str
    since_s: float


@dataclass(frozen=True, slots=True)
class _Charge:
    node: str
    cpu_milli: int
    ram_mib: int


class ClusterState:
    """Only this class writes the fleet and the ledger. Times are seconds on the caller's clock.

    `namespace`: ours, where pods that reserve cards of mixed nodes are believed.
    """

    def __init__(self, namespace: str = "") -> None:
        self.fleet = Fleet()
        self.ledger = Ledger(self.fleet)
        self.arrivals = Arrivals()
        self.scores = ScoreCache(self.fleet, Typical((), ()))
        self.verdicts = VerdictCache(self.fleet)
        self.waiting = WaitingPods(self.fleet)
        self.reservations = Reservations(namespace)
        self.promises = Promises(self.ledger, going=self.going)
        # Pods that have to be gone between these times count as going: one that had to be long ago
        # may stay for ever, and one that may take longer is not waited for.
        self.going_between = "", "9"
        self.nodes: dict[str, NodeSeen] = {}
        self.pods: dict[str, PodSeen] = {}  # by UID: those that the watch shows on a node
        self.unplaced: dict[str, PodSeen] = {}  # by UID: unschedulable, by kube-scheduler's word
        self.placeholders: dict[str, PodSeen] = {}  # by UID
        self.nodes_synced = False
        self.pods_synced = False
        self._charges: dict[str, _Charge] = {}  # by UID
        self._used: dict[str, list[int]] = {}  # by node: CPU in milli, memory in MiB
        self._unseen: dict[str, Unseen] = {}  # by UID: entries that the watch has not shown
        self._tampered: dict[str, Doubt] = {}  # by UID
        self._on: dict[str, set[str]] = {}  # by node: UIDs of `pods`
        self._gone: OrderedDict[str, None] = OrderedDict()  # UIDs of the last that went
        self._leaving: dict[str, str] = {}  # by UID of those that are being deleted: the node
        self._doubts: dict[str, tuple[Doubt, ...]] = {}  # by node
        self._cordoned: dict[str, frozenset[str]] = {}  # by node: UUIDs in doubt

    @property
    def synced(self) -> bool:
        return self.nodes_synced and self.pods_synced

    # What the watch tells

    def node_seen(self, node: NodeSeen) -> None:
        """A node with a report has a row; one whose report cannot be read keeps its last one."""
        known = self.nodes.get(node.name)
        if node.unread and known is not None:
            node = replace(node, report=known.report)
        self.nodes[node.name] = node
        if known is not None and known.report == node.report:
            return
        if node.report is None:
            if node.name in self.fleet.row_of:
                self.ledger.remove_node(node.name)
            return
        self.ledger.set_node(node.report.gpus)
        self._cordoned.pop(node.name, None)
        self._room(node.name)
        self._mark(node.name)
        self.audit(node.name)

    def node_gone(self, name: str) -> None:
        if self.nodes.pop(name, None) is not None and name in self.fleet.row_of:
            self.ledger.remove_node(name)
            self._cordoned.pop(name, None)
            self._doubts.pop(name, None)

    def nodes_listed(self, names: set[str]) -> None:
        for name in self.nodes.keys() - names:
            self.node_gone(name)
        self.nodes_synced = True

    def pod_seen(self, pod: PodSeen) -> None:
        """A pod that is pending says nothing of its hold: its Binding may be on the way.

        One whose end was heard of or read does not come back: that is the watch, lagging behind.
        """
        if self.was_gone(pod.uid):
            return
        if pod.node:
            self._unseen.pop(pod.uid, None)
            self.waiting.over(pod.uid)
            self.promises.over(pod.uid)
        elif pod.leaving:
            self.waiting.over(pod.uid)
            self.promises.over(pod.uid)
        elif not pod.ended:
            self.promises.seen(pod)
        _note(self.unplaced, pod, pod.unplaced is not None and not pod.leaving)
        _note(self.placeholders, pod, bool(pod.placeholder) and not pod.ended)
        self._pod(pod)
        self._reserved(self.reservations.seen(pod))

    def pod_read(self, pod: PodSeen, *, now_s: float) -> None:
        """A pod as it was read by itself: the watch will show it yet, or has shown its end already;
        that is found out by another reading.
        """
        if self.was_gone(pod.uid):
            self._forget(pod.uid)  # it may have been held since: whoever asked for it lags behind
            return
        shown = pod.uid in self.pods and pod.uid not in self._unseen
        if pod.node and not shown:
            self._unseen[pod.uid] = Unseen(pod.uid, pod.namespace, pod.name, now_s)
        self._pod(pod)

    def pod_gone(self, uid: str) -> None:
        """Deleted or ended: no Binding of it can come any more, and its cards are free."""
        self._gone[uid] = None
        if len(self._gone) > MOST_GONE:
            self._gone.popitem(last=False)
        self._forget(uid)

    def was_gone(self, uid: str) -> bool:
        """Whether it was deleted or ended, of late; kube-scheduler may not have heard of it yet."""
        return uid in self._gone

    def pods_listed(self, uids: set[str], *, began_s: float) -> None:
        """What was bound or held after the list began may be missing in it."""
        noted = self.pods.keys() | self.unplaced.keys() | self.placeholders.keys()
        noted |= self.reservations.uids
        for uid in noted - uids - self._unseen.keys():
            self._forget(uid)
        for unseen in tuple(self._unseen.values()):
            if unseen.uid not in uids and unseen.since_s < began_s:
                self._forget(unseen.uid)
        for waiting in self.waiting:
            if waiting.uid not in uids and waiting.asked_s < began_s:
                self._forget(waiting.uid)
        for promise in self.promises:
            if promise.uid not in uids:
                self.promises.over(promise.uid)
        if not self.pods_synced:
            self.pods_synced = True
            self._expect()
            for node in self.mixed():
                self._reserved(node)

    # What bind does

    def hold(
        self, asked: BindAsk, demand: Demand, *, now_s: float, priority: int = 0
    ) -> Entry | Refusal:
        """Fit anew and take. A pod that has an entry keeps it, on whatever node that is."""
        uid, node = asked.uid, asked.node
        known = self.ledger.entry(uid)
        if known is not None:
            return known
        row = self.fleet.row_of.get(node)
        if row is None:
            return Refusal(f"node {node} reports no GPUs", permanent=True)
        cards = choose_cards(self.fleet, demand, row)
        if cards is None:
            reason = why_not(self.fleet, demand, row)
            return reason or Refusal("no cards to choose", permanent=False)
        if self.promises.spoiled(node, demand, uid=uid, priority=priority):
            return PROMISED
        grant = self.fleet.grant(row, cards=cards, demand=demand)
        # CPU and memory are counted by node, for pods without GPUs use them as well.
        entry = self.ledger.hold(
            uid, replace(grant, cpu_milli=0, ram_mib=0), deadline_s=now_s + HOLD_S
        )
        if isinstance(entry, Entry):
            self._unseen[uid] = Unseen(uid, asked.namespace, asked.pod, now_s)
            self._charge(uid, _Charge(node, demand.cpu_milli, demand.ram_mib))
        return entry

    def confirm(self, uid: str) -> None:
        """The API server said that the Binding was made."""
        entry = self.held(uid)
        if entry is not None:
            self.ledger.bound(entry.fact)

    def release_hold(self, uid: str) -> None:
        """Its Binding was not made, and cannot be made any more."""
        if self.held(uid) is not None:
            self._release(uid)

    def held(self, uid: str) -> Entry | None:
        """The hold of a pod whose Binding is on the way or not answered."""
        entry = self.ledger.entry(uid)
        return entry if entry is not None and entry.stage is Stage.HELD else None

    def overdue(self, now_s: float) -> tuple[Unseen, ...]:
        """Entries that the watch should have shown by now: their pods have to be read."""
        return tuple(one for one in self._unseen.values() if one.since_s + HOLD_S <= now_s)

    def on(self, node: str) -> tuple[PodSeen, ...]:
        """The pods that the watch shows on a node."""
        return tuple(self.pods[uid] for uid in self._on.get(node, ()))

    def going(self, node: str, chosen: frozenset[str] = frozenset()) -> set[str]:
        """UIDs of a node's pods that are being deleted and will be gone soon; so will `chosen`.

        However long they take, those that may have to go for a pod that others nominated are waited
        for: a former process may have evicted them.
        """
        overdue, remote = self.going_between
        nominated = self.promises.nominated(node)
        return {
            pod.uid
            for pod in self.on(node)
            if (overdue < pod.leaving and (pod.leaving < remote or pod.priority < nominated))
            or (pod.uid in chosen and not "" < pod.leaving <= overdue)
        }

    def leaving_on(self) -> set[str]:
        """Nodes with pods that are being deleted."""
        return set(self._leaving.values())

    # What reservations of mixed nodes do

    def mixed(self) -> tuple[str, ...]:
        """The nodes of which only reserved cards are ours."""
        return tuple(filter(self._is_mixed, self.nodes))

    def taken(self, node: str) -> frozenset[str]:
        """UUIDs of the cards that pods have, by annotations or by our count, or will have if their
        Binding is made.
        """
        found: set[str] = set()
        for uid in (*self._on.get(node, ()), *self._unseen):
            entry, pod = self.ledger.entry(uid), self.pods.get(uid)
            if entry is not None and entry.fact.node == node:
                found.update(entry.fact.uuids)
            if pod is not None and pod.node == node and pod.granted is not None:
                found.update(pod.granted.uuids)
        return frozenset(found)

    def lost(self, node: str) -> frozenset[str]:
        """UUIDs of a mixed node's cards that pods have, and no reservation holds."""
        if not self._is_mixed(node):
            return frozenset()
        return self.taken(node) - self.reservations.held(node)

    def leave(self, uid: str) -> bool:
        """Put a reservation's card out of use, so that the pod can be deleted; not while anybody
        has the card, or a Binding to it is on the way, or room on the node is kept for a pod.
        """
        for one in self.reservations:
            kept = one.told.uuid and any(made.node == one.node for made in self.promises)
            if one.uid == uid and not kept and one.told.uuid not in self.taken(one.node):
                self.reservations.leave(uid)
                self._reserved(one.node)
                return True
        return False

    # What filter does

    def arrived(self, demand: Demand) -> None:
        """A pod that wants this was asked about for the first time."""
        self.arrivals.observe([demand])
        self._expect()

    # What upkeep does

    def doubts(self) -> tuple[Doubt, ...]:
        return tuple(doubt for doubts in self._doubts.values() for doubt in doubts)

    def audit(self, node: str) -> tuple[Doubt, ...]:
        """Count a node's cards anew from annotations and holds, and compare with what we go by.

        Cards in doubt are cordoned until an audit finds nothing against them.
        """
        found = [self._conflict(c.uid, c.uuids, c.why) for c in self._conflicts_on(node)]
        found += [doubt for doubt in self._tampered.values() if doubt.node == node]
        found += self._unreserved(node)
        if not found:  # else counts differ, and depend on the order of things
            found = [*self._difference(node)]
        self._doubts.pop(node, None)
        if found:
            self._doubts[node] = tuple(found)
        self._set_cordon(node, frozenset(uuid for doubt in found for uuid in doubt.uuids))
        return tuple(found)

    def _conflicts_on(self, node: str) -> list[Conflict]:
        return [found for found in self.ledger.conflicts() if found.node == node]

    def _difference(self, node: str) -> Iterable[Doubt]:
        row = self.fleet.row_of.get(node)
        if row is None:
            return
        cards = self.fleet.nodes[node].cards
        free = {card.uuid: [card.memory_mib, WHOLE_MILLI] for card in cards}
        for fact in self._facts(node):
            for uuid in fact.uuids:
                free[uuid][0] -= fact.memory_mib
                free[uuid][1] -= fact.milli
        counted = zip(self.fleet.memory_free[row], self.fleet.milli_free[row], strict=True)
        differing = tuple(
            card.uuid
            for card, (memory, milli) in zip(cards, counted, strict=False)
            if free[card.uuid] != [memory, milli]
        )
        if differing:
            yield Doubt(node, differing, "the annotations of its pods and our count differ")

    def _facts(self, node: str) -> Iterable[Fact]:
        for uid in self._on.get(node, ()):
            if self.pods[uid].granted is not None:
                yield _fact(self.pods[uid])
        for uid in self._unseen.keys() - self.pods.keys():
            entry = self.ledger.entry(uid)
            if entry is not None and entry.fact.node == node:
                yield entry.fact

    # What they share

    def _expect(self) -> None:
        """Score by what has come of late, once that is news: it costs all scores that are kept."""
        news = self.arrivals.news()
        if news is not None:
            self.scores.expect(news)

    def _pod(self, pod: PodSeen) -> None:
        if pod.ended:
            self.pod_gone(pod.uid)
        elif pod.node and self.pods.get(pod.uid) != pod:
            if pod.wish is not None and not self.pods_synced:
                self.arrivals.observe([pod.wish])
            if pod.leaving:
                self._leaving[pod.uid] = pod.node
                self._room(pod.node)
            self.pods[pod.uid] = pod
            self._on.setdefault(pod.node, set()).add(pod.uid)
            self._charge(pod.uid, _Charge(pod.node, pod.cpu_milli, pod.ram_mib))
            self._bound(pod)

    def _bound(self, pod: PodSeen) -> None:
        """Let the pod's annotations count, unless they were changed after the pod had its cards."""
        entry = self.ledger.entry(pod.uid)
        fact = _fact(pod) if pod.granted is not None else None
        name = f"pod {pod.namespace}/{pod.name}"
        if entry is not None and fact is not None:
            # Its mesh is no claim on a card, so whoever edits that does nobody harm.
            fact = replace(fact, mesh=entry.fact.mesh)
        if entry is not None and entry.stage is Stage.BOUND and entry.fact != fact:
            why = f"{name}: its grant was changed after it was bound"
            self._tamper(pod.uid, Doubt(entry.fact.node, entry.fact.uuids, why))
        elif pod.unread:
            why = f"{name}: {pod.unread}"
            self._tamper(pod.uid, Doubt(pod.node, self._uuids(pod.node), why))
        elif fact is not None:
            self._tampered.pop(pod.uid, None)
            conflict = self.ledger.bound(fact)
            if conflict is not None:
                self._doubt(self._conflict(conflict.uid, conflict.uuids, conflict.why))
        elif entry is not None:
            self.ledger.release(pod.uid)  # somebody else bound it, so our Binding cannot come

    def _forget(self, uid: str) -> None:
        pod = self.pods.pop(uid, None)
        if pod is not None:
            self._on[pod.node].discard(uid)
        for noted in (self._leaving, self.unplaced, self.placeholders):
            noted.pop(uid, None)
        self.waiting.over(uid)
        self.promises.over(uid)
        self._release(uid)
        self._reserved(self.reservations.gone(uid))

    def _tamper(self, uid: str, doubt: Doubt) -> None:
        self._tampered[uid] = doubt
        self._doubt(doubt)

    def _conflict(self, uid: str, uuids: tuple[str, ...], why: str) -> Doubt:
        pod = self.pods.get(uid)
        name = f"{pod.namespace}/{pod.name}" if pod else uid
        entry = self.ledger.entry(uid)
        return Doubt(entry.fact.node if entry else "", uuids, f"pod {name}: {why}")

    def _doubt(self, doubt: Doubt) -> None:
        """Cordon at once; only an audit lifts it."""
        self._doubts[doubt.node] = (*self._doubts.get(doubt.node, ()), doubt)
        self._set_cordon(doubt.node, self._cordoned.get(doubt.node, frozenset()).union(doubt.uuids))

    def _release(self, uid: str) -> None:
        self._unseen.pop(uid, None)
        self._tampered.pop(uid, None)
        self._charge(uid, None)
        self.ledger.release(uid)

    def _charge(self, uid: str, charge: _Charge | None) -> None:
        """Count a pod's CPU and memory on its node, in place of what was counted for it before."""
        old = self._charges.pop(uid, None)
        if old == charge:
            if charge is not None:
                self._charges[uid] = charge
            return
        if charge is not None:
            self._charges[uid] = charge
        for one, sign in ((old, -1), (charge, 1)):
            if one is not None:
                used = self._used.setdefault(one.node, [0, 0])
                used[0] += sign * one.cpu_milli
                used[1] += sign * one.ram_mib
                self._room(one.node)

    def _room(self, node: str) -> None:
        row = self.fleet.row_of.get(node)
        if row is not None:
            fleet, (cpu, ram) = self.fleet, self._used.get(node, (0, 0))
            fleet.cpu_free[row] = max(fleet.cpu_total[row] - cpu, 0)
            fleet.ram_free[row] = max(fleet.ram_total[row] - ram, 0)
            fleet.version[row] += 1

    def _set_cordon(self, node: str, uuids: frozenset[str]) -> None:
        if uuids == self._cordoned.get(node, frozenset()):
            return
        self._cordoned.pop(node, None)
        if uuids:
            self._cordoned[node] = uuids
        self._mark(node)

    def _mark(self, node: str) -> None:
        """Let a node's cards be used or not, as what is known of them says now."""
        described = self.fleet.nodes.get(node)
        cordoned = self._cordoned.get(node, frozenset())
        ours = self.reservations.usable(node) if self._is_mixed(node) else None
        for index, card in enumerate(described.cards if described else ()):
            usable = card.healthy and card.uuid not in cordoned
            usable &= ours is None or card.uuid in ours
            if usable != bool(self.fleet.usable[self.fleet.row_of[node], index]):
                self.fleet.set_usable(self.fleet.row_of[node], card=index, usable=usable)

    def _reserved(self, node: str | None) -> None:
        """The reservations of a node are others now."""
        if node is None or not self._is_mixed(node):
            return
        self._mark(node)
        for doubt in self._unreserved(node) if self.pods_synced else ():
            self._doubt(doubt)

    def _unreserved(self, node: str) -> Sequence[Doubt]:
        """A card that has lost its reservation may have been given to anybody by the kubelet."""
        lost = tuple(sorted(self.lost(node)))
        why = "pods have a card of a mixed node that no reservation holds"
        return (Doubt(node, lost, why),) if lost else ()

    def _is_mixed(self, node: str) -> bool:
        known = self.nodes.get(node)
        return known is not None and known.report is not None and known.report.mixed

    @property
    def cordoned(self) -> Mapping[str, frozenset[str]]:
        return self._cordoned

    def _uuids(self, node: str) -> tuple[str, ...]:
        known = self.fleet.nodes.get(node)
        return tuple(card.uuid for card in known.cards) if known else ()


def _note(pods: dict[str, PodSeen], pod: PodSeen, concerned: bool) -> None:
    if concerned:
        pods[pod.uid] = pod
    else:
        pods.pop(pod.uid, None)


def _fact(pod: PodSeen) -> Fact:
    if pod.granted is None:
        raise ValueError(f"pod {pod.namespace}/{pod.name} was granted nothing")
    granted = pod.granted
    return Fact(
        pod.uid, pod.node, granted.uuids, granted.memory_mib, granted.milli, mesh=granted.mesh
    )
