# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench platform` from its first object to its last: its report's shape, no timings."""

import json
from collections.abc import Iterator

import pytest

from tests.lab import played
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = ("--services", "50", "--replicas", "2", "--seconds", "5", "--changes-per-s", "10")


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Iterator[Lab]:
    with played.played_nodes(lab, 2):
        yield lab


def test_a_small_run_reports_every_figure_and_takes_away_what_it_made(nodes: Lab) -> None:
    ran = played.run(nodes, *SMALL, "--json", capture_output=True)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["services"], report["pods"], report["nodes"]) == (50, 100, 2)
    assert report["start"]["synced_s"] > 0
    for phase in (report["steady"], report["wave"]):
        assert phase["ticks"] > 0
        assert 0 < phase["tick_p50_s"] <= phase["tick_p99_s"]
        assert phase["cpu_cores"] > 0
        assert phase["rss_max_mib"] > 0
        assert phase["api_requests_per_s_by_kind"]["update leases"] > 0
    assert report["steady"]["changes_per_s"] == 0
    assert report["wave"]["changes_per_s"] > 0
    assert report["wave"]["change_seen_p50_s"] > 0
    assert report["wave"]["changes_unseen"] == 0
    assert report["targets"].keys() >= {"tick_p99_met", "rss_met"}
    left = nodes.kubectl("get", "namespace", "tidegate-bench", "--ignore-not-found", "-o", "name")
    if left:  # going, with nothing in it
        assert not nodes.get("deployments,services,pods", "-n", "tidegate-bench")["items"]


def test_a_namespace_with_other_things_is_refused_and_left_alone(nodes: Lab) -> None:
    with nodes.namespace("others") as namespace:
        nodes.kubectl("create", "service", "clusterip", "theirs", "--tcp=80", "-n", namespace)
        ran = played.run(nodes, "--namespace", namespace, capture_output=True)
        assert ran.returncode == 2
        assert f"--namespace {namespace}: it has services that are not of this" in ran.stderr
        assert nodes.get("services", "-n", namespace)["items"]


def test_without_played_nodes_nothing_is_made(nodes: Lab) -> None:
    ran = played.run(nodes, "--nodes", "type=none", capture_output=True)
    assert ran.returncode == 2
    assert "--nodes type=none: no node has this label" in ran.stderr
