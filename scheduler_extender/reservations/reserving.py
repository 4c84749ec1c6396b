# SPDX-License-Identifier: Apache-2.0
"""Make and end the reservations of mixed nodes, as planned. Only this file asks for that.

A deletion is as final as a Binding, and has the same limits: only a leader asks for it, it takes
effect within `BIND_S` or never, and the Lease is not given away before that is over. So nobody
gives out a card whose reservation a former leader may yet end.
"""

import asyncio
from collections.abc import Callable

import structlog

from scheduler_extender.binding import BIND_S
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.ports import Lease, ReservationPods
from scheduler_extender.reservations.cards import Reserved
from scheduler_extender.reservations.plan import IDLE_S, ReservationPlan, Wanted
from scheduler_extender.state import ClusterState

log = structlog.get_logger(__name__)


class Reserving:
    """`pods` None: there is nothing to make them from, and mixed nodes get no pods of ours."""

    def __init__(
        self,
        state: ClusterState,
        pods: ReservationPods | None,
        *,
        lease: Lease,
        now_s: Callable[[], float],
        idle_s: float = IDLE_S,
    ) -> None:
        self._state = state
        self._pods = pods
        self._lease = lease
        self._now_s = now_s
        self._plan = ReservationPlan(state, idle_s=idle_s)
        self._unsettled: dict[str, float] = {}  # by UID: until when its deletion may take effect
        self._complained = False

    @property
    def settled(self) -> bool:
        """Whether no deletion of ours can still take effect."""
        return all(until_s <= self._now_s() for until_s in self._unsettled.values())

    async def step(self) -> None:
        """To be called every second or so. What fails is logged, and done again later."""
        if self._pods is None:
            self._complain()
            return
        now_s = self._now_s()
        self._unsettled = {uid: at_s for uid, at_s in self._unsettled.items() if at_s > now_s}
        plan = self._plan.plan(now_s)
        ending = (self._end(one, self._pods) for one in plan.end)
        making = (self._make(wanted, self._pods) for wanted in plan.make)
        await asyncio.gather(*ending, *making)

    async def _make(self, wanted: Wanted, pods: ReservationPods) -> None:
        told = {"node": wanted.node, "number": wanted.number}
        if not self._lease.leading:
            return
        try:
            await pods.create(wanted.node, wanted.number)
        except Refused as trouble:
            self._plan.refused(wanted, now_s=self._now_s())
            log.warning("a card was not reserved", **told, why=str(trouble))
        except Unreachable as trouble:
            log.warning("whether a card was reserved is not known", **told, why=str(trouble))
        else:
            log.info("a card is being reserved for pods that wait", **told)

    async def _end(self, one: Reserved, pods: ReservationPods) -> None:
        if not self._lease.leading:
            return
        self._unsettled[one.uid] = self._now_s() + BIND_S
        try:
            await pods.delete(one.name, one.uid)
        except Unreachable as trouble:
            log.warning("whether a reservation ended is not known", pod=one.name, why=str(trouble))
            return
        except Refused as trouble:
            log.warning("a reservation was not ended", pod=one.name, why=str(trouble))
        else:
            log.info("a reservation that nobody uses is ended", pod=one.name, card=one.told.uuid)
        self._unsettled.pop(one.uid, None)

    def _complain(self) -> None:
        mixed = self._state.mixed()
        if mixed and not self._complained:
            self._complained = True
            log.warning(
                "cards of mixed nodes cannot be reserved: name the pod for it with "
                "--reservation-pod",
                nodes=mixed[:5],
            )
