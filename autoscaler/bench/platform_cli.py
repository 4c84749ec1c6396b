# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench platform`: reads options, runs the measurement, prints its report."""

import re
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from autoscaler.bench.command import ending, run, show, write_json
from autoscaler.bench.platform import NOTES, Options, Report, run_platform_bench
from autoscaler.bench.population import MOST_REPLICAS
from autoscaler.errors import BadInput

MOST_SERVICES: Final = 20_000
LONGEST_S: Final = 3600.0
MOST_CHANGES_PER_S: Final = 1_000.0
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def checked(options: Options) -> Options:
    """The options, or `BadInput` with every problem among them."""
    problems = []
    if not options.kubeconfig.is_file():
        problems.append(f"--kubeconfig {options.kubeconfig}: there is no such file")
    if not NAME.fullmatch(options.namespace):
        problems.append(f"--namespace {options.namespace}: not a name that a namespace can have")
    for name, value, most in (
        ("--services", options.services, MOST_SERVICES),
        ("--replicas", options.replicas, MOST_REPLICAS),
    ):
        if not 1 <= value <= most:
            problems.append(f"{name} {value}: a number from 1 to {most}")
    for name, number, highest in (
        ("--seconds", options.seconds, LONGEST_S),
        ("--changes-per-s", options.changes_per_s, MOST_CHANGES_PER_S),
    ):
        if not 0 < number <= highest:
            problems.append(f"{name} {number:g}: above 0 and up to {highest:g}")
    if problems:
        raise BadInput(*problems)
    return options


def platform(
    kubeconfig: Annotated[Path, typer.Option(help="How to reach the cluster.")],
    namespace: Annotated[
        str, typer.Option(help="Made for the run, and deleted after it.")
    ] = "tidegate-bench",
    services: Annotated[int, typer.Option(help="Deployments, each with a Service.")] = 2000,
    replicas: Annotated[int, typer.Option(help="Pods of each Deployment.")] = 5,
    seconds: Annotated[float, typer.Option(help="How long each of the two phases lasts.")] = 60.0,
    changes_per_s: Annotated[
        float, typer.Option(help="In the wave: Deployments scaled and pods replaced.")
    ] = 20.0,
    nodes: Annotated[
        str, typer.Option(help="Label of the nodes that kwok plays; pods are bound to them alone.")
    ] = "type=kwok",
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the objects for another run, which takes them up.")
    ] = False,
    json_report: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")
    ] = False,
) -> None:
    """What a controller takes from a cluster with thousands of services, and how fast it is there.

    Makes annotated Deployments with their pods and Services, runs a controller beside them, and
    says how long its ticks take, what CPU time and memory it needs, and what it asks of the API
    server: first in peace, then in a wave of changes. No pod really runs: the cluster needs nodes
    that kwok plays. What was made is removed at the end.
    """
    options = Options(
        kubeconfig=kubeconfig,
        namespace=namespace,
        services=services,
        replicas=replicas,
        seconds=seconds,
        changes_per_s=changes_per_s,
        nodes=nodes,
        keep=keep,
    )
    with ending("platform"):
        report = run(run_platform_bench(checked(options), console=Console(stderr=True)))
    if json_report:
        write_json(report.as_json())
    else:
        show(tables(report))


def tables(report: Report) -> Group:
    """For a person: a line a figure, the two phases beside each other."""
    phases = Table("", "steady", "wave", box=SIMPLE_HEAD)
    for name in report.steady:
        if name != "api_requests_per_s_by_kind":
            phases.add_row(name, _text(report.steady[name]), _text(report.wave[name]))
    for kind in _kinds(report):
        phases.add_row(f"  {kind}/s", *(_text(each.get(kind)) for each in _by_kind(report)))
    for column in phases.columns[1:]:
        column.justify = "right"
    start = ", ".join(f"{name} {_text(value)}" for name, value in report.start.items())
    said = ", ".join(f"{name} {_text(value)}" for name, value in report.targets.items())
    return Group(
        Text(f"{report.about['services']} services, {report.about['pods']} pods"),
        Text(f"start: {start}"),
        phases,
        Text(f"targets: {said}"),
        *(Text(f"- {note}") for note in NOTES),
    )


def _by_kind(report: Report) -> list[dict[str, object]]:
    found = [phase["api_requests_per_s_by_kind"] for phase in (report.steady, report.wave)]
    return [each for each in found if isinstance(each, dict)]


def _kinds(report: Report) -> list[str]:
    return list(dict.fromkeys(kind for each in _by_kind(report) for kind in each))


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
