# SPDX-License-Identifier: Apache-2.0
"""The values: few, checked, and the same wherever they are told."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from autoscaler import cluster_settings
from autoscaler.app.activator import app as activator
from autoscaler.cluster_settings import ClusterSettings
from autoscaler.prometheus_settings import PrometheusSettings
from docs import chart as pages
from tests.chart.rendering import CHART, ROOT, Helm, Refused

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, with where it stands."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from objects(value, f"{path}/{number}")


# Helm's own key for dependencies, and three that only the API server knows in full.
OPEN = {"global", "nodeAffinity", "podAffinity", "podAntiAffinity"}


@pytest.mark.parametrize(
    ("path", "node"), list(objects(SCHEMA)), ids=[path or "/" for path, _ in objects(SCHEMA)]
)
def test_no_object_of_the_schema_takes_unknown_keys(path: str, node: dict[str, Any]) -> None:
    """Only the named ones are open; maps of names say what their values are."""
    if path.rsplit("/", 1)[-1] not in OPEN:
        rest = node.get("additionalProperties", True)
        assert rest is False or (isinstance(rest, dict) and rest), path


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 3}, "replicas"),
        ({"image": {"registry": "x"}}, "registry"),
        ({"controller": {"replica": 3}}, "replica"),
        ({"activator": {"resources": {"limit": {}}}}, "limit"),
        ({"networkPolicy": {"apiFrom": [{"namespace": "x"}]}}, "namespace"),
        ({"scaleKinds": ["Rollout.argoproj.io"]}, "scaleKinds"),
        ({"tolerations": [{"keys": "gpu"}]}, "keys"),
        ({"scheduler": {"enable": True}}, "enable"),
        ({"scheduler": {"migProfiles": ["big"]}}, "migProfiles"),
        ({"scheduler": {"nodeAgent": {"gpus": 8}}}, "gpus"),
        ({"scheduler": {"nodeAgent": {"groups": []}}}, "groups"),
        ({"scheduler": {"nodeAgent": {"groups": [{"name": "a", "gpus": 8}]}}}, "nodeSelector"),
        ({"scheduler": {"nodeAgent": {"enforcement": "hard"}}}, "enforcement"),
        ({"scheduler": {"nodeAgent": {"mpsPipes": "here"}}}, "mpsPipes"),
        ({"scheduler": {"webhook": {"failurePolicy": "Fail"}}}, "failurePolicy"),
        ({"scheduler": {"webhook": {"certificate": {"from": "file"}}}}, "from"),
        (
            {"scheduler": {"enabled": True, "webhook": {"certificate": {"from": "secret"}}}},
            "webhook.certificate.secretName: missing",
        ),
        (
            {
                "scheduler.enabled": True,
                "scheduler.webhook.certificate": {"from": "secret", "secretName": "mine"},
            },
            "webhook.certificate.ca: missing",
        ),
        ({"controller": {"tickSeconds": 0}}, "tickSeconds"),
        ({"controller": {"tickSeconds": 61}}, "tickSeconds"),
        ({"controller": {"replicas": 0}}, "replicas"),
        ({"activator": {"drainSeconds": -1}}, "drainSeconds"),
        ({"namespaces": ["Team A"]}, "namespaces"),
        ({"image": {"pullPolicy": "always"}}, "pullPolicy"),
        ({"image": {"tag": "a b"}}, "tag"),
        ({"extraEnv": {"POD_IP": "10.0.0.1"}}, "POD_IP"),
        ({"monitoring": {"podMonitor": "yes"}}, "podMonitor"),
        ({"prometheus": {"url": "prometheus:9090"}}, "url"),
        ({"prometheus": {"url": "http://me:mine@prometheus:9090"}}, "url"),
        (
            {"prometheus": {"url": "http://p:9090", "secret": {"bearerToken": "token"}}},
            "prometheus.secret.name: missing",
        ),
    ],
    ids=lambda x: json.dumps(x) if isinstance(x, dict) else None,
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, values: dict[str, Any], words: str) -> None:
    """Unknown keys and values out of range end the rendering, and the line says which."""
    with pytest.raises(Refused, match=words):
        helm.render(values)


def test_a_parent_chart_may_hand_down_its_globals(helm: Helm) -> None:
    """Tidegate can be a dependency."""
    assert helm.render({"global": {"team": "serving"}}).of("Deployment")


def test_defaults_are_those_of_the_code(helm: Helm) -> None:
    """The config file of an untouched chart says what the controller would do without one."""
    assert cluster_settings.parse(helm.render().config()) == ClusterSettings()


def test_prometheus_is_asked_as_the_values_say(helm: Helm, tmp_path: Path) -> None:
    """Its secrets are files of a Secret that the controller's pod mounts."""
    secret = {"name": "mimir", "password": "pass", "ca": "ca.crt", "cert": "a.crt", "key": "a.key"}
    rendered = helm.render(
        {
            "prometheus": {
                "url": "https://mimir/prometheus",
                "username": "tidegate",
                "headers": {"X-Scope-OrgID": "team"},
                "secret": secret,
            }
        }
    )
    pod = rendered.pods()["tidegate-controller"]["spec"]
    (mounted,) = [v for v in pod["volumes"] if "secret" in v]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == mounted["name"]]
    assert mounted["secret"]["secretName"] == "mimir"
    config = rendered.config()["prometheus"]
    files = {name: config[name] for name in config if name.endswith("-file")}
    for name, path in files.items():
        assert Path(path).parent == Path(mount["mountPath"])
        (tmp_path / Path(path).name).touch()
        config[name] = str(tmp_path / Path(path).name)
    said = cluster_settings.parse({"prometheus": config}).prometheus
    assert said == PrometheusSettings(
        "https://mimir/prometheus",
        username="tidegate",
        headers={"X-Scope-OrgID": "team"},
        password_file=tmp_path / "pass",
        ca_file=tmp_path / "ca.crt",
        cert_file=tmp_path / "a.crt",
        key_file=tmp_path / "a.key",
    )


def test_of_prometheus_the_defaults_are_those_of_the_code(helm: Helm) -> None:
    """Naming one changes nothing else."""
    rendered = helm.render({"prometheus.url": "http://p:9090"})
    assert cluster_settings.parse(rendered.config()).prometheus == PrometheusSettings(
        "http://p:9090"
    )


def test_the_drain_is_that_of_the_code() -> None:
    """An activator that is started by hand drains as long as the chart's."""
    shown = CliRunner().invoke(activator, ["--help"]).stdout
    said = re.search(r"default:\s+(\d+)\s+on\s+Kubernetes,\s+else\s+30", shown)
    assert said
    assert int(said[1]) == VALUES["activator"]["drainSeconds"]


def test_every_value_is_described() -> None:
    """A key without a comment would be in nobody's documentation."""
    described = {value.path for value in pages.values((CHART / "values.yaml").read_text())}

    def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        if path in described or not isinstance(tree, dict):
            yield path
        else:
            for key, value in tree.items():
                yield from leaves(value, (*path, key))

    assert set(leaves(VALUES)) == described


def test_the_schema_knows_every_default() -> None:
    """Its defaults, put together, are values.yaml."""

    def defaults(node: dict[str, Any]) -> Any:
        if "default" in node:
            return node["default"]
        inner = node.get("properties", {})
        return {key: defaults(inner[key]) for key in inner if "$comment" not in inner[key]}

    assert defaults(SCHEMA) == VALUES


def test_what_is_written_from_values_is_current() -> None:
    """README, schema texts, dashboard, list of annotations."""
    assert pages.main(["--check"]) == 0


def test_chart_and_package_have_one_version() -> None:
    """They are released together."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
