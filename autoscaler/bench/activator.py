# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench activator` from its options to its report."""

import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from autoscaler.bench.cores import Cores, divide, hardware, usable_cores
from autoscaler.bench.measure import measure
from autoscaler.bench.phases import DIRECT, Plan
from autoscaler.bench.proxies import Missing, Proxy, aiohttp_proxy, go_proxy
from autoscaler.bench.report import CONTENDERS, OURS, Value, errors_in, workload_report
from autoscaler.bench.tidegate_proxy import tidegate_proxy
from autoscaler.bench.workloads import WORKLOADS

_REPAINTS_PER_S = 2  # the progress bar lives on the client's core: it must cost nothing


QUIET_CORES = 0.1  # this process and the idle proxies take some of it


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, checked."""

    duration_s: float
    connections: int
    rounds: int
    workloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found. `about`: what a figure needs to be believed."""

    workloads: Mapping[str, Mapping[str, Value]]
    about: Mapping[str, object]
    errors: Mapping[str, int]
    notes: list[str]

    def as_json(self) -> dict[str, object]:
        return {
            "command": "tidegate bench activator",
            **self.workloads,
            **self.about,
            "errors": sum(self.errors.values()),
            "errors_by_kind": dict(self.errors),
            "notes": self.notes,
        }


async def run_activator_bench(options: Options, *, console: Console) -> Report:
    """Measure; the progress goes to `console`. The process' cores are given back at the end."""
    began_s = time.monotonic()
    ours = os.sched_getaffinity(0)
    cores = divide(usable_cores())
    plan = Plan(options.duration_s, options.connections, options.rounds)
    os.sched_setaffinity(0, {cores.client})
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
            contenders = await _contenders(Path(folder), plan)
            proxies = [c for c in contenders.values() if isinstance(c, Proxy)]
            seen, errors = await _measure_all(options, plan, proxies, cores, console)
    finally:
        os.sched_setaffinity(0, ours)
    about: dict[str, object] = {
        **{name: _word(contender) for name, contender in contenders.items()},
        "connections": plan.connections,
        "duration_s": plan.duration_s,
        "rounds": plan.rounds,
        "seconds": round(time.monotonic() - began_s, 1),
        "hardware": hardware(),
        "cores": {"proxy": cores.proxy, "backend": cores.backend, "client": cores.client},
        "commit": commit(),
        "versions": versions(),
    }
    return Report(seen, about, errors, _notes(contenders, cores, seen))


async def _contenders(folder: Path, plan: Plan) -> dict[str, Proxy | Missing]:
    """In the order of their turns."""
    return {
        OURS: tidegate_proxy(folder, slots=plan.connections, version=versions()["tidegate"]),
        "go": await go_proxy(folder),
        "aiohttp": aiohttp_proxy(),
    }


async def _measure_all(
    options: Options, plan: Plan, proxies: list[Proxy], cores: Cores, console: Console
) -> tuple[dict[str, Mapping[str, Value]], dict[str, int]]:
    reports: dict[str, Mapping[str, Value]] = {}
    errors: dict[str, int] = {}
    turns = len(options.workloads) * plan.rounds * (len(proxies) + 1)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=_REPAINTS_PER_S,
    ) as progress:
        bar = progress.add_task("starting", total=turns)

        def began(what: str) -> None:
            progress.update(bar, description=what)

        def ended() -> None:
            progress.advance(bar)

        for name in options.workloads:
            workload = WORKLOADS[name]
            rounds = await measure(
                workload, proxies, plan=plan, cores=cores, began=began, ended=ended
            )
            reports[name] = workload_report(
                workload, rounds, connections=plan.connections, client_shares=cores.client_shares
            )
            errors |= {f"{name}, {kind}": count for kind, count in errors_in(rounds).items()}
    return reports, errors


def _word(contender: Proxy | Missing) -> str:
    return f"skipped: {contender.why}" if isinstance(contender, Missing) else contender.version


def _notes(
    contenders: Mapping[str, Proxy | Missing],
    cores: Cores,
    reports: Mapping[str, Mapping[str, Value]],
) -> list[str]:
    """What a reader must know before quoting a figure."""
    notes = [f"{n} {_word(c)}" for n, c in contenders.items() if isinstance(c, Missing)]
    if cores.proxy_shares:
        notes.append("one core for everything: proxies and client took time from each other")
    elif cores.client_shares:
        notes.append(f"two cores: the proxy on {cores.proxy}, client and backend on {cores.client}")
    notes += [
        f"{name}: {who} waited for the client, whose core was busy; compare CPU time a request"
        for name, figures in reports.items()
        for who in CONTENDERS
        if figures[f"{who}_limited_by"] == "client"
    ]
    disturbed = {
        name: max(_number(figures[f"{who}_others_busy_cores"]) for who in (DIRECT, *CONTENDERS))
        for name, figures in reports.items()
    }
    notes += [
        f"{name}: other processes took up to {cores_taken:.2f} cores; repeat on a quiet machine"
        for name, cores_taken in disturbed.items()
        if cores_taken > QUIET_CORES
    ]
    return notes


def _number(value: Value) -> float:
    """What a note compares; what was not measured disturbs nobody."""
    return float(value) if isinstance(value, int | float) else 0.0


def versions() -> dict[str, str]:
    """The versions of what was measured with."""
    found = {"python": platform.python_version()}
    for package in ("tidegate", "uvloop", "httptools", "aiohttp"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the checkout that this file lies in, `-dirty` where files differ; or None."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
