# SPDX-License-Identifier: Apache-2.0
"""Numbers that no honest source would give: none moves a count down or breaks a decision."""

import math

import pytest

from autoscaler.core.decide import decide, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.signals import Measure, NoReading, Reading, reading
from tests.builders import a_policy, a_reading, a_snapshot


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_what_is_not_a_number_of_something_is_no_reading(value: float) -> None:
    """NaN, infinities and negatives are refused where numbers come in."""
    assert isinstance(reading(value, at_s=0, source="scrape"), NoReading)


@pytest.mark.parametrize("total", [1e308, 2.0**64 - 1])
def test_a_huge_total_is_bounded_by_max_replicas(total: float) -> None:
    """A wild counter may cost money up to the user's bound, not more, and never a crash."""
    policy, memory = a_policy(), first_memory(a_snapshot(scale=2), LeadTimes())
    for at_s, value in ((0.0, 0.0), (1.0, total), (2.0, total)):
        measures = {m: a_reading(value, at_s=at_s) for m in Measure}
        snapshot = a_snapshot(at_s=at_s, scale=2, measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert 2 <= decision.replicas <= policy.max_replicas


def test_a_reading_for_a_part_of_the_replicas_may_only_raise() -> None:
    """Half of the replicas reporting little says nothing about the other half."""
    policy = a_policy()
    memory = first_memory(a_snapshot(scale=4), LeadTimes())
    for at_s in range(200):
        measures: dict[Measure, Reading | NoReading] = {
            m: a_reading(0.0, at_s=at_s, share_ratio=0.5) for m in Measure
        }
        snapshot = a_snapshot(at_s=at_s, scale=4, measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        assert decision.replicas == 4


def test_nothing_measured_at_all_holds() -> None:
    """A service that no source speaks of keeps its count for ever, and the reason says so."""
    policy, memory = a_policy(), first_memory(a_snapshot(scale=3), LeadTimes())
    for at_s in range(0, 4000, 100):
        decision, memory = decide(a_snapshot(at_s=at_s, scale=3), policy, memory, at_s)
    assert decision.replicas == 3
    assert "no source reports it" in "; ".join(decision.because)
