# SPDX-License-Identifier: Apache-2.0
"""`tidegate simulate packing`: reads options, runs the seeds side by side, prints."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from autoscaler.errors import BadInput
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import NodeGpus
from simulations.packing import picture
from simulations.packing.lists import read_nodes, read_pods, sha256
from simulations.packing.objects import PER_CENT_MILLI, cannot_be_asked
from simulations.packing.protocol import FULL, RANKINGS, Run, run
from simulations.packing.report import Report, build, curve
from simulations.packing.through import POLICY, run_through_http
from simulations.report import as_json as json_of
from simulations.report import provenance

FIRST_SEED = 42  # as in the published runs

One = Callable[[int], tuple[Run, float]]  # the run of a seed, and the seconds it took


def packing(
    nodes: Annotated[Path, typer.Option(help="CSV with sn, cpu_milli, memory_mib, gpu, model.")],
    pods: Annotated[
        Path,
        typer.Option(help="CSV with cpu_milli, memory_mib, num_gpu, gpu_milli and maybe gpu_spec."),
    ],
    policy: Annotated[
        str, typer.Option(help=f"How nodes are ranked: {', '.join(RANKINGS)}.")
    ] = "tidegate",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs, each of its own order.")] = 10,
    first_seed: Annotated[int, typer.Option(help="Seeds count up from this one.")] = FIRST_SEED,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at once.")] = 1,
    through_http: Annotated[
        bool,
        typer.Option(
            "--through-http",
            help="Send every pod through the extender's verbs over HTTP, as kube-scheduler does.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw allocation and fragments over arrivals into this SVG."),
    ] = None,
) -> None:
    """Pack a list of pods onto a list of nodes and say how many GPUs stay unallocated.

    \b
      tidegate simulate packing --nodes nodes.csv --pods pods.csv --policy tidegate --jobs 2

    Pods come in random order, drawn from the list until they ask for 130 % of the GPUs. Each is
    placed for good by the extender's own core, or dropped where it does not fit. Compared is what
    stays unallocated when the pods that came asked for 100 % of the GPUs. The policy `tidegate`
    learns what to expect from the pods that came; `fgd` knows the list beforehand, as its authors
    have it.

    With --through-http a process of the extender answers filter, prioritise and bind for every pod,
    before a cluster in its memory: the same placements, and some hundred calls a second.
    """
    if policy not in RANKINGS:
        raise BadInput(f"--policy: {policy} is not permitted; permitted: {', '.join(RANKINGS)}")
    if plot_file is not None and plot_file.suffix != ".svg":
        raise BadInput(f"--plot: {plot_file} is not permitted; permitted: a file name in .svg")
    known_nodes, known_pods = read_nodes(nodes), read_pods(pods)
    if through_http:
        _check_askable(known_pods, policy=policy, file=pods)
    chosen = range(first_seed, first_seed + seeds)
    one = partial(_timed, known_nodes, known_pods, policy, through_http)
    runs, seconds = _all(one, seeds=chosen, jobs=jobs)
    report = build(
        runs,
        policy=policy,
        through_http=through_http,
        lists={
            "nodes": {"name": nodes.name, "sha256": sha256(nodes), "count": len(known_nodes)},
            "pods": {"name": pods.name, "sha256": sha256(pods), "count": len(known_pods)},
        },
        seconds=seconds,
        about=provenance(),
    )
    if plot_file is not None:
        _draw(plot_file, runs, title=f"{pods.name}: {policy}")
    if as_json:
        typer.echo(json_of(report))
    else:
        Console(soft_wrap=False).print(_table(report))


def _check_askable(pods: Sequence[Demand], *, policy: str, file: Path) -> None:
    if policy != POLICY:
        raise BadInput(
            f"--policy: {policy} is not permitted with --through-http; permitted: {POLICY}, "
            "the only one of these that the extender offers"
        )
    wrong = cannot_be_asked(pods)
    if wrong is not None:
        raise BadInput(
            f"{file}: gpu_milli {wrong.milli} is not permitted with --through-http; permitted: "
            f"multiples of {PER_CENT_MILLI}, for pods ask the extender in whole per cent"
        )


def _all(one: One, *, seeds: range, jobs: int) -> tuple[list[Run], list[float]]:
    """The runs and the seconds each took, in the order of seeds."""
    console = Console(file=sys.stderr)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = not console.is_terminal
    done: dict[int, tuple[Run, float]] = {}
    with Progress("packing", *columns, console=console, transient=True, disable=shown) as progress:
        bar = progress.add_task("packing", total=len(seeds))
        for seed, result in _each(one, seeds=seeds, jobs=jobs):
            done[seed] = result
            progress.advance(bar)
    return [done[seed][0] for seed in seeds], [done[seed][1] for seed in seeds]


def _each(one: One, *, seeds: range, jobs: int) -> Iterator[tuple[int, tuple[Run, float]]]:
    if min(jobs, len(seeds)) == 1:
        for seed in seeds:
            yield seed, one(seed)
        return
    # Spawned: a fork of a process with threads, as the progress bar's, may deadlock.
    pool = ProcessPoolExecutor(min(jobs, len(seeds)), mp_context=get_context("spawn"))
    with pool:
        waiting = {pool.submit(one, seed): seed for seed in seeds}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _timed(
    nodes: Sequence[NodeGpus], pods: Sequence[Demand], policy: str, through_http: bool, seed: int
) -> tuple[Run, float]:
    began_s = time.perf_counter()
    if through_http:
        done = run_through_http(nodes, pods, seed=seed)
    else:
        done = run(nodes, pods, policy=policy, seed=seed)
    return done, time.perf_counter() - began_s


def _draw(file: Path, runs: Sequence[Run], *, title: str) -> None:
    points = curve(runs)
    means = [100 - one.at(FULL).allocated_percent for one in runs]
    mean = sum(means) / len(means)
    subtitle = f"{mean:.2f} % unallocated at {FULL} % asked for, {len(runs)} seeds"

    try:
        file.write_text(
            picture.as_svg(runs, points, title=title, subtitle=subtitle), encoding="utf-8"
        )
    except OSError as error:
        raise BadInput(
            f"--plot: {file}: {error.strerror}; name a file that can be written"
        ) from None


_ROWS = (
    ("unallocated", "unallocated_gpu_percent"),
    ("idle in fragments", "fragments_gpu_percent"),
)


def _table(report: Report) -> Table:
    table = Table(title=f"{report['policy']}, at {FULL} % of the GPUs asked for")
    for column in ("of all GPUs", "mean", "min", "max"):
        table.add_column(column, justify="left" if column == "of all GPUs" else "right")
    for name, key in _ROWS:
        spread = report[key]
        if isinstance(spread, dict):
            table.add_row(name, *(f"{spread[part]:.2f} %" for part in ("mean", "min", "max")))
    return table
