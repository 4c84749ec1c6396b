# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench platform`: reads options, runs the measurement, prints its report."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from autoscaler.bench.platform import NOTES, Options, Report, run_platform_bench
from autoscaler.bench.population import MOST_REPLICAS
from autoscaler.errors import BadInput, TidegateError

MOST_SERVICES: Final = 20_000
LONGEST_S: Final = 3600.0
MOST_CHANGES_PER_S: Final = 1_000.0
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PIPED_WIDTH: Final = 110
_TERMINATED: Final = 128 + signal.SIGTERM


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
    work = run_platform_bench(checked_or_exit(options), console=Console(stderr=True))
    report = _run(work)
    if json_report:
        json.dump(report.as_json(), sys.stdout)
        sys.stdout.write("\n")
    else:
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(tables(report))


def checked_or_exit(options: Options) -> Options:
    try:
        return checked(options)
    except BadInput as bad:
        _complain(bad.problems)
        raise typer.Exit(2) from bad


def _run(work: Coroutine[None, None, Report]) -> Report:
    try:
        return asyncio.run(_until_terminated(work))
    except BadInput as bad:
        _complain(bad.problems)
        raise typer.Exit(2) from bad
    except TidegateError as failed:
        _complain([str(failed)])
        raise typer.Exit(1) from failed
    except asyncio.CancelledError as told:
        _complain(["told to end; nothing is reported"])
        raise typer.Exit(_TERMINATED) from told


async def _until_terminated(work: Coroutine[None, None, Report]) -> Report:
    """Run `work`; end it in good order, with all it made, when the process is told to end."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _complain(problems: Iterable[str]) -> None:
    for problem in problems:
        typer.echo(f"tidegate bench platform: {problem}", err=True)


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
