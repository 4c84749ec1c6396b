# SPDX-License-Identifier: Apache-2.0
"""Pods that found no room, until they do, are bound or are gone. No I/O; driven by what is told.

kube-scheduler tries such a pod again when something happens in the cluster, else after 5 min. It
may hear that a pod is gone a moment before we do: then we refuse once more, and nothing else
happens. And some room comes without an event, as when a cordon is lifted. So whoever could be
placed now, by what changed since the refusal, is to be tried again at our word: see `retrying`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from math import inf
from typing import Final

import numpy as np

from scheduler_extender.backoff import Backoff
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits
from scheduler_extender.core.gpus import Fleet
from scheduler_extender.wire import Raw

MOST: Final = 2_000  # pods that are remembered; of more, the most important and then the first
# A word that was in vain (others were quicker, or the room is where the pod may not go) is said
# again after 2 s, 4 s and so on, up to this.
PAUSE_S: Final = 2.0
MOST_PAUSE_S: Final = 64.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pod that was refused. Times are seconds on the caller's clock.

    `nodes`: where kube-scheduler would have it, but for the GPUs. Those we know of.
    """

    uid: str
    namespace: str
    name: str
    demand: Demand
    nodes: tuple[str, ...]
    priority: int
    may_preempt: bool
    since_s: float
    asked_s: float


class WaitingPods:
    """In the order of their first refusal."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pods: dict[str, Waiting] = {}  # by UID
        self._told = Backoff(first_s=PAUSE_S, most_s=MOST_PAUSE_S)
        self._versions = fleet.version[:0].copy()  # of each row, at the last look
        self._changed_s = np.zeros(0)  # of each row, to the precision of looks

    def __len__(self) -> int:
        return len(self._pods)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(tuple(self._pods.values()))

    def of(self, uid: str) -> Waiting | None:
        return self._pods.get(uid)

    def refused(self, pod: Raw, demand: Demand, names: Sequence[str], *, now_s: float) -> None:
        """None of `names` has room for it."""
        meta, spec = pod["metadata"], pod.get("spec") or {}
        uid = meta["uid"]
        known = self._pods.get(uid)
        priority = int(spec.get("priority") or 0)
        if known is None and len(self._pods) >= MOST and not self._forget_below(priority):
            return
        self._pods[uid] = Waiting(
            uid,
            meta.get("namespace") or "",
            meta.get("name") or "",
            demand,
            self._known(names),
            priority=priority,
            may_preempt=spec.get("preemptionPolicy") != "Never",
            since_s=known.since_s if known is not None else now_s,
            asked_s=now_s,
        )

    def over(self, uid: str) -> None:
        """It found room, or is gone."""
        self._pods.pop(uid, None)
        self._told.over(uid)

    def look(self, *, now_s: float) -> None:
        """Notice which rows changed since the last look. To be called every second or so."""
        version = self._fleet.version[: self._fleet.rows]
        before, stamps = self._versions, np.full(len(version), now_s)
        same = version[: len(before)] == before[: len(version)]
        stamps[: len(same)][same] = self._changed_s[: len(same)][same]
        self._versions, self._changed_s = version.copy(), stamps

    def placeable(self, most: int, *, now_s: float) -> tuple[Waiting, ...]:
        """Whom to have tried again: at most so many, by priority, and who was tried least."""
        room_s = cache(self._room_s)
        ranked = sorted(
            self._pods.values(), key=lambda pod: (-pod.priority, self._told.times(pod.uid))
        )
        due = (
            pod
            for pod in ranked
            if now_s >= self._told.until_s(pod.uid) and room_s(pod.demand) >= pod.asked_s
        )
        return tuple(islice(due, most))

    def told(self, uid: str, *, now_s: float) -> None:
        """Its retry was asked for."""
        if uid in self._pods:
            self._told.again(uid, now_s=now_s)

    def _room_s(self, demand: Demand) -> float:
        """When the node changed last that did so last of those with room for it."""
        oldest_s = min(pod.asked_s for pod in self._pods.values())
        rows = np.flatnonzero(self._changed_s[: self._fleet.rows] >= oldest_s)
        changed_s = self._changed_s[rows][fits(self._fleet, demand, rows)]
        return float(changed_s.max(initial=-inf))

    def _forget_below(self, priority: int) -> bool:
        """Make room among them for one of this priority; false where all are as important."""
        least = min(reversed(self._pods.values()), key=lambda pod: pod.priority)
        if least.priority >= priority:
            return False
        self.over(least.uid)
        return True

    def _known(self, names: Sequence[str]) -> tuple[str, ...]:
        """Our own strings for them: a name is kept once, however many pods wait for its node."""
        fleet = self._fleet
        return tuple(fleet.names[row] for row in map(fleet.row_of.get, names) if row is not None)
