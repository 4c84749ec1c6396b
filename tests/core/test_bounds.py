# SPDX-License-Identifier: Apache-2.0
"""Every decision says which stage had its way, and what the policy asked for before it."""

from collections.abc import Callable
from typing import Any

import pytest

from autoscaler.core.decide import Decision, decide, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import RateRule, RateStep
from autoscaler.core.proposal import BOUNDS, Bound
from autoscaler.core.signals import Measure
from tests.builders import a_policy, a_reading, a_snapshot
from tests.story import Story

AT_ONCE = RateRule(window_s=0.0)


def after(level: dict[str, float | None], *, scale: int = 2, **policy: Any) -> Decision:
    """The last decision of a service that had `scale` replicas, after five seconds of `level`."""
    story = Story(a_policy(**({"scale_down": AT_ONCE} | policy)), scale=scale)
    for _ in range(5):
        decision = story.play(story.now_s + 1.0, level)
    return decision


def set_by_somebody(scale: int) -> Decision:
    """Work for four replicas, and a person who says otherwise."""
    memory = first_memory(a_snapshot(scale=2), LeadTimes())
    measures = {measure: a_reading(0.0) for measure in Measure}
    snapshot = a_snapshot(scale=scale, measures=measures, written_by="kubectl")
    return decide(snapshot, a_policy(), memory, 1.0)[0]


@pytest.mark.parametrize(
    ("decision", "wished", "replicas", "bound_by"),
    [
        (lambda: after({"concurrency": 24}), 3, 3, Bound.TARGET),
        (lambda: after({"concurrency": None}, scale=4), 4, 4, Bound.HOLD),
        (lambda: after({"concurrency": 0}, min_replicas=2), 0, 2, Bound.MIN),
        (lambda: after({"concurrency": 800}), 100, 10, Bound.MAX),
        (
            lambda: after({"concurrency": 17}, scale_up=RateRule((), 0.0, tolerance_ratio=0.1)),
            3,
            2,
            Bound.TOLERANCE,
        ),
        (
            lambda: after({"concurrency": 8}, scale_down=RateRule(window_s=60.0)),
            1,
            2,
            Bound.WINDOW,
        ),
        (
            lambda: after({"concurrency": 40}, scale_up=RateRule(window_s=60.0)),
            5,
            2,
            Bound.WINDOW,
        ),
        (
            lambda: after(
                {"concurrency": 80}, scale_up=RateRule((RateStep(60.0, replicas=1),), 0.0)
            ),
            10,
            3,
            Bound.RATE_LIMIT,
        ),
        (
            lambda: after({"concurrency": 0}, activation_replicas=2),
            0,
            2,
            Bound.ACTIVATION,
        ),
        (
            lambda: after({"concurrency": 0}, max_replicas=1, scale_down=RateRule(window_s=60.0)),
            0,
            1,
            Bound.WINDOW,
        ),
        (lambda: after({"concurrency": 0}, scale_to_zero_after=1.0), 0, 0, Bound.ASLEEP),
        (lambda: set_by_somebody(0), 0, 0, Bound.SWITCHED_OFF),
        (lambda: set_by_somebody(7), 7, 7, Bound.COOL_OFF),
        (lambda: after({"concurrency": 40}, dry_run=True), 5, 2, Bound.DRY_RUN),
        (lambda: after({"concurrency": 40}, paused=True, dry_run=True), 5, 2, Bound.PAUSED),
    ],
    ids=lambda value: str(value) if isinstance(value, Bound) else "",
)
def test_the_stage_that_had_its_way_is_named(
    decision: Callable[[], Decision], wished: int, replicas: int, bound_by: Bound
) -> None:
    """Each rule by a story in which it has the last word."""
    made = decision()
    assert (made.wished, made.replicas, made.bound_by) == (wished, replicas, bound_by)


def test_more_than_the_most_is_brought_down_by_that_rule() -> None:
    """Ten replicas, and then only two are allowed: no window keeps the rest."""
    memory = first_memory(a_snapshot(scale=10), LeadTimes())
    decision, _ = decide(a_snapshot(scale=10), a_policy(max_replicas=2), memory, 0.0)
    assert (decision.replicas, decision.bound_by) == (2, Bound.MAX)
    assert decision.because[-1] == "active: max-replicas=2"


def test_every_bound_has_its_words() -> None:
    """The documentation and the metrics list the same rules."""
    assert BOUNDS.keys() == set(Bound)
    assert all(BOUNDS.values())
