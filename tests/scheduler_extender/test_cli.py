# SPDX-License-Identifier: Apache-2.0
"""What is typed is checked in one line a problem, and the bench runs on a small cluster."""

import json

import pytest
from typer.testing import CliRunner

from scheduler_extender import cli
from scheduler_extender.bench import cli as bench_cli
from scheduler_extender.errors import BadInput
from scheduler_extender.settings import labels, listen_address


@pytest.mark.parametrize("text", ["", "x", "host:", ":1", "host:port", "host:70000"])
def test_an_address_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:8073"):
        listen_address(text)


def test_an_address_may_be_of_either_kind() -> None:
    assert listen_address("0.0.0.0:80") == ("0.0.0.0", 80)  # noqa: S104 - it is only read
    assert listen_address("[::1]:0") == ("::1", 0)


def test_every_wrong_option_is_told_in_a_line_and_ends_with_2() -> None:
    done = CliRunner().invoke(cli.app, ["--audit-s", "nan", "--kubeconfig", "/nowhere"])
    assert done.exit_code == 2
    assert [line.split(":")[1].split()[0] for line in done.stderr.splitlines()] == [
        "--audit-s",
        "--kubeconfig",
    ]


def test_the_bench_refuses_what_it_cannot_measure() -> None:
    done = CliRunner().invoke(bench_cli.app, ["--nodes", "0", "--calls", "0"])
    assert done.exit_code == 2
    assert "--nodes 0: a number from 1 to" in done.stderr
    assert "--calls 0" in done.stderr


@pytest.mark.slow
def test_the_bench_reports_each_number_of_names_as_json() -> None:
    options = ["--nodes", "20", "--pods", "60", "--calls", "10", "--names", "5", "--names", "20"]
    done = CliRunner().invoke(bench_cli.app, [*options, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["nodes"], report["gpus"], report["pods"]) == (20, 160, 60)
    assert [row["names"] for row in report["verbs"]] == [5, 20]
    for row in report["verbs"]:
        for what in ("choose", "pick", "bind", "choose_cpu", "pick_cpu", "bind_cpu"):
            assert row[what]["max_ms"] >= row[what]["p99_ms"] >= row[what]["p50_ms"] > 0


@pytest.mark.parametrize("text", ["", "pool", "=gpu", "pool=gpu,", "pool=a b", "-x=1"])
def test_labels_that_are_none_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match=r"--gpu-nodes .*nvidia\.com/gpu\.present=true"):
        labels(text, option="--gpu-nodes")


def test_a_cap_of_placeholders_that_is_none_is_told_in_one_line() -> None:
    done = CliRunner().invoke(cli.app, ["--placeholders", "--most-placeholders", "0"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("tidegate extender: --most-placeholders 0: a number from 1 to")
