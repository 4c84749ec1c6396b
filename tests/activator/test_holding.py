# SPDX-License-Identifier: Apache-2.0
"""Rules H1-H7 of `holding.py`: readable examples, and a machine that tries everything."""

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autoscaler.activator.holding import (
    ASIDE_MAX_S,
    ASIDE_S,
    Holding,
    Ticket,
    TicketState,
    Work,
)


def a_holding(**bounds: float) -> Holding:
    return Holding(
        hold_limit=int(bounds.get("hold_limit", 100)),
        hold_bytes=int(bounds.get("hold_bytes", 1 << 20)),
        hold_timeout_s=bounds.get("hold_timeout_s", 60.0),
        now_s=0.0,
    )


def test_with_a_free_slot_a_request_goes_straight_to_the_endpoint() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    ticket = holding.arrive(1.0)
    assert (ticket.state, ticket.endpoint, ticket.was_held) == (TicketState.IN_FLIGHT, "a", False)


def test_without_an_endpoint_a_request_waits_cold_and_is_seated_when_one_comes() -> None:
    holding = a_holding()
    ticket = holding.arrive(1.0, owner="me")
    assert (ticket.state, ticket.cold) == (TicketState.HELD, True)
    assert holding.set_endpoints({"a": 1}, 3.5) == [ticket]
    assert (ticket.state, ticket.held_s, ticket.owner) == (TicketState.IN_FLIGHT, 2.5, "me")


def test_a_request_that_waits_for_a_slot_only_is_not_cold() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    first, second = holding.arrive(0.0), holding.arrive(0.0)
    assert (second.state, second.cold) == (TicketState.HELD, False)
    assert holding.finish(first, 1.0) is second


def test_the_oldest_is_released_first_and_only_as_many_as_there_are_slots() -> None:
    holding = a_holding()
    tickets = [holding.arrive(float(i)) for i in range(5)]
    assert holding.set_endpoints({"a": 2, "b": 1}, 9.0) == tickets[:3]
    assert holding.finish(tickets[1], 10.0) is tickets[3]


def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    first, waiting = holding.arrive(0.0), holding.arrive(0.0)
    newcomer = holding.arrive(0.0)
    assert holding.finish(first, 1.0) is waiting
    assert newcomer.state is TicketState.HELD


def test_the_queue_is_bounded_by_count() -> None:
    holding = a_holding(hold_limit=2)
    states = [holding.arrive(0.0).state for _ in range(3)]
    assert states == [TicketState.HELD, TicketState.HELD, TicketState.REFUSED]


def test_the_queue_is_bounded_by_bytes() -> None:
    holding = a_holding(hold_bytes=100)
    assert holding.arrive(0.0, size_bytes=60).state is TicketState.HELD
    assert holding.arrive(0.0, size_bytes=60).state is TicketState.REFUSED
    assert holding.arrive(0.0, size_bytes=40).state is TicketState.HELD
    assert holding.held_bytes == 100


def test_a_client_that_leaves_frees_its_place_in_the_queue() -> None:
    holding = a_holding(hold_limit=1)
    gone = holding.arrive(0.0, size_bytes=5)
    assert holding.cancel(gone, 1.0) is None
    assert (holding.held, holding.held_bytes, holding.cancelled) == (0, 0, 1)
    assert holding.arrive(1.0).state is TicketState.HELD


def test_a_client_that_leaves_in_flight_hands_its_seat_to_the_oldest() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    first, second = holding.arrive(0.0), holding.arrive(0.0)
    assert holding.cancel(first, 1.0) is second


def test_cancelling_what_has_ended_changes_nothing() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    ticket = holding.arrive(0.0)
    holding.finish(ticket, 1.0)
    assert holding.cancel(ticket, 2.0) is None
    assert (holding.answered, holding.cancelled) == (1, 0)


def test_waiting_ends_at_the_deadline_and_not_before() -> None:
    holding = a_holding(hold_timeout_s=5.0)
    early, late = holding.arrive(0.0), holding.arrive(1.0)
    assert holding.next_sweep_s() == 5.0
    assert holding.sweep(4.999) == ([], [])
    assert holding.sweep(5.0) == ([early], [])
    assert (early.state, late.state) == (TicketState.EXPIRED, TicketState.HELD)


