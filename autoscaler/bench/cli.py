# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench …`: reads options, runs a measurement, prints its report; decides nothing."""

import logging
import sys
from importlib.metadata import entry_points
from typing import Annotated

import structlog
import typer
from rich.console import Console

from autoscaler.bench.activator import Options, run_activator_bench
from autoscaler.bench.command import complain, ending, run, show, write_json
from autoscaler.bench.platform_cli import platform
from autoscaler.bench.signals_cli import signals
from autoscaler.bench.table import tables
from autoscaler.bench.workloads import WORKLOADS
from autoscaler.errors import BadInput

LONGEST_DURATION_S = 600.0
MOST_CONNECTIONS = 1024
MOST_ROUNDS = 100
NAME = "activator"

app = typer.Typer(
    help="Measure Tidegate beside its rivals, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command()(platform)
app.command()(signals)
for point in entry_points(group="tidegate.benches"):  # what other packages can measure
    app.command(point.name)(point.load())


def checked(*, duration_s: float, connections: int, rounds: int, only: list[str]) -> Options:
    """The options, or `BadInput` with every problem among them."""
    problems = []
    if not 0 < duration_s <= LONGEST_DURATION_S:
        problems.append(
            f"--duration {duration_s:g}: seconds above 0 and up to {LONGEST_DURATION_S:g}"
        )
    if not 1 <= connections <= MOST_CONNECTIONS:
        problems.append(f"--connections {connections}: a number from 1 to {MOST_CONNECTIONS}")
    if not 1 <= rounds <= MOST_ROUNDS:
        problems.append(f"--rounds {rounds}: a number from 1 to {MOST_ROUNDS}")
    problems += [
        f"--only {name}: one of {', '.join(WORKLOADS)}" for name in only if name not in WORKLOADS
    ]
    if problems:
        raise BadInput(*problems)
    return Options(
        duration_s=duration_s,
        connections=connections,
        rounds=rounds,
        workloads=tuple(name for name in WORKLOADS if not only or name in only),
    )


@app.command()
def activator(
    duration: Annotated[
        float, typer.Option(help="Seconds that each phase is measured; its warm-up comes on top.")
    ] = 2.0,
    connections: Annotated[int, typer.Option(help="Keep-alive connections at full speed.")] = 32,
    rounds: Annotated[
        int, typer.Option(help="How often each proxy has its turn; figures are the medians.")
    ] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Measure this workload only; may be repeated: {', '.join(WORKLOADS)}."),
    ] = None,
    json_report: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")
    ] = False,
) -> None:
    """The activator beside Go's httputil.ReverseProxy and an aiohttp proxy, each on one core.

    Client, backend and this command have the other cores. In each round every proxy has its turn,
    after a turn without any: first at full speed (requests/s, CPU time a request), then with few
    connections (what the proxy adds to the latency). Errors are counted; with any, exit status 1.

    Without Go or aiohttp their figures are null and the report says why. With all of them and the
    workloads the whole takes about 40 x duration x rounds seconds.
    """
    structlog.configure(  # the hub's log: a channel that opens and closes is no news here
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    console = Console(stderr=True)
    with ending(NAME):
        options = checked(
            duration_s=duration, connections=connections, rounds=rounds, only=only or []
        )
        report = run(run_activator_bench(options, console=console))
    if json_report:
        write_json(report.as_json())
    else:
        show(tables(report.workloads, report.notes))
    complain(NAME, (f"{count} errors: {kind}" for kind, count in report.errors.items()))
    if report.errors:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
