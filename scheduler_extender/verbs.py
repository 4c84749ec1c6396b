# SPDX-License-Identifier: Apache-2.0
"""What kube-scheduler asks, from bytes to bytes. Only bind changes anything.

All others are reads and may come as often as they like. Prioritise is decisive: the winner has 10
and all others less, for kube-scheduler settles ties at random. Pick leaves the winner alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress, repeat
from typing import Final

import numpy as np

from scheduler_extender import wire
from scheduler_extender.binding import Binds
from scheduler_extender.core.annotations import Unclear, demand_of
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Fleet, Ints, Mask
from scheduler_extender.core.score import NO_FIT, winner
from scheduler_extender.core.verdicts import FITS, REFUSALS
from scheduler_extender.errors import Malformed
from scheduler_extender.preemption.victims import victims_for
from scheduler_extender.state import PROMISED, ClusterState

UNKNOWN: Final = "no GPUs reported; is the node agent running there?"
_WHY: Final = np.array([refusal.why for refusal in REFUSALS] + [UNKNOWN], dtype=object)
_PERMANENT: Final = np.array([refusal.permanent for refusal in REFUSALS] + [True])
_UNKNOWN: Final = len(REFUSALS)


class Verbs:
    """Raises `Malformed` for what is not the protocol, `NotLeading` where another must answer."""

    def __init__(self, state: ClusterState, binds: Binds) -> None:
        self._state = state
        self._binds = binds
        self._rows = _Rows(state.fleet)
        self._priorities = _Priorities(state.fleet)

    def filter(self, body: bytes) -> bytes:
        self._binds.check_leading()
        asked = wire.candidates(body)
        return wire.filter_reply(asked, self._fitting(asked, self._filtered))

    def prioritise(self, body: bytes) -> bytes:
        self._binds.check_leading()
        asked = wire.candidates(body)
        wish, _ = self._wish(asked.pod)
        rows = self._rows.of(asked.names)
        points = np.zeros(len(rows), dtype=np.int64)
        known = rows >= 0
        if isinstance(wish, Demand) and known.any():
            scores = self._state.scores.scores(wish, rows[known])
            points[known] = decisive(scores, self._state.fleet.order()[rows[known]])
        return wire.scores_reply(self._priorities.of(asked.names, rows, points))

    def pick(self, body: bytes) -> bytes:
        """Filter and prioritise in one: of the nodes that fit only the winner is left.

        kube-scheduler scores nothing where one node is left.
        """
        self._binds.check_leading()
        asked = wire.candidates(body)
        return wire.filter_reply(asked, self._fitting(asked, self._picked))

    def preempt(self, body: bytes) -> bytes:
        self._binds.check_leading()
        asked = wire.preempt_ask(body)
        wish, uid = self._wish(asked.pod)
        if isinstance(wish, Unclear):
            return wire.preempt_reply({})
        found = victims_for(
            self._state, wish, asked.victims, uid=uid, priority=_priority(asked.pod)
        )
        return wire.preempt_reply(found)

    async def bind(self, body: bytes) -> bytes:
        return wire.bind_reply(await self._binds.bind(wire.bind_ask(body)))

    def _fitting(
        self, asked: wire.Candidates, found_by: Callable[[Demand, Sequence[str]], wire.Filtered]
    ) -> wire.Filtered:
        wish, uid = self._wish(asked.pod, anew=True)
        if isinstance(wish, Unclear):
            return _everywhere(asked.names, str(wish))
        entry = self._state.ledger.entry(uid)
        if entry is not None:
            found = _only(asked.names, entry.fact.node)
        else:
            found = self._unpromised(asked, wish, found_by)
        if found.fitting:
            self._state.waiting.over(uid)
        elif uid and not self._state.was_gone(uid):
            self._state.waiting.refused(asked.pod, wish, asked.names, now_s=self._binds.now_s())
        return found

    def _unpromised(
        self,
        asked: wire.Candidates,
        wish: Demand,
        found_by: Callable[[Demand, Sequence[str]], wire.Filtered],
    ) -> wire.Filtered:
        """Without the nodes where it would take what is kept for another."""
        kept = self._kept(asked.pod, wish, asked.names)
        if not kept:
            return found_by(wish, asked.names)
        found = found_by(wish, [name for name in asked.names if name not in kept])
        told = dict.fromkeys(kept, PROMISED.why)
        return replace(found, failed={**found.failed, **told})

    def _kept(self, pod: wire.Raw, wish: Demand, names: Sequence[str]) -> set[str]:
        promises, uid, priority = self._state.promises, _uid(pod), _priority(pod)
        if not promises:
            return set()
        nodes = {promise.node for promise in promises}.intersection(names)
        return {node for node in nodes if promises.spoiled(node, wish, uid=uid, priority=priority)}

    def _picked(self, wish: Demand, names: Sequence[str]) -> wire.Filtered:
        """The winner alone; where none fits, what filter says: reasons cost more than scores."""
        if not wish.cards:
            return self._filtered(wish, names)
        rows = self._rows.of(names)
        known = np.flatnonzero(rows >= 0)
        rows = rows[known]
        best = winner(self._state.scores.scores(wish, rows), self._state.fleet.order()[rows])
        return self._filtered(wish, names) if best is None else wire.Filtered([names[known[best]]])

    def _wish(self, pod: wire.Raw, *, anew: bool = False) -> tuple[Demand | Unclear, str]:
        """What the pod asks for, read anew by filter: annotations of a pending pod may change."""
        uid = _uid(pod)
        known = self._binds.wish(uid)
        if known is not None and not anew:
            return known, uid
        try:
            wish = demand_of(pod)
        except (AttributeError, KeyError, TypeError) as error:
            raise Malformed(f"ExtenderArgs.Pod is no pod: {error!r}") from error
        self._binds.remember(uid, wish, priority=_priority(pod))
        if known is None and isinstance(wish, Demand):
            self._state.arrived(wish)
        return wish, uid

    def _filtered(self, wish: Demand, names: Sequence[str]) -> wire.Filtered:
        rows = self._rows.of(names)
        found = np.full(len(rows), _UNKNOWN if wish.cards else FITS)
        known = rows >= 0
        found[known] = self._state.verdicts.verdicts(wish, rows[known])
        fitting = found == FITS
        if fitting.all():
            return wire.Filtered(names)
        never = _PERMANENT[found] & ~fitting
        left = list(compress(names, fitting.tolist()))
        self._rows.keep(left, rows[fitting])
        return wire.Filtered(
            left,
            _told(names, found, ~never & ~fitting),
            _told(names, found, never),
        )


class _Rows:
    """The row of each name, -1 where the node is not known.

    Those of one list are kept: prioritise names what filter left, in the same order.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.keep((), np.empty(0, dtype=np.int64))

    def of(self, names: Sequence[str]) -> Ints:
        if self._generation != self._fleet.generation or self._names != names:
            found = map(self._fleet.row_of.get, names, repeat(-1))
            self.keep(names, np.fromiter(found, dtype=np.int64, count=len(names)))
        return self._rows

    def keep(self, names: Sequence[str], rows: Ints) -> None:
        self._names, self._rows, self._generation = names, rows, self._fleet.generation


