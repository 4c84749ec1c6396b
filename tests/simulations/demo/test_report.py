# SPDX-License-Identifier: Apache-2.0
"""The demo's report conserves requests, and says what it failed to show."""

import pytest

from simulations.demo.report import build, failures, quantiles_s
from simulations.demo.traffic import VISITS, Tally, arrivals, recorded_trace, shots
from tests.simulations.demo.builders import a_service, a_status


def test_what_is_still_open_counts_as_lost() -> None:
    """A request without an answer is not forgotten by the sum."""
    tally = Tally(sent=5, answered=3, lost=["504: too late"], latencies_s=[0.1, 0.2, 0.3])
    report = build({"iris": tally}, {"iris": [0, 2, 0]}, {"iris": a_status()}, trace="t", seconds=1)
    assert (report["sent"], report["answered"], report["lost"]) == (5, 3, 2)


@pytest.mark.parametrize(
    ("tally", "path", "words"),
    [
        (Tally(sent=2, answered=1, lost=["502: gone"]), [0, 2, 0], "502: gone"),
        (Tally(sent=1, answered=1), [0, 1, 0], "did not go from 0"),
        (Tally(sent=1, answered=1), [0, 2, 1], "did not go from 0"),
    ],
    ids=["a lost request", "never two replicas", "not back at zero"],
)
def test_a_demo_that_did_not_show_its_point_says_so(
    tally: Tally, path: list[int], words: str
) -> None:
    """Each broken promise is a sentence; the command exits with 1 on any."""
    report = build({"iris": tally}, {"iris": path}, {"iris": a_status()}, trace="t", seconds=1)
    assert words in " ".join(failures(report))


def test_a_demo_that_went_well_has_nothing_to_say() -> None:
    """Zero, two, zero, and nothing lost."""
    tally = Tally(sent=1, answered=1, latencies_s=[0.1])
    report = build({"iris": tally}, {"iris": [0, 2, 0]}, {"iris": a_status()}, trace="t", seconds=1)
    assert failures(report) == []


def test_no_answer_has_no_latency() -> None:
    """Nothing answered is null, not 0 seconds."""
    assert quantiles_s([]) == {"p50": None, "p95": None, "p99": None, "max": None}


def test_without_a_recorded_trace_a_seeded_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without any data sees the same demo, the same every time."""
    monkeypatch.setenv("TIDEGATE_DATA", "/nowhere")
    assert recorded_trace() is None
    name, first = arrivals(None, seed=7)
    assert "seed 7" in name
    assert first == arrivals(None, seed=7)[1]


def test_every_visit_brings_requests_in_order() -> None:
    """Both services get their stretches, compressed, and never more rows than there are."""
    services = [a_service("a"), a_service("b", rows=3)]
    planned = shots(arrivals(None, seed=0)[1], services)
    assert [shot.at_s for shot in planned] == sorted(shot.at_s for shot in planned)
    assert {shot.service for shot in planned} == {"a", "b"}
    assert all(1 <= shot.rows <= 3 for shot in planned if shot.service == "b")
    assert planned[-1].at_s > max(visit.starts_at_s for visit in VISITS)
