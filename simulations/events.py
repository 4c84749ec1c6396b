# SPDX-License-Identifier: Apache-2.0
"""What is going to happen, ordered by `(time_s, sequence)`: ties go to what was planned first.

So the order never hangs on hashes, ids or the heap's insides, and two runs are alike to the byte.
"""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class EventQueue:
    """Actions with their times. Sequence numbers are the queue's own, so a second run in the same
    process begins like the first."""

    __slots__ = ("_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._sequence = 0

    def plan(self, at_s: float, action: Action) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_s, self._sequence, action))

    def next_at_s(self) -> float | None:
        """When the next action is due; None when nothing is planned."""
        return self._heap[0][0] if self._heap else None

    def pop(self) -> tuple[float, Action]:
        """Take the next action. Raises `IndexError` when nothing is planned."""
        at_s, _, action = heapq.heappop(self._heap)
        return at_s, action