class _Priorities:
    """The bytes of a HostPriority by row and score; of rows that were asked for."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._generation = -1  # of the fleet when it was looked at last
        self._names: list[str] = []  # of each row when its bytes were made
        self._bytes = np.empty((0, _STEPS), dtype=object)

    def of(self, names: Sequence[str], rows: Ints, points: Ints) -> list[bytes]:
        self._refresh()
        if (rows < 0).any():
            return [wire.host_priorities(n)[p] for n, p in zip(names, points, strict=True)]
        found: list[bytes] = self._bytes.take(rows * _STEPS + points).tolist()
        return found

    def _refresh(self) -> None:
        """Rows change hands only when nodes come and go."""
        if self._generation == self._fleet.generation:
            return
        known, names = self._names, list(self._fleet.names)
        made = np.empty((len(names), _STEPS), dtype=object)
        made[: len(known)] = self._bytes
        for row, name in enumerate(names):
            if row >= len(known) or known[row] != name:
                made[row] = wire.host_priorities(name)
        self._generation, self._names, self._bytes = self._fleet.generation, names, made


_STEPS: Final = wire.MAX_SCORE + 1


def decisive(scores: Ints, order: Ints) -> Ints:
    """Points 0..10 in the order of the scores: 10 for one alone, 0 for what does not fit."""
    points = np.zeros(len(scores), dtype=np.int64)
    best = winner(scores, order)
    if best is None:
        return points
    fit = scores != NO_FIT
    least, most = scores[fit].min(), scores[best]
    if most > least:
        points[fit] = (scores[fit] - least) * (wire.MAX_SCORE - 1) // (most - least)
    points[best] = wire.MAX_SCORE
    return points


def _uid(pod: wire.Raw) -> str:
    return (pod.get("metadata") or {}).get("uid") or ""


def _priority(pod: wire.Raw) -> int:
    return int((pod.get("spec") or {}).get("priority") or 0)


def _told(names: Sequence[str], found: Ints, which: Mask) -> dict[str, str]:
    return dict(zip(compress(names, which.tolist()), _WHY[found[which]].tolist(), strict=True))


def _everywhere(names: Sequence[str], why: str) -> wire.Filtered:
    return wire.Filtered(hopeless=dict.fromkeys(names, why))


def _only(names: Sequence[str], node: str) -> wire.Filtered:
    """A Binding of the pod may be on the way: it can go nowhere else until that is settled."""
    fitting = [name for name in names if name == node]
    why = f"a Binding to {node} is being settled"
    return wire.Filtered(fitting, {name: why for name in names if name != node})
