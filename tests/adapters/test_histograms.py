# SPDX-License-Identifier: Apache-2.0
"""Quantiles, counts and sums of times: any buckets, several series, summaries, and bad numbers."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.adapters.engines.exposition import samples
from autoscaler.adapters.engines.histograms import Distribution, distribution, quantile
from autoscaler.adapters.engines.notation import time_ways
from autoscaler.adapters.engines.page import by_name
from autoscaler.core.signals import NoReading


def told(page: str, written: str = "x", same_on: frozenset[str] = frozenset()) -> object:
    found = samples(page)
    assert isinstance(found, tuple), found
    [way] = time_ways(written)
    return distribution(way, by_name(found), same_on=same_on)


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        pytest.param([(1.0, 10.0), (inf, 10.0)], 0.5, 0.5, id="the first bucket begins at 0"),
        pytest.param([(1.0, 0.0), (3.0, 4.0), (inf, 4.0)], 0.5, 2.0, id="in the middle of one"),
        pytest.param([(1.0, 5.0), (3.0, 10.0), (inf, 10.0)], 0.5, 1.0, id="at a bound"),
        pytest.param([(1.0, 0.0), (2.0, 1.0), (inf, 9.0)], 0.95, 2.0, id="beyond the last bound"),
        pytest.param([(-1.0, 2.0), (1.0, 4.0), (inf, 4.0)], 0.25, -1.0, id="a negative bound"),
        pytest.param([(1.0, 0.0), (inf, 0.0)], 0.5, None, id="nothing was seen"),
        pytest.param([(inf, 9.0)], 0.5, None, id="no bound"),
        pytest.param([], 0.5, None, id="no bucket"),
        pytest.param([(1.0, 0.0), (2.0, 4.0), (inf, 4.0)], 1.0, 2.0, id="the most"),
    ],
)
def test_a_quantile_lies_on_a_line_within_its_bucket(
    buckets: list[tuple[float, float]], q: float, expected: float | None
) -> None:
    """As PromQL's histogram_quantile has it, so that dashboards agree."""
    assert quantile(buckets, q) == expected


COUNTS = st.lists(st.integers(0, 50), min_size=2, max_size=8)


@given(COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_part_never_lies_lower(counts: list[int], a: float, b: float) -> None:
    """And none lies outside of the bounds."""
    bounds = [*map(float, range(1, len(counts))), inf]
    buckets = [(bound, float(sum(counts[: n + 1]))) for n, bound in enumerate(bounds)]
    low, high = quantile(buckets, min(a, b)), quantile(buckets, max(a, b))
    if low is None or high is None:
        assert low is high is None
        assert not sum(counts)
    else:
        assert 0 <= low <= high <= bounds[-2]


def test_series_are_added_by_the_bounds_that_they_share() -> None:
    """Models may have buckets of their own; ranks that repeat one another count once."""
    page = (
        'x_bucket{m="a",r="0",le="1"} 2\nx_bucket{m="a",r="0",le="2"} 4\n'
        'x_bucket{m="a",r="0",le="+Inf"} 4\nx_sum{m="a",r="0"} 5\nx_count{m="a",r="0"} 4\n'
        'x_bucket{m="a",r="1",le="1"} 2\nx_bucket{m="a",r="1",le="2"} 4\n'
        'x_bucket{m="a",r="1",le="+Inf"} 4\nx_sum{m="a",r="1"} 5\nx_count{m="a",r="1"} 4\n'
        'x_bucket{m="b",le="2.0"} 6\nx_bucket{m="b",le="8"} 6\n'
        'x_bucket{m="b",le="+Inf"} 6\nx_sum{m="b"} 7\nx_count{m="b"} 6\n'
    )
    # Both have a bound at 2: 10 of 10 are below it.
    assert told(page, same_on=frozenset({"r"})) == Distribution(10.0, 12.0, 1.0, 1.9)


def test_milliseconds_become_seconds() -> None:
    """Bounds and sums, not counts."""
    page = 'x_bucket{le="100"} 8\nx_bucket{le="+Inf"} 8\nx_sum 640\nx_count 8\n'
    assert told(page, "x * 0.001") == Distribution(8.0, 0.64, 0.05, 0.095)


def test_buckets_may_lack_the_ending_of_their_name() -> None:
    """As documentation of Triton prints them."""
    page = 'x{le="1"} 8\nx{le="+Inf"} 8\nx_sum 4\nx_count 8\n'
    assert told(page) == Distribution(8.0, 4.0, 0.5, 0.95)


def test_a_histogram_without_buckets_has_a_mean() -> None:
    """Or with buckets of which nobody says how many there are in all."""
    assert told("x_sum 4\nx_count 8\n") == Distribution(8.0, 4.0)
    assert told('x_bucket{le="1"} 8\nx_sum 4\nx_count 9\n') == Distribution(9.0, 4.0)


def test_a_summary_says_its_quantiles_itself() -> None:
    """Of one series: those of several do not add up."""
    one = 'x{m="a",quantile="0.5"} 40\nx{m="a",quantile="0.95"} 90\nx_sum{m="a"} 500\n'
    one += 'x_count{m="a"} 10\n'
    assert told(one, "x * 1e-6") == Distribution(10.0, 0.0005, 0.00004, 0.00009)
    two = one + one.replace('"a"', '"b"')
    assert told(two, "x * 1e-6") == Distribution(20.0, 0.001)


def test_two_counters_are_a_mean() -> None:
    """Microseconds in all, over how many there were."""
    page = 'us{m="a"} 3000000\nus{m="b"} 1000000\nn{m="a"} 2\nn{m="b"} 3\n'
    assert told(page, "us * 1e-6 / n") == Distribution(5.0, 4.0)


@pytest.mark.parametrize(
    ("page", "why"),
    [
        pytest.param("y 1\n", "x is not exposed", id="it is not there"),
        pytest.param("x_sum 1\n", "x_count is not exposed", id="no count"),
        pytest.param("x_count 1\n", "x_sum is not exposed", id="no sum"),
        pytest.param("x_sum NaN\nx_count 1\n", "x_sum is nan", id="a sum that is none"),
        pytest.param("x_sum 1\nx_count -1\n", "x_count is -1", id="a negative count"),
        pytest.param(
            "x_sum 18446744073709551615\nx_count 1\n",
            "x_sum is 1.84467e+19, which stands for unknown",
            id="a sum that stands for unknown",
        ),
        pytest.param(
            'x_bucket{le="1"} 5\nx_bucket{le="2"} 4\nx_bucket{le="+Inf"} 5\nx_sum 1\nx_count 5\n',
            "x has buckets whose counts fall",
            id="counts that fall",
        ),
        pytest.param(
            'x_bucket{le="1"} NaN\nx_bucket{le="+Inf"} 5\nx_sum 1\nx_count 5\n',
            "x has nan up to 1",
            id="a count that is none",
        ),
        pytest.param(
            'x_bucket{le="much"} 5\nx_sum 1\nx_count 5\n',
            "x has a bucket up to 'much'",
            id="a bound that is none",
        ),
    ],
)
def test_what_is_not_whole_is_no_reading(page: str, why: str) -> None:
    """Half a histogram would look like fast answers."""
    assert told(page) == NoReading(why)
