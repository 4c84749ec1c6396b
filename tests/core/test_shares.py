# SPDX-License-Identifier: Apache-2.0
"""How activator processes share a replica's slots: never too many, and everyone gets on."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.core.shares import Claim, shares

IDLE = Claim(granted=0, committed=0, in_flight=0)


def test_one_process_gets_all() -> None:
    assert shares(5, [IDLE]) == [5]


def test_idle_processes_split_evenly_beginning_at_the_turn() -> None:
    assert shares(5, [IDLE, IDLE], turn=0) == [3, 2]
    assert shares(5, [IDLE, IDLE], turn=1) == [2, 3]


def test_what_one_does_not_use_goes_to_who_needs_it_but_for_one_slot() -> None:
    idle = Claim(granted=4, committed=4, in_flight=0)
    busy = Claim(granted=4, committed=4, in_flight=4, held=9, waits_s=1.0)
    assert shares(8, [idle, busy]) == [1, 4]
    assert shares(8, [replace(idle, granted=1, committed=1), busy]) == [1, 7]


def test_a_newcomer_gets_one_slot_from_who_has_most_before_it_needs_it() -> None:
    full = Claim(granted=4, committed=4, in_flight=4)
    assert shares(4, [full, IDLE]) == [3, 0]
    assert shares(4, [Claim(granted=3, committed=3, in_flight=3), IDLE]) == [3, 1]


def test_a_slot_taken_is_not_given_before_it_is_given_back() -> None:
    still_using = Claim(granted=1, committed=4, in_flight=4)
    waiting = Claim(granted=4, committed=4, in_flight=4, held=3, waits_s=1.0)
    assert shares(8, [still_using, waiting]) == [1, 4]


def test_who_needs_it_gets_its_fair_part_back_from_who_has_more() -> None:
    small = Claim(granted=1, committed=1, in_flight=1, held=5, waits_s=0.5)
    large = Claim(granted=7, committed=7, in_flight=7, held=5, waits_s=0.5)
    assert shares(8, [small, large]) == [1, 4]


def test_with_one_slot_for_two_it_goes_to_who_waits_longer() -> None:
    has_it = Claim(granted=1, committed=1, in_flight=1, held=3, waits_s=0.1)
    waits = Claim(granted=0, committed=0, in_flight=0, held=3, waits_s=0.2)
    assert shares(1, [has_it, waits]) == [0, 0]
    assert shares(1, [replace(has_it, granted=0, committed=0, in_flight=0), waits]) == [0, 1]


def test_with_one_slot_for_two_nothing_moves_while_nobody_waits() -> None:
    has_it = Claim(granted=1, committed=1, in_flight=1)
    assert shares(1, [has_it, IDLE]) == [1, 0]


def test_fewer_slots_than_were_granted_are_taken_back() -> None:
    full = Claim(granted=4, committed=4, in_flight=4)
    assert sum(shares(3, [full, full])) == 3


claims = st.builds(
    lambda granted, extra, in_flight, held, waits_s: Claim(
        granted=granted,
        committed=max(granted + extra, in_flight),
        in_flight=in_flight,
        held=held,
        waits_s=waits_s if held else 0.0,
    ),
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(0, 8),
    st.integers(0, 5),
    st.floats(0, 9),
)


@given(st.integers(0, 12), st.lists(claims, min_size=1, max_size=5), st.integers(0, 7))
def test_nothing_is_given_out_that_somebody_may_still_use(
    slots: int, all_claims: list[Claim], turn: int
) -> None:
    grants = shares(slots, all_claims, turn=turn)
    assert all(grant >= 0 for grant in grants)
    assert sum(grants) <= slots
    raised = any(g > c.granted for g, c in zip(grants, all_claims, strict=True))
    in_use = sum(max(g, c.committed) for g, c in zip(grants, all_claims, strict=True))
    assert in_use <= slots or not raised


@given(
    slots=st.integers(1, 5),
    work=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    arriving=st.integers(0, 2),
)
def test_every_process_gets_on_however_few_slots_there_are(
    slots: int, work: list[int], arriving: int
) -> None:
    """A crude day at work: each round every request in flight ends and grants are dealt anew.

    The first process gets new requests all the time; the others' requests must all be served.
    """
    granted = [0] * len(work)
    held = [[0.0] * count for count in work]  # when each arrived
    for now in range(1, 400):
        in_flight = []
        for i, queue in enumerate(held):
            running = min(granted[i], len(queue))
            in_flight.append(running)
        assert sum(in_flight) <= slots
        dealt = [
            Claim(
                granted=granted[i],
                committed=max(granted[i], in_flight[i]),
                in_flight=in_flight[i],
                held=len(held[i]) - in_flight[i],
                waits_s=now - held[i][in_flight[i]] if len(held[i]) > in_flight[i] else 0.0,
            )
            for i in range(len(work))
        ]
        granted = shares(slots, dealt)
        for i, running in enumerate(in_flight):
            del held[i][:running]
        held[0] += [float(now)] * arriving
    assert all(not queue for queue in held[1:])
