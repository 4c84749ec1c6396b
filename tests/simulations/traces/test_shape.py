# SPDX-License-Identifier: Apache-2.0
"""Cutting, scaling and making traces."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from autoscaler.errors import BadInput
from simulations.traces.arrivals import Arrival
from simulations.traces.describe import describe
from simulations.traces.shape import Shape, shaped
from simulations.traces.synthetic import Synthetic, synthesize
from tests.simulations.runs import at


def times(arrivals: list[Arrival], shape: Shape, *, seed: int = 0) -> list[float]:
    return [arrival.at_s for arrival in shaped(arrivals, shape, chance=Random(seed))]


def test_a_shape_that_asks_for_nothing_changes_nothing() -> None:
    assert times(at(0.0, 1.5, 9.0), Shape()) == [0.0, 1.5, 9.0]


def test_the_window_is_half_open_and_counts_from_its_start() -> None:
    assert times(at(0.0, 2.0, 5.0, 6.0), Shape(from_s=2.0, until_s=6.0)) == [0.0, 3.0]


def test_the_limit_counts_what_the_window_left() -> None:
    assert times(at(0.0, 2.0, 5.0, 6.0), Shape(from_s=1.0, limit=2)) == [1.0, 4.0]


def test_speed_compresses_time() -> None:
    assert times(at(0.0, 2.0, 5.0), Shape(from_s=2.0, speedup=2.0)) == [0.0, 1.5]


def test_a_whole_rate_scale_repeats_each_request_within_a_second() -> None:
    scaled = times(at(10.0, 20.0), Shape(rate_scale=3.0))
    assert len(scaled) == 6
    assert sum(10.0 <= at_s < 11.0 for at_s in scaled) == 3
    assert sum(20.0 <= at_s < 21.0 for at_s in scaled) == 3
    assert scaled == sorted(scaled)


def test_a_part_of_the_rate_is_drawn_by_the_seed() -> None:
    arrivals = at(*(float(n) for n in range(1000)))
    halved = times(arrivals, Shape(rate_scale=0.5), seed=3)
    assert 400 < len(halved) < 600
    assert halved == times(arrivals, Shape(rate_scale=0.5), seed=3)
    assert halved != times(arrivals, Shape(rate_scale=0.5), seed=4)


def test_one_service_of_several_has_to_be_named() -> None:
    mixed = [replace(a, service=name) for a, name in zip(at(0, 1, 2), "bab", strict=True)]
    assert times(mixed, Shape(service="b")) == [0.0, 2.0]
    for service, said in ((None, "2 services; name one: a, b"), ("c", "permitted: a, b")):
        with pytest.raises(BadInput, match=said):
            times(mixed, Shape(service=service))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (Shape(from_s=10.0), "no request from 10 s until the end; the trace's last comes at 2 s"),
        (Shape(from_s=1.5, until_s=1.5), "no request from 1.5 s until 1.5 s"),
        (Shape(rate_scale=1e-9), "--rate-scale 1e-09: leaves no request"),
        (Shape(service="x"), "leave it out: the trace names none"),
    ],
)
def test_a_shape_that_leaves_nothing_says_so(shape: Shape, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        times(at(0.0, 1.0, 2.0), shape)


def test_a_flat_synthetic_trace_has_the_rate_and_tokens_it_was_asked_for() -> None:
    numbers = Synthetic(duration_s=2000.0, rate_per_s=5.0, prompt_tokens=500, output_tokens=50)
    arrivals = synthesize(numbers, Random(0))
    assert 5.0 * 2000 * 0.95 < len(arrivals) < 5.0 * 2000 * 1.05
    assert sum(a.prompt_tokens for a in arrivals) / len(arrivals) == pytest.approx(500, rel=0.1)
    assert sum(a.output_tokens for a in arrivals) / len(arrivals) == pytest.approx(50, rel=0.1)
    assert all(before.at_s <= after.at_s for before, after in pairwise(arrivals))
    assert arrivals == synthesize(numbers, Random(0))


def test_a_synthetic_day_begins_at_its_trough_and_has_its_peak_at_noon() -> None:
    numbers = Synthetic(duration_s=4000.0, period_s=4000.0, rate_per_s=5.0, peak_to_trough=9.0)
    arrivals = synthesize(numbers, Random(0))
    night = sum(a.at_s < 200 for a in arrivals)
    noon = sum(1900 <= a.at_s < 2100 for a in arrivals)
    assert 6 * night < noon < 14 * night


def test_bursts_and_gaps_make_a_synthetic_trace_uneven() -> None:
    numbers = Synthetic(
        duration_s=4000.0, burst_every_s=200.0, burst_factor=20.0, idle_every_s=400.0,
        idle_lasts_s=200.0,
    )  # fmt: skip
    found = describe(synthesize(numbers, Random(0)))
    assert isinstance(found["idle_10s_ratio"], float)
    assert found["idle_10s_ratio"] > 0.1
    assert isinstance(found["peak_1s_rps"], float)
    assert found["peak_1s_rps"] > 20


def test_every_synthetic_number_out_of_range_is_named() -> None:
    with pytest.raises(BadInput) as caught:
        synthesize(
            Synthetic(
                duration_s=0, rate_per_s=float("nan"), burst_factor=0.5, period_s=float("inf")
            ),
            Random(0),
        )
    said = [line.split(":")[0] for line in caught.value.problems]
    assert said == ["--duration", "--rate", "--burst-factor", "--period"]
