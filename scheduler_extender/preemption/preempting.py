# SPDX-License-Identifier: Apache-2.0
"""Make room for pods of high priority where GPUs alone are scarce; see `victims` for whom.

kube-scheduler names no victims there: to its own filters the pod fits. So for a pod that goes on
waiting (1) the node is chosen where evictions cost least, (2) the room there is promised to it,
(3) the API server is asked whether all victims may go, (4) they are evicted, and (5) the node is
nominated for the pod. Whoever may not go is spared for a while, and others are found. A victim
whose eviction was not answered is asked for again as long as the promise stands. Where pods went in
vain twice, nobody goes for that pod for a while.

`look` goes on while a turn waits for the API server: after each answer promises may have ended, and
pods may be others.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from math import inf
from typing import Final

import numpy as np
import structlog

from scheduler_extender.backoff import Backoff
from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits
from scheduler_extender.errors import NotFound, Refused, Unreachable
from scheduler_extender.metrics import PreemptionMetrics
from scheduler_extender.ports import Evictor, Lease, Reporter, Retries
from scheduler_extender.preemption.lower import LowerPods, as_all_will_be
from scheduler_extender.preemption.promises import KEEP_S, Promise
from scheduler_extender.preemption.victims import as_it_will_be, cost, evictable, victims_on
from scheduler_extender.state import ClusterState
from scheduler_extender.waiting import Waiting

log = structlog.get_logger(__name__)

AGAIN_S: Final = 30.0  # kube-scheduler is told so seldom to ask about a pod anew
PATIENCE_S: Final = 2.0  # kube-scheduler tries its own preemption at once
MOST_LOOKED_AT: Final = 200  # pods in one turn
MOST_AT_ONCE: Final = 5  # of them, those for whom a plan is made
MOST_NODES: Final = 16  # that are looked at closely for one pod
MOST_TRIES: Final = 5  # in one turn, when budgets spare victims
# A turn that has taken so long begins nothing more: the API server is slow to answer. Half of it is
# for evictions that were begun before.
TURN_S: Final = 10.0
# Where pods went in vain a second time (the first time may be bad luck), nobody goes for that pod
# for so long, and for twice as long each time that it happens again.
VAIN_S: Final = 60.0
MOST_VAIN_S: Final = 3600.0
# Who was asked about longer ago is asked about again first: its nodes may be others by now.
FRESH_S: Final = 30.0
# A pod that is not gone so long after it had to be may stay for ever: its node may be dead.
OVERDUE_S: Final = 30.0
# Deletions that take longer are not waited for, unless they are ours.
REMOTE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Who has to go from which node; nobody where those that are leaving make the room."""

    node: str
    victims: tuple[PodSeen, ...]


class _Word(Enum):
    """The API server's on an eviction."""

    YES = "yes"
    NO = "no"
    GONE = "there is no such pod"
    NONE = "not known"


