# SPDX-License-Identifier: Apache-2.0
"""Dashboard and alerts ask for what the code tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.dashboard import PANELS
from docs.metrics import collectors, spelt
from tests.chart.rendering import CHART, Helm

RULES = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())["groups"][0]["rules"]
QUERIES = {panel.title: list(panel.queries.values()) for panel in PANELS} | {
    rule["alert"]: [rule["expr"]] for rule in RULES
}
_METRIC = re.compile(r"\btidegate_[a-z_]+")


def told() -> set[str]:
    """Every metric of controller, activator and worker, as a query must spell it."""
    return {
        spelt(family)
        for of in collectors().values()
        for collector in of
        for family in collector.collect()
    }


@pytest.mark.parametrize(("where", "queries"), QUERIES.items(), ids=QUERIES)
def test_every_metric_that_is_asked_for_exists(where: str, queries: list[str]) -> None:
    """A renamed metric takes panels and alerts along."""
    known = told()
    for query in queries:
        asked = {
            re.sub(r"_(bucket|sum|count)$", "", name) if name not in known else name
            for name in _METRIC.findall(query)
        }
        assert asked
        assert asked <= known, where


@pytest.mark.parametrize(("where", "queries"), QUERIES.items(), ids=QUERIES)
def test_every_query_is_balanced(where: str, queries: list[str]) -> None:
    """Composed text: a bracket too few would show as an empty panel."""
    pairs = {")": "(", "]": "[", "}": "{"}
    for query in queries:
        open_ones: list[str] = []
        for sign in re.sub(r'"[^"]*"', "", query):
            if sign in pairs.values():
                open_ones.append(sign)
            elif sign in pairs:
                assert open_ones.pop() == pairs[sign], where
        assert not open_ones, where


PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool (Debian: prometheus)")


def promtool(*words: str) -> None:
    done = subprocess.run(  # noqa: S603  our own words
        [str(PROMTOOL), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """Its own parser, once Grafana has filled in its interval."""
    texts = [query for panel in PANELS for query in panel.queries.values()]
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(texts)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    """Stories of an hour, told to Prometheus: see alerts.yaml."""
    shutil.copy(CHART / "files" / "rules.yaml", tmp_path)
    shutil.copy(Path(__file__).parent / "alerts.yaml", tmp_path)
    promtool("test", "rules", str(tmp_path / "alerts.yaml"))


def test_every_alert_has_a_story() -> None:
    """One that never fired anywhere may never fire."""
    stories = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())["tests"]
    told_of = {
        case["alertname"]
        for story in stories
        for case in story["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert told_of == {rule["alert"] for rule in RULES}


def test_the_dashboard_is_what_grafana_loads(helm: Helm) -> None:
    """Its sidecar finds the ConfigMap by label; panels lie side by side, none over another."""
    found = helm.render().one("ConfigMap", "tidegate-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    board: dict[str, Any] = json.loads(found["data"]["tidegate.json"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_alerts_are_the_same_in_both_shapes(helm: Helm) -> None:
    """As rule file and as PrometheusRule, with Prometheus's own templates left alone."""
    rendered = helm.render({"monitoring": {"prometheusRule": True}})
    file = yaml.safe_load(
        rendered.one("ConfigMap", "tidegate-rules")["data"]["tidegate.rules.yaml"]
    )
    assert file == rendered.one("PrometheusRule", "tidegate")["spec"]
    assert file["groups"][0]["rules"] == RULES
    assert "{{ $labels.name }}" in RULES[0]["annotations"]["summary"]


def test_pods_are_scraped_once_either_way(helm: Helm) -> None:
    """By annotation, or by a PodMonitor that leaves the services' namespaces alone."""
    plain = helm.render()
    watched = helm.render({"monitoring": {"podMonitor": True, "labels": {"release": "prom"}}})
    for name in ("tidegate-controller", "tidegate-activator"):
        assert plain.pods()[name]["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
        assert "prometheus.io/scrape" not in (watched.pods()[name]["metadata"]["annotations"] or {})
    assert not plain.of("PodMonitor")
    (monitor,) = watched.of("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert all(end["honorLabels"] for end in monitor["spec"]["podMetricsEndpoints"])
