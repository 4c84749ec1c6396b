# SPDX-License-Identifier: Apache-2.0
"""How a pod gets its node and its cards: fit anew, hold, one Binding, and then the truth.

Only this file asks for Bindings. Between the hold and the request nothing else can happen, and a
hold is let go only when its Binding cannot come any more: the API server said no and had no other
one of ours under way, or the pod is gone, or the pod was read as pending after `state.HOLD_S`.

A request that is not answered takes effect within `BIND_S` or never: the API server is told that
limit with it, and the connection is closed then. A leader asks for nothing after its renewal
deadline (10 s), so all of that is over before another may take the Lease (15 s).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from scheduler_extender.core.annotations import Unclear, grant_annotations
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import Refusal
from scheduler_extender.core.ledger import Entry, Stage
from scheduler_extender.errors import NotLeading, Refused, Unreachable
from scheduler_extender.ports import Binder, Binding, Lease, PodRead
from scheduler_extender.state import ClusterState
from scheduler_extender.wire import BindAsk

log = structlog.get_logger(__name__)

BIND_S: Final = 5.0
MOST_WISHES: Final = 20_000  # pods between filter and bind whose wish is remembered


class Binds:
    """Binds pods, each once. `now_s` is the clock of the holds."""

    def __init__(
        self, state: ClusterState, *, binder: Binder, lease: Lease, now_s: Callable[[], float]
    ) -> None:
        self._state = state
        self._binder = binder
        self._lease = lease
        self.now_s = now_s
        self._going: dict[str, asyncio.Task[str]] = {}  # by UID
        self._unanswered: set[str] = set()  # UIDs with a Binding whose outcome is not known
        self._wishes: OrderedDict[str, tuple[Demand | Unclear, int]] = OrderedDict()

    @property
    def settled(self) -> bool:
        """Whether no Binding of ours can still take effect: the Lease may be given away then."""
        return not self._going and not any(map(self._state.held, self._unanswered))

    def remember(self, uid: str, wish: Demand | Unclear, *, priority: int = 0) -> None:
        """A pod that was asked about will be bound soon, and then only its name is told."""
        self._wishes[uid] = wish, priority
        self._wishes.move_to_end(uid)
        if len(self._wishes) > MOST_WISHES:
            self._wishes.popitem(last=False)

    def wish(self, uid: str) -> Demand | Unclear | None:
        """What the pod was found to ask for when it was asked about last."""
        known = self._wishes.get(uid)
        return known[0] if known is not None else None

    def check_leading(self) -> None:
        """Raises `NotLeading` where another answers, or we do not know the cluster yet."""
        if not self._lease.leading:
            raise NotLeading("this extender does not hold the Lease; ask its leader", after_s=1.0)
        if not self._state.synced:
            raise NotLeading("the list of nodes and pods is not in yet; try again", after_s=1.0)

    async def bind(self, asked: BindAsk) -> str:
        """Why the pod is not bound to the node, or nothing if it is. Raises `NotLeading`.

        Goes on when the caller leaves, and answers a second caller with the same.
        """
        self.check_leading()
        going = self._going.get(asked.uid)
        if going is not None:
            await asyncio.wait([going])
            return await self.bind(asked)
        task = asyncio.create_task(self._bind(asked))
        self._going[asked.uid] = task
        task.add_done_callback(lambda _: self._going.pop(asked.uid))
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Read each pod that the watch should have shown by now, and go by what it says."""
        self._unanswered = {uid for uid in self._unanswered if self._state.held(uid)}
        for unseen in self._state.overdue(self.now_s()):
            if unseen.uid in self._going:
                continue
            try:
                pod = await self._binder.read(unseen.namespace, unseen.name)
            except (Unreachable, Refused) as trouble:
                log.warning("a pod with a hold cannot be read", why=str(trouble))
                continue
            self._take(unseen.uid, pod)
            if pod is not None and not pod.seen.node and unseen.uid not in self._going:
                self._unanswered.discard(unseen.uid)
                self._state.release_hold(unseen.uid)

    async def _bind(self, asked: BindAsk) -> str:
        known = self._state.ledger.entry(asked.uid)
        if known is None:
            wish, priority = self._wishes.get(asked.uid) or await self._wish(asked)
            if not isinstance(wish, Demand):
                return str(wish)
            self.check_leading()
            if not wish.cards:
                return await self._post(asked, None)
            taken = self._state.hold(asked, wish, now_s=self.now_s(), priority=priority)
            if isinstance(taken, Refusal):
                return f"{asked.node}: {taken.why}"
            known = taken
        if known.fact.node != asked.node:
            settled = "is bound" if known.stage is Stage.BOUND else "may be bound"
            return f"pod {asked.namespace}/{asked.pod} {settled} to {known.fact.node} already"
        if known.stage is Stage.BOUND:
            return ""
        if known.grant is None:
            return f"{asked.node} changed since the pod's cards were held; they are in doubt"
        return await self._post(asked, known)

    async def _wish(self, asked: BindAsk) -> tuple[Demand | Unclear | str, int]:
        """Wish and priority of a pod that no filter of ours saw: we are new here."""
        try:
            pod = await self._binder.read(asked.namespace, asked.pod)
        except (Unreachable, Refused) as trouble:
            return str(trouble), 0
        if pod is None or pod.seen.uid != asked.uid:
            return f"there is no pod {asked.namespace}/{asked.pod} of UID {asked.uid} any more", 0
        self._state.pod_read(pod.seen, now_s=self.now_s())
        if pod.seen.node:
            return f"pod {asked.namespace}/{asked.pod} is bound to {pod.seen.node} already", 0
        return pod.demand, pod.seen.priority

    async def _post(self, asked: BindAsk, entry: Entry | None) -> str:
        grant = entry.grant if entry is not None else None
        annotations = {} if grant is None else grant_annotations(grant)
        binding = Binding(asked.namespace, asked.pod, asked.uid, asked.node, annotations)
        try:
            await self._binder.bind(binding)
        except Unreachable as lost:
            if entry is not None:
                self._unanswered.add(asked.uid)
            return f"whether the pod was bound is not known yet: {lost}"
        except Refused as refused:
            return await self._after_refusal(asked, refused)
        self._unanswered.discard(asked.uid)
        self._wishes.pop(asked.uid, None)
        self._state.confirm(asked.uid)
        return ""

    async def _after_refusal(self, asked: BindAsk, refused: Refused) -> str:
        """An earlier Binding of ours may be why: what the pod says is what happened."""
        sure = asked.uid not in self._unanswered
        try:
            pod = await self._binder.read(asked.namespace, asked.pod)
        except (Unreachable, Refused):
            if sure:
                self._state.release_hold(asked.uid)
            return str(refused)
        self._take(asked.uid, pod)
        entry = self._state.ledger.entry(asked.uid)
        if entry is not None and entry.stage is Stage.BOUND and entry.fact.node == asked.node:
            return ""
        if sure:
            self._state.release_hold(asked.uid)
        return str(refused)

    def _take(self, uid: str, pod: PodRead | None) -> None:
        """Let the state know what was read where the pod of this UID should be."""
        if pod is not None and pod.seen.uid == uid:
            self._state.pod_read(pod.seen, now_s=self.now_s())
        else:
            self._state.pod_gone(uid)
