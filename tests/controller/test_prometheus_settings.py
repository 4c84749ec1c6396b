# SPDX-License-Identifier: Apache-2.0
"""`[prometheus]` is read whole, or refused with a line for each problem."""

from pathlib import Path
from typing import Any

import pytest

from autoscaler import cluster_settings
from autoscaler.errors import BadInput
from autoscaler.prometheus_settings import PROMETHEUS_KEYS, PrometheusSettings
from autoscaler.settings import load

URL = "https://mimir.monitoring:8080/prometheus"


def parsed(base: Path, table: dict[str, Any]) -> PrometheusSettings | None:
    return cluster_settings.parse({"prometheus": table}, base=base).prometheus


def test_without_a_table_none_is_asked(tmp_path: Path) -> None:
    """Nor with one that is empty."""
    assert cluster_settings.parse({}).prometheus is None
    assert parsed(tmp_path, {}) is None


def test_an_address_is_all_that_it_takes(tmp_path: Path) -> None:
    """The rest has defaults; a slash at the end is nothing."""
    assert parsed(tmp_path, {"url": f"{URL}/"}) == PrometheusSettings(URL)


def test_defaults_are_those_of_the_documentation() -> None:
    """They stand there as a user would write them."""
    shown = {key.name: key.default for key in PROMETHEUS_KEYS}
    written = {name: shown[name] for name in ("refresh", "timeout", "window", "stale-after")}
    assert parsed(Path(), {"url": URL, **written}) == PrometheusSettings(URL)


def test_on_one_machine_it_is_the_same_table(tmp_path: Path) -> None:
    """Files are relative to the config file."""
    (tmp_path / "token").write_text("sesame")
    (tmp_path / "tidegate.toml").write_text(
        f'[prometheus]\nurl = "{URL}"\nbearer-token-file = "token"\nheaders = {{ A-B = "c" }}\n'
        '[services.iris]\nlisten = "127.0.0.1:8081"\ncommand = ["serve"]\n'
    )
    said = load(tmp_path / "tidegate.toml").prometheus
    assert said == PrometheusSettings(
        URL, bearer_token_file=tmp_path / "token", headers={"A-B": "c"}
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"refresh": "5s"}, ["prometheus.url: missing", "http://"]),
        ({"url": "prometheus:9090"}, ["prometheus.url", "'prometheus:9090'", "http://"]),
        ({"url": "ftp://p"}, ["prometheus.url", "'ftp://p'"]),
        ({"url": "http://"}, ["prometheus.url"]),
        ({"url": "http://p:99999"}, ["prometheus.url", "Port"]),
        ({"url": "http://me:mine@p"}, ["prometheus.url", "username and password-file"]),
        ({"url": "http://p/?a=b"}, ["prometheus.url", "nothing may follow"]),
        ({"url": "http://p/api/v1"}, ["prometheus.url", "leave out the path from /api on"]),
        ({"url": 9090}, ["prometheus.url", "9090"]),
        ({"url": URL, "uri": URL}, ["prometheus.uri", "did you mean 'url'?"]),
        ({"url": URL, "refresh": "2m"}, ["prometheus.refresh", "'2m'", "from 1s to 1m"]),
        ({"url": URL, "stale-after": "1s"}, ["prometheus.stale-after", "from 5s to 5m"]),
        ({"url": URL, "bearer-token-file": "no"}, ["bearer-token-file", "no", "No such file"]),
        ({"url": URL, "ca-file": "."}, ["prometheus.ca-file", "Is a directory"]),
        (
            {"url": URL, "bearer-token-file": "t", "username": "a", "password-file": "t"},
            ["prometheus.bearer-token-file", "username", "one of the two"],
        ),
        (
            {"url": URL, "bearer-token-file": "t", "headers": {"authorization": "x"}},
            ["prometheus.bearer-token-file", "headers.Authorization", "one of the two"],
        ),
        ({"url": URL, "username": "a"}, ["prometheus.password-file: missing", "username"]),
        ({"url": URL, "key-file": "t"}, ["prometheus.cert-file: missing", "key-file"]),
        (
            {"url": URL, "ca-file": "t", "insecure-skip-verify": True},
            ["prometheus.ca-file", "insecure-skip-verify"],
        ),
        ({"url": URL, "insecure-skip-verify": "yes"}, ["insecure-skip-verify", "true, false"]),
        ({"url": URL, "headers": {"a b": "c"}}, ["prometheus.headers", "'a b' is no name"]),
        ({"url": URL, "headers": {"a": "b\r\nc: d"}}, ["prometheus.headers", "no text of one"]),
        ({"url": URL, "headers": "a"}, ["prometheus.headers", "a table"]),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_with_its_remedy(
    tmp_path: Path, table: dict[str, Any], words: list[str]
) -> None:
    """It names the key, the value and what is permitted."""
    (tmp_path / "t").write_text("sesame")
    with pytest.raises(BadInput) as caught:
        parsed(tmp_path, table)
    (line,) = caught.value.problems
    assert "\n" not in line
    for word in words:
        assert word in line
