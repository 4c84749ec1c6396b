# SPDX-License-Identifier: Apache-2.0
"""Have cluster autoscalers add nodes for pods that fit nowhere, by the `plan`.

One cautious step at a time: what has just changed must show its effect before more is asked for.
"""

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Final

import structlog

from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.errors import NotFound, Refused, Unreachable
from scheduler_extender.placeholders.plan import Dropped, Plan, Standing, Wanted, plan, told
from scheduler_extender.ports import Placeholders, Reporter
from scheduler_extender.state import ClusterState

log = structlog.get_logger(__name__)

LOOK_S: Final = 5.0
GRACE_S: Final = 15.0  # pods that wait less are placed or preempt without a new node
# A node that came, or a placeholder that went: pods have so long to be placed before more is made.
PAUSE_S: Final = 30.0
MOST_TOLD: Final = 20  # Events of one look
MOST_LABELLED: Final = 500  # pods of one look
LABELLED_AT_ONCE: Final = 100
NEVER: Final = (
    "No node that this pod may use has the GPUs that it asks for, not even when empty, so no node "
    "is asked of cluster autoscalers. Ask for less; or, if another pool has them, choose its nodes "
    "by nodeSelector or node affinity."
)


class Growth:
    """`scheduler`: whose pods nodes are asked for. `namespace`: where placeholders are. `most` 0:
    those that are there are taken away.
    """

    def __init__(
        self,
        state: ClusterState,
        placeholders: Placeholders,
        *,
        reporter: Reporter,
        scheduler: str,
        namespace: str,
        most: int,
    ) -> None:
        self._state = state
        self._placeholders = placeholders
        self._reporter = reporter
        self._scheduler = scheduler
        self._namespace = namespace
        self._most = most
        # By UID and node: when a pod was first seen so.
        self._first_s: dict[tuple[str, str], float] = {}
        self._tried: set[str] = set()  # UIDs of pods whose label was written, or could not be
        self._told: set[str] = set()  # UIDs of pods that no node helps, in this round of Events
        self._looked_s = -inf
        self._changed_s = -inf

    async def look(self, *, now_s: float) -> None:
        """To be called every second or so. What fails is logged, and done again later."""
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        found = self._plan(now_s)
        self._tell(found.never)
        make = found.make if now_s - self._changed_s >= PAUSE_S else ()
        if make and await self._label():
            make = ()  # once all have it
        if make or found.drop:
            self._changed_s = now_s
        await asyncio.gather(*map(self._remove, found.drop), *map(self._make, make))

    def _plan(self, now_s: float) -> Plan:
        waiting, standing = self._waiting() if self._most else [], self._standing()
        pods = [(pod.uid, pod.node) for pod in (*waiting, *standing)]
        # A placeholder that gets a node begins anew.
        self._first_s = {pod: self._first_s.get(pod, now_s) for pod in pods}
        if not pods:
            return Plan()
        ages_s = {uid: now_s - first_s for (uid, _), first_s in self._first_s.items()}
        return plan(
            self._state,
            [pod for pod in waiting if ages_s[pod.uid] >= GRACE_S],
            young=[pod for pod in waiting if ages_s[pod.uid] < GRACE_S],
            standing=[Standing(pod, ages_s[pod.uid]) for pod in standing],
            most=self._most,
        )

    def _tell(self, never: Sequence[PodSeen]) -> None:
        """Some at each look, so that each has its turn."""
        untold = [pod for pod in never if pod.uid not in self._told] or never
        if untold is never:
            self._told.clear()
        for pod in untold[:MOST_TOLD]:
            self._told.add(pod.uid)
            self._reporter.tell_pod(pod, reason="NoNodeHasSuchGPUs", message=NEVER)

    def _standing(self) -> list[PodSeen]:
        return [
            pod
            for pod in self._state.placeholders.values()
            if pod.namespace == self._namespace and not pod.leaving
        ]

    def _waiting(self) -> list[PodSeen]:
        """Without those for whom others are evicted or cards reserved, or that are being bound.

        A nomination counts as a promise, as long as that can be kept.
        """
        state = self._state
        return [
            pod
            for pod in state.unplaced.values()
            if told(pod).scheduler == self._scheduler
            and state.promises.of(pod.uid) is None
            and pod.uid not in state.reservations.awaited_by
            and state.ledger.entry(pod.uid) is None
        ]

    async def _label(self) -> bool:
        """Write the label that keeps placeholders away; whether some pods with GPUs still lack it.

        They were bound by an API server before 1.35, or by an older extender. Each is tried once.
        A placeholder that is made after that finds them with it: kube-scheduler is told of pods in
        the order in which they were written.
        """
        pods = self._state.pods
        self._tried &= pods.keys()
        lack = [
            p for p in pods.values() if p.granted and not p.labelled and p.uid not in self._tried
        ]
        some = lack[:MOST_LABELLED]
        self._tried |= {pod.uid for pod in some}
        for first in range(0, len(some), LABELLED_AT_ONCE):
            await asyncio.gather(*map(self._label_one, some[first : first + LABELLED_AT_ONCE]))
        return len(lack) > len(some)

    async def _label_one(self, pod: PodSeen) -> None:
        try:
            await self._placeholders.label(pod)
        except (Refused, Unreachable) as trouble:
            name = f"{pod.namespace}/{pod.name}"
            log.warning("a pod with GPUs got no label", pod=name, why=str(trouble))

    async def _make(self, wanted: Wanted) -> None:
        try:
            await self._placeholders.make(wanted)
        except (Refused, Unreachable) as trouble:
            log.warning("a placeholder was not made", name=wanted.name, why=str(trouble))
        else:
            log.info("a node is asked of cluster autoscalers", name=wanted.name, pods=wanted.pods)

    async def _remove(self, dropped: Dropped) -> None:
        try:
            await self._placeholders.remove(dropped.pod)
        except NotFound:
            return
        except (Refused, Unreachable) as trouble:
            log.warning("a placeholder was not removed", name=dropped.pod.name, why=str(trouble))
        else:
            log.info("a placeholder is removed", name=dropped.pod.name, why=dropped.why)
