# SPDX-License-Identifier: Apache-2.0
"""The integral of requests in flight, as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.telemetry import ModelCounts

STAYS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=20)


@given(STAYS, st.integers(0, 2500))
def test_request_seconds_are_what_each_request_spent_inside_up_to_the_moment_of_reading(
    stays: list[tuple[int, int]], read_at_s: int
) -> None:
    """`stays`: (arrival, how long it stayed), both in seconds."""
    counts = ModelCounts()
    moves = [(start_s, counts.arrive) for start_s, _ in stays]
    moves += [(start_s + stay_s, counts.leave) for start_s, stay_s in stays]
    for at_s, move in sorted(moves, key=lambda m: m[0]):
        if at_s <= read_at_s:
            move(at_s)
    inside_s = [max(0, min(a + stay, read_at_s) - a) for a, stay in stays]
    assert counts.request_seconds(read_at_s) == pytest.approx(sum(inside_s))
    assert counts.arrived == sum(a <= read_at_s for a, _ in stays)


def test_reading_twice_counts_nothing_twice() -> None:
    counts = ModelCounts()
    counts.arrive(1.0)
    assert [counts.request_seconds(3.0), counts.request_seconds(3.0)] == [2.0, 2.0]
    assert counts.request_seconds(4.0) == 3.0
