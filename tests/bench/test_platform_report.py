# SPDX-License-Identifier: Apache-2.0
"""The figures of a platform report, from made-up scrapes."""

from collections.abc import Mapping
from math import inf
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from autoscaler.adapters.kubernetes.metrics import TickSeconds, register
from autoscaler.bench.platform_report import Phase, phase_figures, requests_per_s, targets
from autoscaler.bench.scrape import Scrape, Ticks, read

MIB = 2**20


def a_scrape(**changes: Any) -> Scrape:
    """At time 0, of a controller that leads and has done nothing."""
    fields: dict[str, Any] = {
        "at_s": 0.0,
        "leads": True,
        "cpu_s": 0.0,
        "requests": {},
        "ages_s": {},
        "ticks": {},
        "ticks_cpu": {},
    }
    return Scrape(**(fields | changes))


def some_ticks(*, fast: int, slow: int) -> Mapping[str, Ticks]:
    """So many below 0.1 s, and so many between 1 and 2 s."""
    up_to = {0.1: float(fast), 1.0: float(fast), 2.0: float(fast + slow), inf: float(fast + slow)}
    return {"all": Ticks(fast + slow, fast * 0.05 + slow * 1.5, up_to)}


def test_what_the_controller_exposes_is_read_back() -> None:
    registry = CollectorRegistry()
    TickSeconds(registry).took(0.07, cpu_s=0.03, all_services=True)
    sent = {("patch", "deployments"): 3, ("list", "pods"): 20}
    register(registry, leads=lambda: True, requests=sent, ages_s=lambda: {"pods": 1.5})
    seen = read(generate_latest(registry).decode(), at_s=7.0)
    assert (seen.at_s, seen.leads, seen.ages_s) == (7.0, True, {"pods": 1.5})
    assert seen.requests == sent
    assert seen.cpu_s > 0
    assert seen.ticks_of("all").mean_s() == pytest.approx(0.07)
    assert 0.06 <= (seen.ticks_of("all").quantile_s(0.5) or 0) <= 0.08
    assert seen.cpu_of("all").mean_s() == pytest.approx(0.03)
    assert seen.ticks_of("some").quantile_s(0.5) is None


def test_a_controller_that_stands_by_is_no_leader() -> None:
    registry = CollectorRegistry()
    register(registry, leads=lambda: False, requests={}, ages_s=dict)
    assert not read(generate_latest(registry).decode(), at_s=0.0).leads


def test_figures_are_of_the_phase_alone_and_not_of_what_went_before() -> None:
    began = a_scrape(
        at_s=100.0, cpu_s=50.0, requests={("list", "pods"): 20}, ticks=some_ticks(fast=0, slow=9)
    )
    ended = a_scrape(
        at_s=110.0,
        cpu_s=52.0,
        requests={("list", "pods"): 20, ("patch", "deployments"): 30},
        ages_s={"pods": 0.2, "services": 40.0},
        ticks=some_ticks(fast=10, slow=9),
    )
    figures = phase_figures(Phase(began, ended, 100 * MIB, 40, (0.3, 0.1), 1))
    assert figures["seconds"] == 10.0
    assert figures["cpu_cores"] == 0.2
    assert (figures["ticks"], figures["tick_mean_s"]) == (10, 0.05)
    assert figures["tick_p99_s"] == pytest.approx(0.099)
    assert figures["rss_max_mib"] == 100.0
    assert figures["api_requests_per_s"] == 3.0
    assert figures["api_requests_per_s_by_kind"] == {"patch deployments": 3.0}
    assert (figures["changes_per_s"], figures["changes_unseen"]) == (4.0, 1)
    assert (figures["change_seen_p50_s"], figures["change_seen_p99_s"]) == (0.1, 0.3)
    assert figures["informer_age_max_s"] == 40.0


def test_what_was_not_seen_is_null_and_never_zero() -> None:
    figures = phase_figures(Phase(a_scrape(), a_scrape(at_s=1.0), MIB))
    for name in ("tick_p50_s", "tick_p99_s", "tick_mean_s", "change_seen_p50_s"):
        assert figures[name] is None
    assert figures["informer_age_max_s"] is None


def test_a_tick_beyond_the_last_bucket_is_told_as_its_bound() -> None:
    assert Ticks(1.0, 60.0, {10.0: 0.0, inf: 1.0}).quantile_s(0.99) == 10.0


def test_requests_come_most_frequent_first_and_those_not_made_are_left_out() -> None:
    began = a_scrape(requests={("get", "leases"): 5})
    ended = a_scrape(
        at_s=2.0,
        requests={("get", "leases"): 5, ("update", "leases"): 2, ("patch", "deployments"): 8},
    )
    assert list(requests_per_s(began, ended).items()) == [
        ("patch deployments", 4.0),
        ("update leases", 1.0),
    ]


@pytest.mark.parametrize(
    ("slow", "rss_bytes", "met"),
    [(0, 200 * MIB, (True, True)), (1, 200 * MIB, (False, True)), (0, 400 * MIB, (True, False))],
    ids=["both met", "a tick is too slow", "too much memory"],
)
def test_a_target_is_met_only_if_every_phase_meets_it(
    slow: int, rss_bytes: int, met: tuple[bool, bool]
) -> None:
    good = Phase(a_scrape(), a_scrape(at_s=9.0, ticks=some_ticks(fast=20, slow=0)), 100 * MIB)
    other = Phase(a_scrape(), a_scrape(at_s=9.0, ticks=some_ticks(fast=20, slow=slow)), rss_bytes)
    found = targets([good, other])
    assert (found["tick_p99_met"], found["rss_met"]) == met


def test_a_phase_without_a_tick_proves_nothing() -> None:
    assert targets([Phase(a_scrape(), a_scrape(at_s=9.0), MIB)])["tick_p99_met"] is None
