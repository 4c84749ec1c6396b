# SPDX-License-Identifier: Apache-2.0
"""The states of a replica's life, without any process: the table, the pauses, who goes first."""

import pytest

from autoscaler.adapters.local.cluster import victims
from autoscaler.adapters.local.life import (
    LIFE,
    PROVEN_AFTER_S,
    Event,
    Life,
    back_off_s,
    begin,
    start_again,
    step,
)
from autoscaler.adapters.local.replicas import Timings, next_look_s
from autoscaler.core.replicas import Replica, ReplicaState

STARTING, READY = ReplicaState.STARTING, ReplicaState.READY
DRAINING, FAILED = ReplicaState.DRAINING, ReplicaState.FAILED


def after(*events: Event, each_s: float = 1.0) -> Life:
    """A life begun at 0 in which these happened, one every `each_s`."""
    life = begin("toy-1", asked_at_s=0.0)
    for number, event in enumerate(events, start=1):
        life = step(life, event, now_s=number * each_s)
    return life


def test_every_state_can_be_left_and_dismissed() -> None:
    """No state is a dead end, and a replica may be dismissed from all that are not draining."""
    for state in ReplicaState:
        assert [to for (of, _), to in LIFE.items() if of is state]
        assert state is DRAINING or LIFE[state, Event.DISMISSED] is DRAINING


def test_what_the_table_does_not_allow_is_an_error() -> None:
    """A replica that drains cannot become ready without being recalled."""
    with pytest.raises(KeyError):
        after(Event.DISMISSED, Event.ANSWERED)


def test_the_lead_time_ends_when_it_was_first_ready() -> None:
    """Falling silent and answering again is no second start."""
    life = after(Event.ANSWERED, Event.SILENT, Event.ANSWERED)
    assert life.state is READY
    assert (life.replica.asked_at_s, life.replica.ready_at_s) == (0.0, 1.0)


def test_a_new_start_has_a_lead_time_of_its_own_and_remembers_the_reason() -> None:
    """Id, asking and readiness are the new process's; the reason of the last end stays visible."""
    failed = step(after(Event.ANSWERED), Event.ENDED, now_s=2.0, why="exit code 3")
    again = start_again(failed, "toy-2", now_s=5.0)
    why = "just started; the start before: exit code 3"
    assert again.replica == Replica("toy-2", STARTING, 5.0, why=why)
    assert again.failures == 1


@pytest.mark.parametrize(
    ("life", "failures"),
    [
        pytest.param(after(Event.ENDED), 1, id="the first failure"),
        pytest.param(after(Event.ENDED, Event.STARTED_AGAIN, Event.ENDED), 2, id="the second"),
        pytest.param(after(Event.OVERDUE), 1, id="never being ready is a failure"),
        pytest.param(
            after(Event.ENDED, Event.STARTED_AGAIN, Event.ANSWERED, Event.ENDED),
            2,
            id="a short readiness proves nothing",
        ),
        pytest.param(
            after(
                Event.ENDED,
                Event.STARTED_AGAIN,
                Event.ANSWERED,
                Event.ENDED,
                each_s=PROVEN_AFTER_S,
            ),
            1,
            id="a long readiness starts the count anew",
        ),
    ],
)
def test_failures_in_a_row_are_counted(life: Life, failures: int) -> None:
    """The count sets the pause before the next start."""
    assert life.failures == failures


def test_the_pause_doubles_up_to_its_bound() -> None:
    """1, 2, 4 ... 60 s, and no overflow however often it fails."""
    pauses = [back_off_s(n, first_s=1.0, most_s=60.0) for n in (1, 2, 3, 6, 7, 10_000)]
    assert pauses == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]


def test_a_start_is_noticed_at_most_a_twentieth_late() -> None:
    """Short starts are probed often, long ones at most every fifth of a second."""
    looks = [
        next_look_s(starting_for_s, timings=Timings()) for starting_for_s in (0.0, 1.0, 4.0, 600.0)
    ]
    assert looks == [0.02, 0.05, 0.2, 0.2]


def a_replica(name: str, state: ReplicaState = READY, *, asked_at_s: float = 0.0) -> Replica:
    return Replica(name, state, asked_at_s)


@pytest.mark.parametrize(
    ("replicas", "in_flight", "first"),
    [
        pytest.param(
            [a_replica("ready"), a_replica("starting", STARTING), a_replica("failed", FAILED)],
            {},
            ["failed", "starting", "ready"],
            id="failed, then starting, then ready",
        ),
        pytest.param(
            [a_replica("busy"), a_replica("idle"), a_replica("busier")],
            {"busy": 1, "busier": 5},
            ["idle", "busy", "busier"],
            id="of the ready ones the idlest",
        ),
        pytest.param(
            [a_replica("old", asked_at_s=1.0), a_replica("young", asked_at_s=9.0)],
            {},
            ["young", "old"],
            id="of equally idle ones the youngest",
        ),
        pytest.param(
            [a_replica("waiting", STARTING), a_replica("idle")],
            {"waiting": 3},
            ["waiting", "idle"],
            id="one that is not ready goes before an idle one",
        ),
    ],
)
def test_the_replicas_missed_least_go_first(
    replicas: list[Replica], in_flight: dict[str, int], first: list[str]
) -> None:
    """The order in which a falling count takes replicas away."""
    for count in range(len(replicas) + 1):
        assert victims(replicas, count, in_flight=in_flight) == set(first[:count])