def test_the_least_loaded_endpoint_is_chosen_and_equals_take_turns() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": None, "b": None, "c": None}, 0.0)
    assert [holding.arrive(0.0).endpoint for _ in range(6)] == list("abcabc")


def test_one_client_alone_still_visits_all_equals_in_turn() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 4, "b": 4}, 0.0)
    visited = []
    for _ in range(4):
        ticket = holding.arrive(0.0)
        visited.append(ticket.endpoint)
        holding.finish(ticket, 0.0)
    assert visited == list("abab")


def test_a_draining_endpoint_gets_nothing_new_and_keeps_what_it_has() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": None}, 0.0)
    old = holding.arrive(0.0)
    holding.set_endpoints({"a": None}, 1.0, draining={"a"})
    assert holding.arrive(1.0).state is TicketState.HELD
    assert holding.in_flight_by_endpoint() == {"a": 1}
    assert holding.finish(old, 2.0) is None


def test_an_endpoint_no_longer_listed_is_reported_until_its_last_request_ends() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    ticket = holding.arrive(0.0)
    holding.set_endpoints({}, 1.0)
    assert (holding.usable, holding.in_flight_by_endpoint()) == (0, {"a": 1})
    holding.finish(ticket, 2.0)
    assert holding.in_flight_by_endpoint() == {}


def test_fewer_slots_than_in_use_fill_up_again_only_below_the_new_number() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 3}, 0.0)
    inside = [holding.arrive(0.0) for _ in range(3)]
    outside = holding.arrive(0.0)
    holding.set_endpoints({"a": 1}, 1.0)
    assert holding.finish(inside[0], 2.0) is None
    assert holding.finish(inside[1], 2.0) is None
    assert holding.finish(inside[2], 2.0) is outside


def test_slots_of_zero_seat_nobody_but_the_service_is_not_cold() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 0}, 0.0)
    ticket = holding.arrive(0.0)
    assert (ticket.state, ticket.cold) == (TicketState.HELD, False)
    assert holding.set_endpoints({"a": 1}, 1.0) == [ticket]


def test_a_request_whose_endpoint_refuses_goes_to_another() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1, "b": 1}, 0.0)
    ticket = holding.arrive(0.0)
    assert holding.bounce(ticket, 0.0, blame=True) is None
    assert (ticket.state, ticket.endpoint) == (TicketState.IN_FLIGHT, "b")


def test_with_no_other_endpoint_it_waits_at_its_old_place_until_the_refuser_is_tried_again() -> (
    None
):
    holding = a_holding()
    holding.set_endpoints({"a": 2}, 0.0)
    first, second = holding.arrive(0.0), holding.arrive(0.0)
    newer = holding.arrive(0.0)
    holding.bounce(second, 1.0, blame=True)
    holding.bounce(first, 1.0, blame=True)
    assert [t.state for t in (first, second, newer)] == [TicketState.HELD] * 3
    assert holding.usable == 0
    assert holding.next_sweep_s() == 1.0 + ASIDE_S
    assert holding.sweep(1.0 + ASIDE_S) == ([], [first, second])


def test_an_endpoint_that_goes_on_refusing_is_tried_more_and_more_rarely() -> None:
    holding = a_holding(hold_timeout_s=1e6)
    holding.set_endpoints({"a": 1}, 0.0)
    ticket = holding.arrive(0.0)
    now_s, waits = 0.0, []
    for _ in range(8):
        holding.bounce(ticket, now_s, blame=True)
        due_s = holding.next_sweep_s()
        assert due_s is not None
        waits.append(due_s - now_s)
        now_s = due_s
        holding.sweep(now_s)
    assert waits[0] == pytest.approx(ASIDE_S)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(ASIDE_MAX_S)


def test_a_request_that_bounces_after_its_deadline_expires() -> None:
    holding = a_holding(hold_timeout_s=5.0)
    holding.set_endpoints({"a": 1}, 0.0)
    ticket = holding.arrive(0.0)
    holding.bounce(ticket, 6.0, blame=True)
    assert ticket.state is TicketState.EXPIRED


