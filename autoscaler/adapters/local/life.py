# SPDX-License-Identifier: Apache-2.0
"""The states of a local replica's life, as a table. Pure: times are handed in, nothing is awaited.

A replica outlives its process: one that ended is started again, under a new id. A drained one is
simply gone and has no state.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from autoscaler.core.replicas import Replica, ReplicaState


class Event(StrEnum):
    """What can happen to a replica; the value is what one reads of it in the documentation."""

    ANSWERED = "its readiness probe was answered"
    SILENT = "several readiness probes in a row were not"
    OVERDUE = "it was not ready within the cold-start timeout"
    ENDED = "its process ended by itself, or could not be started"
    STARTED_AGAIN = "the pause after a failure is over"
    DISMISSED = "the count went down"
    RECALLED = "the count went up again before it was told to stop"


LIFE: Mapping[tuple[ReplicaState, Event], ReplicaState] = {
    (ReplicaState.STARTING, Event.ANSWERED): ReplicaState.READY,
    (ReplicaState.STARTING, Event.OVERDUE): ReplicaState.FAILED,
    (ReplicaState.STARTING, Event.ENDED): ReplicaState.FAILED,
    (ReplicaState.STARTING, Event.DISMISSED): ReplicaState.DRAINING,
    (ReplicaState.READY, Event.SILENT): ReplicaState.STARTING,
    (ReplicaState.READY, Event.ENDED): ReplicaState.FAILED,
    (ReplicaState.READY, Event.DISMISSED): ReplicaState.DRAINING,
    (ReplicaState.FAILED, Event.STARTED_AGAIN): ReplicaState.STARTING,
    (ReplicaState.FAILED, Event.DISMISSED): ReplicaState.DRAINING,
    (ReplicaState.DRAINING, Event.RECALLED): ReplicaState.STARTING,
}

# A replica that was ready this long has proven itself: its next failure counts as the first.
PROVEN_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Life:
    """A replica as reported, since when it is in its state, and how often in a row it failed.

    `last_end` says how the last process of it ended, until the next one does.
    """

    replica: Replica
    since_s: float
    failures: int = 0
    last_end: str = ""

    @property
    def state(self) -> ReplicaState:
        return self.replica.state


def begin(replica_id: str, *, asked_at_s: float) -> Life:
    return Life(Replica(replica_id, ReplicaState.STARTING, asked_at_s), asked_at_s)


def step(life: Life, event: Event, *, now_s: float, why: str = "") -> Life:
    """The life after `event`; raises `KeyError` for what the table does not allow."""
    to = LIFE[life.state, event]
    replica = replace(life.replica, state=to, why=why)
    if to is ReplicaState.READY and replica.ready_at_s is None:
        replica = replace(replica, ready_at_s=now_s)
    if to is not ReplicaState.FAILED:
        return replace(life, replica=replica, since_s=now_s)
    proven = life.state is ReplicaState.READY and now_s - life.since_s >= PROVEN_AFTER_S
    return Life(replica, now_s, failures=1 if proven else life.failures + 1, last_end=why)


def start_again(life: Life, replica_id: str, *, now_s: float) -> Life:
    """A failed replica's next start: a new id, and a lead time of its own."""
    again = step(life, Event.STARTED_AGAIN, now_s=now_s)
    fresh = replace(again, replica=Replica(replica_id, again.state, now_s))
    return not_ready(fresh, "just started")


def not_ready(life: Life, why: str) -> Life:
    """The same life, and why it does not serve yet; how the last process ended stays visible."""
    if life.last_end:
        why = f"{why}; the start before: {life.last_end}"
    return replace(life, replica=replace(life.replica, why=why))


def back_off_s(failures: int, *, first_s: float, most_s: float) -> float:
    """The pause before the next start: doubles with each failure in a row, up to `most_s`."""
    return min(first_s * 2.0 ** min(max(failures - 1, 0), 30), most_s)
