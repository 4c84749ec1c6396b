# SPDX-License-Identifier: Apache-2.0
"""The rule of the door: who may wait, and when those who may not should come back."""

from dataclasses import dataclass
from math import ceil

LONGEST_RETRY_S = 30
_WEIGHT = 0.2  # of the newest batch in the running means: about the last five batches count


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model empties its queue: running means over its latest batches.

    Zero: none seen.
    """

    batch_s: float = 0.0
    requests_per_batch: float = 0.0

    def after(self, batch_s: float, *, requests: int) -> "Pace":
        """The pace once one more batch of `requests` requests took `batch_s` seconds."""
        if self.requests_per_batch == 0.0:
            return Pace(batch_s, float(requests))
        return Pace(
            self.batch_s + _WEIGHT * (batch_s - self.batch_s),
            self.requests_per_batch + _WEIGHT * (requests - self.requests_per_batch),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """No room now.

    `retry_after_s`: whole seconds, 1 to 30, in which the queue should have emptied.
    """

    why: str
    retry_after_s: int


def refusal(*, queued: int, limit: int, slots: int, pace: Pace) -> Refusal | None:
    """Whether one more request is turned away: when `queued` of at most `limit` already wait."""
    if queued < limit:
        return None
    batches = queued / max(1.0, pace.requests_per_batch) / slots
    after_s = min(LONGEST_RETRY_S, max(1, ceil(batches * pace.batch_s)))
    return Refusal(f"{queued} requests wait already, the limit is {limit}", after_s)
