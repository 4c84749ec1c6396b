# SPDX-License-Identifier: Apache-2.0
"""Time, order and numbers: what a report is made of."""

import xml.etree.ElementTree as ET

import pytest

from simulations import invariants, plot, report
from simulations.clock import VirtualClock
from simulations.decisions import DecisionCount, ranked_counts
from simulations.events import EventQueue
from simulations.invariants import InvariantViolated
from simulations.replay import Replay
from simulations.spread import quantile, spread
from tests.simulations.runs import a_run, at


def test_events_come_by_time_and_then_in_the_order_they_were_planned() -> None:
    events, seen = EventQueue(), []
    for at_s, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")):
        events.plan(at_s, lambda name=name: seen.append(name))  # type: ignore[misc]
    assert events.next_at_s() == 1.0
    while events.next_at_s() is not None:
        events.pop()[1]()
    assert seen == ["a", "b", "c", "d"]
    with pytest.raises(IndexError):
        events.pop()


def test_the_clock_stands_still_or_goes_on_but_never_back() -> None:
    clock = VirtualClock()
    clock.advance_to(2.0)
    clock.advance_to(2.0)
    assert clock.now_s() == 2.0
    with pytest.raises(InvariantViolated):
        clock.advance_to(1.0)


def test_a_quantile_is_the_smallest_value_that_covers_its_part() -> None:
    ranked = [float(n) for n in range(1, 21)]
    assert [quantile(ranked, q) for q in (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)] == [
        1.0, 1.0, 10.0, 19.0, 20.0, 20.0,
    ]  # fmt: skip
    assert spread([])["p50"] is None
    assert spread([4.0, 2.0]) == {
        "mean": 3.0, "p50": 2.0, "p90": 4.0, "p95": 4.0, "p99": 4.0, "max": 4.0,
    }  # fmt: skip


def test_attainment_counts_every_other_end_as_a_miss() -> None:
    # Latencies 12.0 and 13.5 s, three refused: one of five within 12 s.
    settings = a_run(hold_limit="2", slo_s=12.0)
    outcome = Replay(at(0.5, 1.0, 1.5, 2.0, 2.5), settings).run()
    figures = report.build(outcome, settings, trace={}, policy={})
    assert figures["attainment"] == {"slo_s": 12.0, "within": 1, "ratio": 0.2}
    assert figures["requests"] == {
        "sent": 5, "answered": 2, "refused": 3, "expired": 0, "lost": 0, "held": 2,
        "held_with_no_replica_ready": 2, "most_held_at_once": 2,
    }  # fmt: skip
    assert figures["oracle"] == {
        "fluid_bound_replica_seconds": 4.0,
        "replica_seconds_per_bound": 3.5,  # taken from 0.5 to 14.5 s
    }
    assert figures["invariants_kept"] == list(invariants.NAMES)


def test_decisions_are_counted_by_reason_whatever_their_numbers() -> None:
    count = DecisionCount()
    Replay(at(0.5, 3.0), a_run(), on_decision=lambda d: count.add(d, refused=False)).run()
    figures = count.as_report()
    assert figures["raised"] == 1
    assert "concurrency=#/#" in count.by_reason
    assert not any(any(sign.isdigit() for sign in why) for why in count.by_why)
    assert ranked_counts({"b": 1, "a": 1, "c": 2}) == {"c": 2, "a": 1, "b": 1}


def test_a_run_is_drawn_as_well_formed_svg_with_every_series() -> None:
    outcome = Replay(at(0.5, 3.0, 40.0), a_run()).run()
    drawn = plot.as_svg(outcome.samples, title="a <b> & c", subtitle="d")
    root = ET.fromstring(drawn)  # noqa: S314  our own text
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == "a <b> & c"
    assert {"arrivals", "held", "in flight", "ready", "asked for", "time, s"} <= set(words)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 5


@pytest.mark.parametrize("span_s", [0.0, 0.5, 90.0, 3600.0, 86_400.0 * 14])
def test_a_drawing_may_span_a_moment_or_a_fortnight(span_s: float) -> None:
    samples = [plot.Sample(span_s * n / 9, 1, 0, 1, 1, 1) for n in range(10)]
    ET.fromstring(plot.as_svg(samples, title="t", subtitle="s"))  # noqa: S314  our own text