def test_a_request_that_bounces_when_the_queue_is_full_is_refused() -> None:
    holding = a_holding(hold_limit=1)
    holding.set_endpoints({"a": 1}, 0.0)
    ticket, waiting = holding.arrive(0.0), holding.arrive(0.0)
    holding.bounce(ticket, 1.0, blame=True)
    assert (ticket.state, waiting.state) == (TicketState.REFUSED, TicketState.HELD)


def test_without_blame_the_same_endpoint_may_be_tried_again_at_once() -> None:
    holding = a_holding()
    holding.set_endpoints({"a": 1}, 0.0)
    ticket = holding.arrive(0.0)
    holding.bounce(ticket, 1.0, blame=False)
    assert (ticket.state, ticket.endpoint) == (TicketState.IN_FLIGHT, "a")


def test_uncounted_visits_choose_the_least_loaded_whatever_its_slots() -> None:
    holding = a_holding()
    assert holding.choose() is None
    holding.set_endpoints({"a": 1, "b": 2}, 0.0)
    holding.arrive(0.0)
    assert holding.choose() == "b"
    holding.set_endpoints({"a": 1}, 0.0)
    assert holding.choose() == "a"


def test_the_integrals_are_exact() -> None:
    holding = a_holding()
    first = holding.arrive(1.0)
    holding.arrive(2.0)
    holding.set_endpoints({"a": 1}, 4.0)
    holding.finish(first, 6.0)
    # held: the first from 1 to 4, the second from 2 to 6; in flight: 4 to 6, and 6 to now
    assert holding.held_seconds(10.0) == pytest.approx(3 + 4)
    assert holding.request_seconds(10.0) == pytest.approx(5 + 8)


def test_a_clock_that_stands_still_or_goes_back_takes_nothing_from_the_integrals() -> None:
    holding = a_holding()
    holding.arrive(5.0)
    before = holding.request_seconds(6.0)
    holding.arrive(4.0)
    assert holding.request_seconds(6.0) >= before


def test_a_hundred_thousand_wait_and_are_served_in_order() -> None:
    count = 100_000
    holding = a_holding(hold_limit=count)
    tickets = [holding.arrive(0.0, owner=i) for i in range(count)]
    for ticket in tickets[1::2]:
        holding.cancel(ticket, 1.0)
    released = holding.set_endpoints({f"e{i}": 100 for i in range(100)}, 2.0)
    for ticket in released:  # grows while it is walked: whoever follows takes the seat
        follower = holding.finish(ticket, 3.0)
        if follower is not None:
            released.append(follower)
    assert [t.owner for t in released] == list(range(0, count, 2))
    assert (holding.held, holding.in_flight, holding.answered) == (0, 0, count // 2)


def test_finishing_what_is_not_in_flight_is_an_error_of_the_caller() -> None:
    holding = a_holding()
    with pytest.raises(ValueError, match="held, not in flight"):
        holding.finish(holding.arrive(0.0), 1.0)


works = st.none() | st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 1))


