# SPDX-License-Identifier: Apache-2.0
"""How many requests a service has whose engines only count them, while activators see a part. Pure.

The activators stand in the path beside the pods, and know of each request that passes them how long
it took; the engines count all. By Little's law the whole is the rate of all, times the mean time of
those that passed.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from autoscaler.adapters.engines.stillness import LOST_AFTER_S

SHORTEST_S: Final = 30.0
# That one looks back, until enough have passed; and, where nothing came, until nobody waits for one
# that takes long.
LONGEST_S: Final = LOST_AFTER_S
APART_S: Final = 5.0  # marks, of which the oldest is where the window begins
GAP_S: Final = 10.0  # without a look: what came meanwhile was not counted, as in sleep
ENOUGH: Final = 10  # requests, for their mean time to be that of all
# Engines that count less than what passed us do not count all: other paths, other protocols.
COUNTED_RATIO: Final = 0.9


@dataclass(frozen=True, slots=True)
class Mark:
    """Totals that only grow, at one time. `passed`: requests that activators sent on; `spent_s`:
    their time at replicas; `counted`: requests that the engines counted, and `shown` with those of
    pods that were seen for the first time, of which nobody knows when they came.
    """

    at_s: float
    passed: float
    spent_s: float
    counted: float
    shown: float


@dataclass(slots=True)
class Sampled:
    """A window over the last looks: as short as may be, as long as it takes to see enough."""

    _marks: deque[Mark] = field(default_factory=deque)

    def add(self, now: Mark) -> None:
        marks = self._marks
        if marks and now.at_s - marks[-1].at_s > GAP_S:
            marks.clear()
        if len(marks) > 1 and now.at_s - marks[-2].at_s < APART_S:
            marks.pop()
        marks.append(now)
        while len(marks) > 2 and _enough(marks[1], now):
            marks.popleft()

    def forget(self) -> None:
        """What was counted till now is no part of what comes."""
        self._marks.clear()

    @property
    def incomplete(self) -> bool:
        """Whether more passed than the engines counted: they do not count all there is."""
        if len(self._marks) < 2:
            return False
        first, last = self._marks[0], self._marks[-1]
        return last.shown - first.shown < COUNTED_RATIO * (last.passed - first.passed)

    @property
    def in_flight(self) -> float | None:
        """The mean number of requests at replicas; None: too little was seen to tell."""
        if len(self._marks) < 2:
            return None
        first, last = self._marks[0], self._marks[-1]
        elapsed_s, passed = last.at_s - first.at_s, last.passed - first.passed
        counted = last.counted - first.counted
        if elapsed_s < SHORTEST_S or counted < COUNTED_RATIO * passed:
            return None
        if not passed:
            return 0.0 if not counted and elapsed_s >= LONGEST_S else None
        if passed < min(ENOUGH, counted / 2):
            return None
        return counted / elapsed_s * (last.spent_s - first.spent_s) / passed


def _enough(begin: Mark, now: Mark) -> bool:
    """Whether a window that begins then is long enough."""
    elapsed_s, passed = now.at_s - begin.at_s, now.passed - begin.passed
    return elapsed_s >= LONGEST_S or (elapsed_s >= SHORTEST_S and passed >= ENOUGH)
