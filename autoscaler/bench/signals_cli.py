# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench signals`: reads options, runs the measurement, prints its report."""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine, Iterable
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from autoscaler.bench.signals import Options, Report, run_signals_bench
from autoscaler.bench.signals_scraper import OURS, PLAIN
from autoscaler.errors import BadInput, GiveUp

MOST_PODS: Final = 20_000
LONGEST_S: Final = 300.0
MOST_ROUNDS: Final = 20
_PIPED_WIDTH: Final = 110
_TERMINATED: Final = 128 + signal.SIGTERM


def checked(options: Options) -> Options:
    """The options, or `BadInput` with every problem among them."""
    problems = []
    for name, value, most in (
        ("--pods", options.pods, MOST_PODS),
        ("--rounds", options.rounds, MOST_ROUNDS),
    ):
        if not 1 <= value <= most:
            problems.append(f"{name} {value}: a number from 1 to {most}")
    if not 0 < options.seconds <= LONGEST_S:
        problems.append(f"--seconds {options.seconds:g}: above 0 and up to {LONGEST_S:g}")
    if problems:
        raise BadInput(*problems)
    return options


def signals(
    pods: Annotated[int, typer.Option(help="How many are scraped, each every second.")] = 2000,
    seconds: Annotated[
        float, typer.Option(help="Seconds that each turn is measured; its warm-up comes on top.")
    ] = 10.0,
    rounds: Annotated[
        int, typer.Option(help="How often each reader has its turn; figures are the medians.")
    ] = 3,
    json_report: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")
    ] = False,
) -> None:
    """How many pods one core can scrape, beside prometheus_client's parser in the same scraper.

    Plays pods that show a vLLM replica's metrics, about 50 kB each, on one core, and scrapes them
    from another: pods/s, CPU time a scrape, and how old what is known of each pod is. In each round
    our reader of pages and the plain one have their turn. Takes about 30 x rounds seconds.
    """
    try:
        options = checked(Options(pods, seconds, rounds))
        work = run_signals_bench(options, console=Console(stderr=True))
        report = asyncio.run(_until_terminated(work))
    except BadInput as bad:
        _complain(bad.problems)
        raise typer.Exit(2) from bad
    except GiveUp as failed:
        _complain([str(failed)])
        raise typer.Exit(1) from failed
    except asyncio.CancelledError as told:
        _complain(["told to end; nothing is reported"])
        raise typer.Exit(_TERMINATED) from told
    if json_report:
        json.dump(report.as_json(), sys.stdout)
        sys.stdout.write("\n")
    else:
        console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
        console.print(tables(report))
    if report.failed:
        _complain(f"scrapes failed in {number}: {why}" for number, why in report.failed.items())
        raise typer.Exit(1)


async def _until_terminated(work: Coroutine[None, None, Report]) -> Report:
    """Run `work`; end it in good order, with all it started, when the process is told to end."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _complain(problems: Iterable[str]) -> None:
    for problem in problems:
        typer.echo(f"tidegate bench signals: {problem}", err=True)


def tables(report: Report) -> Group:
    """For a person: a line a figure, the two readers beside each other."""
    table = Table("", OURS, f"{PLAIN} prometheus_client", box=SIMPLE_HEAD)
    for name, ours in report.readers[OURS].items():
        table.add_row(name, _text(ours), _text(report.readers[PLAIN][name]))
    for column in table.columns[1:]:
        column.justify = "right"
    about = report.about
    return Group(
        Text(f"{about['pods']} pods, pages of {about['page_bytes']:,} bytes"),
        table,
        *(Text(f"{name}: {_text(value)}") for name, value in report.ratios.items()),
        Text(f"load average {about['load_average']}, commit {about['commit']}"),
        *(Text(f"- {note}") for note in report.notes),
    )


def _text(value: float | bool | None) -> str:
    if value is None:
        return "-"
    if value is True or value is False:
        return "yes" if value else "no"
    return f"{value:,.4g}"
