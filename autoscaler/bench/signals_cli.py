# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench signals`: reads options, runs the measurement, prints its report."""

from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from autoscaler.bench.command import complain, ending, run, show, write_json
from autoscaler.bench.signals import Options, Report, run_signals_bench
from autoscaler.bench.signals_scraper import OURS, PLAIN
from autoscaler.errors import BadInput

MOST_PODS: Final = 20_000
LONGEST_S: Final = 300.0
MOST_ROUNDS: Final = 20
NAME: Final = "signals"


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
    with ending(NAME):
        options = checked(Options(pods, seconds, rounds))
        report = run(run_signals_bench(options, console=Console(stderr=True)))
    if json_report:
        write_json(report.as_json())
    else:
        show(tables(report))
    if report.failed:
        whys = (f"scrapes failed in {number}: {why}" for number, why in report.failed.items())
        complain(NAME, whys)
        raise typer.Exit(1)


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
