# SPDX-License-Identifier: Apache-2.0
"""`tidegate simulate ...`: reads options, runs, prints. Decides and computes nothing itself.

Results go to stdout, everything else to stderr. The keys of a policy are the contract's own words.
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Annotated, Any, TextIO

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from autoscaler.contract import KEYS, policy_from
from autoscaler.core.decide import Decision
from autoscaler.errors import BadInput
from simulations import plot, report, table
from simulations.packing.cli import packing
from simulations.replay import Replay, Settings
from simulations.replicas import ColdStart, ServiceTime, seconds
from simulations.traces import jsonl
from simulations.traces.describe import describe
from simulations.traces.formats import FORMATS, read_trace
from simulations.traces.shape import Shape, shaped
from simulations.traces.synthetic import Synthetic, synthesize

# An 8B model in bf16 on one H100 with about 16 requests at once and 1 k tokens of context each.
SERVICE_TIME = "15ms + 0.02ms/prompt-token + 7.5ms/token"

_KEY = {key.name: key for key in KEYS}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Replay traffic against a policy, in virtual time.",
)


@app.callback()
def _simulate() -> None:
    """Replay traffic against a policy, in virtual time.

    The simulator runs the controller's own loop and the activator's own queue on simulated
    replicas: an hour of traffic takes seconds, and the same seed gives the same report to the byte.
    """


def _policy_option(key: str, *names: str) -> Any:
    said = _KEY[key]
    return typer.Option(
        f"--{key}",
        *names,
        help=f"{said.meaning}: {said.permitted}. [default: {said.default}]",
        show_default=False,
    )


FORMAT_HELP = f"The trace's format: {', '.join(FORMATS)}."


@app.command()
def replay(
    trace: Annotated[Path, typer.Option(help="The file with the traffic.")],
    trace_format: Annotated[str, typer.Option("--format", help=FORMAT_HELP)],
    policy: Annotated[str | None, _policy_option("policy")] = None,
    targets: Annotated[str | None, _policy_option("targets", "--target")] = None,
    min_replicas: Annotated[str | None, _policy_option("min-replicas")] = None,
    max_replicas: Annotated[str | None, _policy_option("max-replicas")] = None,
    initial_replicas: Annotated[
        str | None,
        typer.Option(help="Replicas that are ready when the run begins. [default: min-replicas]"),
    ] = None,
    activation_replicas: Annotated[str | None, _policy_option("activation-replicas")] = None,
    scale_to_zero_after: Annotated[str | None, _policy_option("scale-to-zero-after")] = None,
    scale_up: Annotated[str | None, _policy_option("scale-up")] = None,
    scale_down: Annotated[str | None, _policy_option("scale-down")] = None,
    signal_window: Annotated[str | None, _policy_option("signal-window")] = None,
    hold_limit: Annotated[str | None, _policy_option("hold-limit")] = None,
    hold_timeout: Annotated[str | None, _policy_option("hold-timeout")] = None,
    cold_start_timeout: Annotated[str | None, _policy_option("cold-start-timeout")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Requests one replica serves at once.")] = 8,
    cold_start: Annotated[
        str,
        typer.Option(
            help="From asking for a replica to its first request: 30s, 'uniform(20s,60s)' or "
            "'lognormal(30s,0.5)' (the median, and the deviation of its logarithm)."
        ),
    ] = "30s",
    service_time: Annotated[
        str,
        typer.Option(
            help="How long one request occupies a slot, linear in its tokens. The default is about "
            "an 8B model on one H100."
        ),
    ] = SERVICE_TIME,
    service: Annotated[
        str | None, typer.Option(help="Replay only this service of a trace that holds several.")
    ] = None,
    from_time: Annotated[
        str, typer.Option("--from", help="Begin at this time of the trace.")
    ] = "0s",
    until_time: Annotated[
        str | None, typer.Option("--until", help="End before this time of the trace.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Replay at most this many requests.")
    ] = None,
    rate_scale: Annotated[
        float,
        typer.Option(help="Requests per recorded request; copies come within a second of theirs."),
    ] = 1.0,
    speedup: Annotated[
        float, typer.Option(help="Recorded seconds per simulated second; 2 doubles every rate.")
    ] = 1.0,
    tick: Annotated[str, typer.Option(help="How often the controller looks.")] = "1s",
    tail: Annotated[
        str, typer.Option(help="Go on for this long after the last request has ended.")
    ] = "0s",
    seed: Annotated[int, typer.Option(help="The seed of everything that is left to chance.")] = 0,
    slo: Annotated[
        str | None, typer.Option(help="Report the share of requests answered within this time.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw arrivals, held requests and replicas into this SVG."),
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="Write each decision with its reasons into this JSONL.")
    ] = None,
) -> None:
    """Replay a trace against a policy and say what it would have done and cost.

    \b
      tidegate simulate replay --trace conv.csv --format azure \\
        --target concurrency=4 --max-replicas 10 --cold-start 60s --slo 5s --plot run.svg

    A policy is written in the same words as in the `tidegate.dev/` annotations. A request occupies
    one of a replica's slots for its service time, whatever the other slots do; what finds no free
    slot is held, refused beyond `hold-limit`, and given up after `hold-timeout`. Replica-seconds
    count from asking for a replica until it is gone, and are printed beside the fluid bound: the
    least that any policy could have used for the same answers.
    """
    words = {
        "policy": policy,
        "targets": targets,
        "min-replicas": min_replicas,
        "max-replicas": max_replicas,
        "initial-replicas": initial_replicas,
        "activation-replicas": activation_replicas,
        "scale-to-zero-after": scale_to_zero_after,
        "scale-up": scale_up,
        "scale-down": scale_down,
        "signal-window": signal_window,
        "hold-limit": hold_limit,
        "hold-timeout": hold_timeout,
        "cold-start-timeout": cold_start_timeout,
    }
    said = {name: value for name, value in words.items() if value is not None}
    checked = policy_from(said, where="--", slots=slots)
    if initial_replicas is None:
        checked = dataclasses.replace(checked, initial_replicas=checked.min_replicas)
        said["initial-replicas"] = str(checked.min_replicas)
    settings = Settings(
        policy=checked,
        slots=slots,
        cold_start=ColdStart.parse(cold_start),
        service_time=ServiceTime.parse(service_time),
        tick_s=_above_0_s(tick, option="--tick"),
        tail_s=seconds(tail, option="--tail"),
        slo_s=None if slo is None else _above_0_s(slo, option="--slo"),
        seed=seed,
    )
    shape = Shape(
        service=service,
        from_s=seconds(from_time, option="--from"),
        until_s=None if until_time is None else seconds(until_time, option="--until"),
        rate_scale=_above_0(rate_scale, option="--rate-scale"),
        limit=limit,
        speedup=_above_0(speedup, option="--speedup"),
    )
    _check_plot(plot_file)
    _quiet_logs()
    recorded = read_trace(trace, trace_format, seed=seed)
    chance = Random(f"{seed}/shape")  # noqa: S311  simulated chance, meant to be repeatable
    arrivals = shaped(recorded.arrivals, shape, chance=chance)
    with ExitStack() as stack:
        dump = (
            None if decisions is None else stack.enter_context(_written(decisions, "--decisions"))
        )
        progress = stack.enter_context(_progress())
        bar = progress.add_task("replaying", total=len(arrivals))

        def record(decision: Decision) -> None:
            if dump is not None:
                dump.write(report.as_line(decision) + "\n")

        outcome = Replay(
            arrivals,
            settings,
            on_decision=record,
            on_progress=lambda arrived: progress.update(bar, completed=arrived),
        ).run()
    said_of_trace = {
        "name": recorded.name,
        "format": trace_format,
        "sha256": recorded.sha256,
        "shape": dataclasses.asdict(shape),
        **describe(arrivals),
    }
    policy_words = {key.name: said.get(key.name, key.default) for key in KEYS}
    result = report.build(outcome, settings, trace=said_of_trace, policy=policy_words)
    if plot_file is not None:
        with _written(plot_file, "--plot") as picture:
            title, subtitle = report.headline(result)
            picture.write(plot.as_svg(outcome.samples, title=title, subtitle=subtitle))
    _show(result, table.run_table(result), as_json=as_json)


app.command()(packing)


@app.command()
def traces(
    file: Annotated[Path | None, typer.Argument(help="A trace to describe.")] = None,
    trace_format: Annotated[str | None, typer.Option("--format", help=FORMAT_HELP)] = None,
    seed: Annotated[int, typer.Option(help="The seed for formats that spread coarse ticks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List the trace formats, or describe one trace: its rates, its gaps and its tokens."""
    if file is None:
        meanings = {name: row.meaning for name, row in FORMATS.items()}
        _show({"formats": meanings}, table.formats_table(meanings), as_json=as_json)
        return
    if trace_format is None:
        raise BadInput(f"--format: say which format {file} is in; permitted: {', '.join(FORMATS)}")
    trace = read_trace(file, trace_format, seed=seed)
    described = {
        "name": trace.name,
        "format": trace_format,
        "sha256": trace.sha256,
        **describe(trace.arrivals),
    }
    _show(described, table.trace_table(trace.name, describe(trace.arrivals)), as_json=as_json)