class Preempting:
    """`epoch_s` is the clock that deadlines of deletions are told by, `now_s` that of all else.

    One turn at a time; `look` may be called at any time.
    """

    def __init__(
        self,
        state: ClusterState,
        *,
        evictor: Evictor,
        retries: Retries,
        reporter: Reporter,
        lease: Lease,
        metrics: PreemptionMetrics,
        epoch_s: Callable[[], float],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._evictor = evictor
        self._retries = retries
        self._reporter = reporter
        self._lease = lease
        self._metrics = metrics
        self._epoch_s = epoch_s
        self._now_s = now_s
        self._until_s = -inf  # when the turn has to end
        self._lower = LowerPods(state)
        self._preemptors: dict[str, Waiting] = {}  # by UID: of our own promises
        self._evicted: set[str] = set()  # UIDs of their victims
        self._costly: set[str] = set()  # UIDs of those for whom somebody went, or may have
        self._vain = Backoff(first_s=VAIN_S, most_s=MOST_VAIN_S, free=1)
        self._looked_s: dict[str, float] = {}  # by UID: when a plan was looked for
        self._asked_s: dict[str, float] = {}  # by UID: when kube-scheduler was told to ask again

    def look(self, *, now_s: float) -> None:
        """Keep promises no longer than they are of use. To be called every second or so."""
        state, epoch_s = self._state, self._epoch_s()
        state.going_between = stamp(epoch_s - OVERDUE_S), stamp(epoch_s + REMOTE_S)
        state.promises.look(now_s=now_s)
        self._lower.look(now_s=now_s)
        self._vain.look(now_s=now_s)
        for uid in [uid for uid in self._preemptors if state.promises.of(uid) is None]:
            self._ended(uid)
        victims = {v.uid for promise in state.promises for v in promise.victims}
        self._evicted &= victims

    async def turn(self, *, now_s: float) -> None:
        """After `look`. What fails is logged, and done again in a later turn."""
        self._until_s = now_s + TURN_S / 2
        for uid in tuple(self._preemptors):
            if not self._too_long:
                await self._go_on(uid)
        self._until_s = now_s + TURN_S
        if not self._lease.leading or not any(True for _ in self._waiting(now_s)):
            return
        while self._lower.count():  # noqa: ASYNC110 - it is work that is waited for here
            await asyncio.sleep(0)
        planned, hopeless = 0, set[tuple[Demand, int, tuple[str, ...]]]()
        for pod in self._due(now_s):
            kind = pod.demand, pod.priority, pod.nodes
            if self._too_long:
                return
            self._looked_s[pod.uid] = now_s
            if kind in hopeless:
                continue
            if planned == MOST_AT_ONCE:
                return
            planned += 1
            if not await self._preempt(pod, now_s=now_s):
                hopeless.add(kind)
            await asyncio.sleep(0)

    @property
    def _too_long(self) -> bool:
        return self._now_s() >= self._until_s

    def _waiting(self, now_s: float) -> Iterator[Waiting]:
        """Those that might preempt."""
        for pod in self._state.waiting:
            patient = pod.demand.cards and now_s - pod.since_s >= PATIENCE_S
            if patient and pod.may_preempt and self._waits(pod):
                yield pod

    def _waits(self, pod: Waiting) -> bool:
        """As it is known, without a promise or a hold, and with no card on its way to it."""
        state = self._state
        known = state.promises.of(pod.uid) or state.ledger.entry(pod.uid)
        if known is not None or pod.uid in state.reservations.awaited_by:
            return False
        return state.waiting.of(pod.uid) is pod

    def _due(self, now_s: float) -> list[Waiting]:
        """Whose turn it is: those that were looked at longest ago, of them the most important."""
        waiting = {pod.uid for pod in self._state.waiting}
        for times in (self._looked_s, self._asked_s):
            for uid in times.keys() - waiting:
                del times[uid]
        due = [pod for pod in self._waiting(now_s) if pod.priority > self._lower.least]
        due.sort(key=lambda pod: (self._looked_s.get(pod.uid, 0.0), -pod.priority, pod.since_s))
        return due[:MOST_LOOKED_AT]

    async def _preempt(self, pod: Waiting, *, now_s: float) -> bool:
        """Whether another pod of its kind should be looked at: something could be done."""
        for _ in range(MOST_TRIES):
            self._lower.count()
            plan = await self._plan(pod)
            if plan is None:
                return False
            spare = bool(plan.victims) and self._now_s() < self._vain.until_s(pod.uid)
            if spare or not self._waits(pod):
                return True
            if plan.victims and now_s - pod.asked_s > FRESH_S:
                await self._ask_anew(pod, now_s=now_s)
                return True
            if await self._carry_out(pod, plan) or self._too_long:
                return True
        return True

    async def _plan(self, pod: Waiting) -> Plan | None:
        """None where it has room already, no eviction would help, or too much goes on."""
        state = self._state
        known = (state.fleet.row_of.get(name) for name in pod.nodes)
        rows = np.array([row for row in known if row is not None], dtype=np.int64)
        now, soon = as_all_will_be(state, uid=pod.uid, priority=pod.priority)
        ready = rows[fits(soon, pod.demand, rows)]
        if len(ready):
            waits = not fits(now, pod.demand, ready).any()
            return Plan(state.fleet.names[ready[0]], ()) if waits else None
        found = self._lower.rows(soon, pod.demand, rows, priority=pod.priority)
        plans = []
        for node in [state.fleet.names[row] for row in found[:MOST_NODES].tolist()]:
            victims = self._victims(pod, node)
            if victims:
                plans.append(Plan(node, victims))
            await asyncio.sleep(0)  # kube-scheduler's calls go first
        best = max(plans, key=_merit, default=None)
        if best is None or self._victims(pod, best.node) != best.victims:
            return None
        return best

    def _victims(self, pod: Waiting, node: str) -> tuple[PodSeen, ...] | None:
        alone = as_it_will_be(self._state, node, uid=pod.uid, priority=pod.priority)
        could = evictable(self._state, node, priority=pod.priority, spared=self._lower.spared)
        return victims_on(alone, pod.demand, could)

    async def _carry_out(self, pod: Waiting, plan: Plan) -> bool:
        """Whether the promise stands; else other victims have to be found."""
        promise = Promise(
            pod.uid, pod.namespace, pod.name, plan.node, pod.demand, pod.priority, plan.victims,
            ours=True, until_s=self._now_s() + KEEP_S,
        )  # fmt: skip
        self._state.promises.make(promise)
        self._preemptors[pod.uid] = pod
        if not all(await asyncio.gather(*map(self._tried, plan.victims))):
            self._end(promise)
            return False
        if plan.victims and self._stands(promise):
            self._metrics.preemptions.inc()
            self._reporter.preempting(pod, node=plan.node, victims=plan.victims)
        if not await self._go_on(pod.uid):
            return False
        if self._stands(promise):
            await self._nominate(pod, plan.node)
        return True

    async def _go_on(self, uid: str) -> bool:
        """Evict victims that stand as if nothing had been said; false: the promise has ended."""
        state, promise, pod = self._state, self._state.promises.of(uid), self._preemptors.get(uid)
        if promise is None or pod is None:
            return False
        for victim in promise.victims:
            if not self._stands(promise):
                return False
            seen = state.pods.get(victim.uid)
            if seen is None or seen.leaving or victim.uid in self._evicted:
                continue
            if self._too_long or state.promises.ready(promise):
                return True
            word = await self._evict(victim, pod)
            if uid not in self._preemptors:
                self._ended(uid)
                return False
            if word is _Word.NO:
                self._end(promise)
                return False
            if word is _Word.NONE:
                self._last(uid)
                return True
        return True

    def _stands(self, promise: Promise) -> bool:
        """Still the same but for its time, and of use: the pod has no cards yet."""
        known = self._state.promises.of(promise.uid)
        same = known is not None and replace(known, until_s=promise.until_s) == promise
        return same and self._state.ledger.entry(promise.uid) is None

    def _end(self, promise: Promise) -> None:
        if self._stands(promise):
            self._state.promises.end(promise.uid)
            self._ended(promise.uid)

    def _ended(self, uid: str) -> None:
        """No promise of ours stands for the pod."""
        self._preemptors.pop(uid, None)
        if self._state.ledger.entry(uid) is not None:
            self._vain.over(uid)
        elif uid in self._costly:
            self._vain.again(uid, now_s=self._now_s())
        self._costly.discard(uid)

    def _last(self, uid: str) -> None:
        """Whoever else is to be gone on with comes first in the next turn."""
        pod = self._preemptors.pop(uid, None)
        if pod is not None:
            self._preemptors[uid] = pod

    async def _tried(self, victim: PodSeen) -> bool:
        """Whether the API server would evict it. Where that is not said the turn ends."""
        word = await self._asked(victim, dry_run=True)
        if word is _Word.NONE:
            self._until_s = -inf
        if word in (_Word.NO, _Word.NONE):
            self._lower.spare(victim.uid, victim.node, now_s=self._now_s())
        return word in (_Word.YES, _Word.GONE)

    async def _evict(self, victim: PodSeen, pod: Waiting) -> _Word:
        word = await self._asked(victim)
        if word in (_Word.YES, _Word.NONE):
            self._costly.add(pod.uid)
        if word is _Word.NO:
            self._lower.spare(victim.uid, victim.node, now_s=self._now_s())
        if word is _Word.YES:
            self._evicted.add(victim.uid)
            self._metrics.victims.inc()
            self._reporter.preempted(victim, by=pod, node=victim.node)
            await self._told_why(victim, pod)
        return word

    async def _asked(self, victim: PodSeen, *, dry_run: bool = False) -> _Word:
        """What the API server says to its eviction."""
        if not self._lease.leading:
            return _Word.NONE
        try:
            await self._evictor.evict(victim, dry_run=dry_run)
        except NotFound:
            return _Word.GONE
        except Refused as refused:
            log.info("a pod may not be evicted; others are looked for", why=str(refused))
            return _Word.NO
        except Unreachable as trouble:
            log.warning(
                "whether a pod is evicted is not known yet", dry_run=dry_run, why=str(trouble)
            )
            return _Word.NONE
        return _Word.YES

    async def _told_why(self, victim: PodSeen, pod: Waiting) -> None:
        try:
            await self._evictor.tell_why(victim, pod)
        except NotFound:
            return
        except (Refused, Unreachable) as trouble:
            log.warning("a victim was not told who preempted it", why=str(trouble))

    async def _nominate(self, pod: Waiting, node: str) -> None:
        if self._state.ledger.entry(pod.uid) is not None or not self._lease.leading:
            return
        try:
            await self._evictor.nominate(pod, node)
        except (Refused, Unreachable) as trouble:
            log.warning("a node was not nominated for a pod", node=node, why=str(trouble))

    async def _ask_anew(self, pod: Waiting, *, now_s: float) -> None:
        """Have kube-scheduler say again where the pod may go."""
        if now_s - self._asked_s.get(pod.uid, -inf) < AGAIN_S:
            return
        self._asked_s[pod.uid] = now_s
        try:
            await self._retries.retry(pod)
        except (Refused, Unreachable) as trouble:
            log.warning("kube-scheduler could not be told to try a pod again", why=str(trouble))


def stamp(epoch_s: float) -> str:
    """As the API server writes times."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _merit(plan: Plan) -> tuple[tuple[int, ...], str]:
    """As kube-scheduler chooses: the least loss, and then of the most important the youngest."""
    loss = cost(plan.victims)
    oldest = min(victim.created for victim in plan.victims if victim.priority == loss[0])
    return tuple(-part for part in loss), oldest
