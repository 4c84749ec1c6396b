# SPDX-License-Identifier: Apache-2.0
"""One replica of a service and the states of its life.

The platform's adapter moves a replica between states; the core only reads them.
"""

from dataclasses import dataclass
from enum import StrEnum


class ReplicaState(StrEnum):
    """Where one replica is in its life. The platform's adapter decides; the core only reads."""

    STARTING = "starting"  # asked for, not yet able to serve
    READY = "ready"
    DRAINING = "draining"  # gets no new request; finishes what it has
    FAILED = "failed"  # ended by itself; waits for its next start


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica as the platform reports it; times on the same clock as `now_s`.

    `asked_at_s` is when the count that called for it was decided, `ready_at_s` when it first could
    serve: their difference is one observation of the lead time.
    """

    id: str
    state: ReplicaState
    asked_at_s: float
    ready_at_s: float | None = None
    why: str = ""
