# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench extender`: reads options, runs the measurement, prints its report."""

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scheduler_extender.errors import BadInput, ExtenderError

if TYPE_CHECKING:
    from scheduler_extender.bench.measure import Report

MOST_NODES = 20_000
MOST_CALLS = 100_000
_PIPED_WIDTH = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def extender(
    nodes: Annotated[int, typer.Option(help="Nodes of the made-up cluster.")] = 5000,
    cards: Annotated[int, typer.Option(help="GPUs of each node.")] = 8,
    pods: Annotated[int, typer.Option(help="Pods that are bound already.")] = 50_000,
    names: Annotated[
        list[int] | None,
        typer.Option(help="Node names in a call; may be repeated. Left out: 500 and all."),
    ] = None,
    calls: Annotated[int, typer.Option(help="Pods to place for each number of names.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed makes up the same load.")] = 1,
    json_report: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")
    ] = False,
) -> None:
    """The extender's verbs on one core, and how long a restart takes.

    A cluster is made up in a second process that serves it as an API server would; listing it until
    ready is the restart. Then pods of many shapes are filtered and ranked, or picked, and bound,
    body by body, and leave again. Times of verbs are without HTTP, and bind's without the API
    server.
    """
    asked = tuple(dict.fromkeys(names or [min(500, nodes), nodes]))
    try:
        _check(nodes=nodes, cards=cards, pods=pods, names=asked, calls=calls)
        report = _measure(
            nodes=nodes, cards=cards, pods=pods, names=asked, calls=calls, seed=seed
        )  # fmt: skip
    except BadInput as bad:
        for problem in bad.problems:
            typer.echo(f"tidegate bench extender: {problem}", err=True)
        raise typer.Exit(2) from None
    except ExtenderError as failed:
        typer.echo(f"tidegate bench extender: {failed}", err=True)
        raise typer.Exit(1) from None
    if json_report:
        json.dump(report.as_json(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(report)


def _check(*, nodes: int, cards: int, pods: int, names: tuple[int, ...], calls: int) -> None:
    problems = []
    for option, value, least, most in (
        ("--nodes", nodes, 1, MOST_NODES),
        ("--cards", cards, 1, 16),
        ("--pods", pods, 1, 50 * nodes),
        ("--calls", calls, 2, MOST_CALLS),  # one is chosen, one picked
        *(("--names", count, 1, nodes) for count in names),
    ):
        if not least <= value <= most:
            problems.append(f"{option} {value}: a number from {least} to {most}")
    if problems:
        raise BadInput(*problems)


def _measure(
    *, nodes: int, cards: int, pods: int, names: tuple[int, ...], calls: int, seed: int
) -> "Report":
    from scheduler_extender.bench.measure import measure
    from scheduler_extender.bench.population import Size

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        return asyncio.run(
            measure(
                Size(nodes, cards, pods),
                names=names,
                calls=calls,
                seed=seed,
                progress=lambda what, done: bar.update(task, description=what, completed=done),
            )
        )


def _print(report: "Report") -> None:
    table = Table(
        title=f"{report.nodes} nodes, {report.gpus} GPUs, {report.pods} pods; milliseconds",
        title_justify="left",
    )
    table.add_column("names a call", justify="right")
    for verb in ("both", "pick", "bind", "both CPU", "pick CPU", "bind CPU"):
        for figure in ("p50", "p99"):
            table.add_column(f"{verb} {figure}", justify="right")
    table.add_column("new shape", justify="right")
    for row in report.verbs:
        figures = (row.choose, row.pick, row.bind, row.choose_cpu, row.pick_cpu, row.bind_cpu)
        cells = [f"{value:.2f}" for times in figures for value in (times.p50_ms, times.p99_ms)]
        table.add_row(str(row.names), *cells, f"{row.first_sight_ms:.1f}")
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    console.print(table)
    console.print(
        f"restart to ready: {report.restart_s:.1f} s; load of this machine: {report.load_1m:.1f}"
    )


if __name__ == "__main__":
    app()