def total(works: Iterable[Work | None]) -> Work:
    known = [work for work in works if work is not None]
    prompt, output, open_ended = (sum(work[part] for work in known) for part in range(3))
    return prompt, output, open_ended


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, H1-H7 hold; a naive model keeps the books beside."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.holding = a_holding(hold_limit=6, hold_bytes=40, hold_timeout_s=10.0)
        self.slots: dict[str, int | None] = {}
        self.draining: set[str] = set()
        self.lowered: set[str] = set()
        self.tickets: list[Ticket] = []
        self.request_seconds = self.held_seconds = 0.0

    def in_state(self, state: TicketState) -> list[Ticket]:
        return [t for t in self.tickets if t.state is state]

    def released(self, released: list[Ticket], waiting: list[Ticket]) -> None:
        """`released` got seats while `waiting` was the queue: they must be its oldest part."""
        assert released == waiting[: len(released)]

    @rule(size_bytes=st.integers(0, 15), work=works)
    def arrive(self, size_bytes: int, work: Work | None) -> None:
        waiting = self.holding.held
        ticket = self.holding.arrive(self.now_s, size_bytes=size_bytes, work=work)
        assert not (waiting and ticket.state is TicketState.IN_FLIGHT)
        self.tickets.append(ticket)

    @precondition(lambda self: self.in_state(TicketState.IN_FLIGHT))
    @rule(data=st.data(), fate=st.sampled_from(["finish", "broken", "cancel", "stale", "refused"]))
    def end_one(self, data: st.DataObject, fate: str) -> None:
        waiting = self.in_state(TicketState.HELD)
        ticket = data.draw(st.sampled_from(self.in_state(TicketState.IN_FLIGHT)))
        if fate == "finish":
            other = self.holding.finish(ticket, self.now_s)
        elif fate == "broken":
            other = self.holding.finish(ticket, self.now_s, TicketState.BROKEN)
        elif fate == "cancel":
            other = self.holding.cancel(ticket, self.now_s)
        else:
            other = self.holding.bounce(ticket, self.now_s, blame=fate == "refused")
        if other is not None:
            self.released([other], waiting)

    @precondition(lambda self: any(ticket.work for ticket in self.tickets))
    @rule(data=st.data(), output_tokens=st.none() | st.integers(0, 100))
    def more_is_known(self, data: st.DataObject, output_tokens: int | None) -> None:
        ticket = data.draw(st.sampled_from([ticket for ticket in self.tickets if ticket.work]))
        self.holding.allows(ticket, output_tokens)

    @precondition(lambda self: self.in_state(TicketState.HELD))
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.in_state(TicketState.HELD)))
        assert self.holding.cancel(ticket, self.now_s) is None

    @rule(
        slots=st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 3)),
        draining=st.sets(st.sampled_from("abc")),
    )
    def endpoints_change(self, slots: dict[str, int | None], draining: set[str]) -> None:
        waiting = self.in_state(TicketState.HELD)
        self.slots, self.draining = slots, draining & set(slots)
        self.lowered = set(self.holding.in_flight_by_endpoint())
        self.released(
            self.holding.set_endpoints(slots, self.now_s, draining=self.draining), waiting
        )

    @rule(seconds=st.floats(0, 6))
    def time_passes(self, seconds: float) -> None:
        self.held_seconds += seconds * self.holding.held
        self.request_seconds += seconds * (self.holding.held + self.holding.in_flight)
        self.now_s += seconds
        waiting = self.in_state(TicketState.HELD)
        expired, released = self.holding.sweep(self.now_s)
        self.released(expired + released, waiting)
        assert all(self.now_s < t.arrived_at_s + 10.0 for t in self.in_state(TicketState.HELD))

    @invariant()
    def bounded(self) -> None:
        held = self.in_state(TicketState.HELD)
        assert len(held) == self.holding.held <= 6
        assert sum(t.size_bytes for t in held) == self.holding.held_bytes <= 40

    @invariant()
    def conserved(self) -> None:
        h = self.holding
        ended = h.answered + h.broken + h.refused + h.expired + h.cancelled
        assert h.arrived == len(self.tickets) == h.held + h.in_flight + ended
        assert h.in_flight == len(self.in_state(TicketState.IN_FLIGHT))

    @invariant()
    def seats_are_respected(self) -> None:
        loads = self.holding.in_flight_by_endpoint()
        assert sum(loads.values()) == self.holding.in_flight
        for endpoint, load in loads.items():
            slots = self.slots.get(endpoint)
            if endpoint in self.slots and slots is not None and endpoint not in self.lowered:
                assert load <= slots

    @invariant()
    def nobody_waits_before_a_free_seat(self) -> None:
        if not self.holding.held:
            return
        loads = self.holding.in_flight_by_endpoint()
        aside = self.holding._aside
        for endpoint, slots in self.slots.items():
            if endpoint not in self.draining and endpoint not in aside:
                assert slots is not None
                assert loads.get(endpoint, 0) >= slots

    @invariant()
    def work_is_conserved(self) -> None:
        held = self.in_state(TicketState.HELD)
        assert self.holding.work == total(ticket.work for ticket in self.tickets)
        assert self.holding.held_work == total(ticket.work for ticket in held)

    @invariant()
    def integrals_agree(self) -> None:
        assert self.holding.held_seconds(self.now_s) == pytest.approx(self.held_seconds)
        assert self.holding.request_seconds(self.now_s) == pytest.approx(self.request_seconds)


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
