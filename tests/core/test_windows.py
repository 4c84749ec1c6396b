# SPDX-License-Identifier: Apache-2.0
"""Windows tell rates, means and extremes of the last seconds, and say so when they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.core.windows import CounterWindow, LevelWindow, SlidingExtreme


def seen(*samples: tuple[float, float], span_s: float = 6.0) -> CounterWindow:
    window = CounterWindow(span_s)
    for at_s, total in samples:
        window = window.seen(total, at_s)
    return window


def test_a_rate_needs_two_samples() -> None:
    """One sample of a total says nothing about its pace."""
    assert seen((0, 100)).value(0) is None


def test_a_rate_is_the_increase_over_the_window() -> None:
    """12 more within the last 6 s are 2 a second, whatever came before."""
    window = seen((0, 0), (3, 90), (6, 96), (9, 102))
    assert window.value(9) == pytest.approx(2.0)


def test_the_left_edge_is_interpolated() -> None:
    """The window of (0 s, 4 s, 8 s] begins at 2 s, half way up the first rise."""
    assert seen((0, 0), (4, 8), (8, 8)).value(8) == pytest.approx(4 / 6)


def test_a_counter_that_starts_anew_counts_from_zero() -> None:
    """After a restart the total is smaller; what it shows is all increase."""
    assert seen((0, 100), (3, 103), (6, 3)).value(6) == pytest.approx(1.0)


def test_two_ticks_close_together_do_not_make_a_flood() -> None:
    """One request between two looks 5 ms apart is not 200 requests a second."""
    assert seen((0, 0), (0.005, 1)).value(0.005) == pytest.approx(1.0)


def test_a_gap_longer_than_the_window_forgets() -> None:
    """Nobody knows when within the gap the increase came."""
    assert seen((0, 0), (1, 5), (60, 500)).value(60) is None


def test_an_old_rate_is_no_rate() -> None:
    """A window whose newest sample is older than its span has nothing to say."""
    assert seen((0, 0), (1, 5)).value(8) is None


def test_a_level_is_averaged_over_its_window() -> None:
    """Samples older than the span are let go."""
    window = LevelWindow(6.0).seen(100, 0).seen(4, 5).seen(8, 9)
    assert window.value(9) == pytest.approx(6.0)
    assert window.value(60) is None


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(-50, 50)), min_size=1, max_size=60),
    st.floats(1, 20),
    st.booleans(),
)
def test_a_sliding_extreme_is_that_of_the_last_span(
    steps: list[tuple[float, int]], span_s: float, largest: bool
) -> None:
    """It equals the extreme over all samples of the span, found the slow way."""
    window, at_s, all_seen = SlidingExtreme(largest), 0.0, []
    for wait_s, value in steps:
        at_s += wait_s
        all_seen.append((at_s, value))
        window = window.seen(value, at_s, span_s=span_s)
        recent = [value for seen_s, value in all_seen if seen_s > at_s - span_s]
        assert window.extreme() == (max if largest else min)(recent)


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 50)), min_size=2, max_size=40))
def test_a_rate_lies_between_the_slowest_and_the_fastest_step(
    steps: list[tuple[float, float]],
) -> None:
    """Averaging invents nothing: no rate above the steepest rise or below the flattest."""
    window, at_s, total, paces = CounterWindow(6.0), 0.0, 0.0, [0.0]
    window = window.seen(0, 0)
    for wait_s, pace in steps:
        at_s, total = at_s + wait_s, total + pace * wait_s
        paces.append(pace)
        window = window.seen(total, at_s)
        rate = window.value(at_s)
        assert rate is not None
        assert -1e-6 <= rate <= max(paces) + 1e-6