@app.command("synthesize")
def synthesize_trace(
    out: Annotated[Path, typer.Option(help="Where to write the trace (format jsonl).")],
    duration: Annotated[str, typer.Option(help="How long the trace is.")] = "1h",
    rate: Annotated[float, typer.Option(help="Mean requests per second of the day's curve.")] = 1.0,
    period: Annotated[str, typer.Option(help="How long a day is; it begins at its trough.")] = "1d",
    peak_to_trough: Annotated[
        float, typer.Option(help="How many times its trough the curve's peak is; 1: flat.")
    ] = 1.0,
    burst_every: Annotated[
        str, typer.Option(help="Mean time between two bursts; 0s: none.")
    ] = "0s",
    burst_lasts: Annotated[str, typer.Option(help="Mean length of a burst.")] = "30s",
    burst_factor: Annotated[
        float, typer.Option(help="What a burst multiplies the rate by.")
    ] = 10.0,
    idle_every: Annotated[
        str, typer.Option(help="Mean time between two gaps without requests; 0s: none.")
    ] = "0s",
    idle_lasts: Annotated[str, typer.Option(help="Mean length of a gap.")] = "5m",
    prompt_tokens: Annotated[float, typer.Option(help="Mean prompt tokens.")] = 1000.0,
    output_tokens: Annotated[float, typer.Option(help="Mean output tokens.")] = 200.0,
    token_sigma: Annotated[
        float, typer.Option(help="Deviation of the logarithm of both token counts.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="The seed; same numbers, same trace.")] = 0,
) -> None:
    """Write a made-up trace: Poisson arrivals on a day's curve, with bursts and idle gaps.

    \b
      tidegate simulate synthesize --out day.jsonl --duration 6h --period 6h \\
        --rate 2 --peak-to-trough 8 --burst-every 20m --idle-every 1h
    """
    numbers = Synthetic(
        duration_s=seconds(duration, option="--duration"),
        rate_per_s=rate,
        period_s=seconds(period, option="--period"),
        peak_to_trough=peak_to_trough,
        burst_every_s=seconds(burst_every, option="--burst-every"),
        burst_lasts_s=seconds(burst_lasts, option="--burst-lasts"),
        burst_factor=burst_factor,
        idle_every_s=seconds(idle_every, option="--idle-every"),
        idle_lasts_s=seconds(idle_lasts, option="--idle-lasts"),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        token_sigma=token_sigma,
    )
    chance = Random(f"{seed}/synthesize")  # noqa: S311  simulated chance, meant to be repeatable
    arrivals = synthesize(numbers, chance)
    if not arrivals:
        raise BadInput(
            f"--rate: {rate:g}/s for {duration} made no request; take a longer "
            "--duration, a higher --rate, or another --seed"
        )
    with _written(out, "--out") as file:
        count = jsonl.write(arrivals, file)
    typer.echo(f"{out}: {count} requests over {arrivals[-1].at_s:.0f} s", err=True)


def _show(result: Any, shown: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(report.as_json(result))
    else:
        Console(soft_wrap=False).print(shown)


def _above_0_s(text: str, *, option: str) -> float:
    return _above_0(seconds(text, option=option), option=option)


def _above_0(value: float, *, option: str) -> float:
    if not 0 < value < float("inf"):
        raise BadInput(f"{option}: {value:g} is not permitted; permitted: a number above 0")
    return value


def _check_plot(file: Path | None) -> None:
    if file is not None and file.suffix != ".svg":
        raise BadInput(f"--plot: {file} is not permitted; permitted: a file name ending in .svg")


@contextmanager
def _written(path: Path, option: str) -> Iterator[TextIO]:
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"{option}: {path}: {error.strerror}; name a file that can be written"
        ) from None
    with file:
        yield file


def _progress() -> Progress:
    """A bar on stderr for people; nothing where stderr is not a terminal."""
    console = Console(file=sys.stderr)
    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _quiet_logs() -> None:
    """The loop logs each move as a controller should; here the report tells them."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
