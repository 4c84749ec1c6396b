# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench signals` from its options to its report.

The scraper has one core for itself; the pods, the plain scraper's too, have another. In each round
both readers have their turn, first at reading alone, then at scraping; figures are the medians over
the rounds. CPU time is the process' own, so that what else runs on the machine makes the figures a
little worse and never better.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from autoscaler.adapters.engines.growth import STALE_S
from autoscaler.adapters.engines.scraper import PERIOD_S, TRIED_PER_S
from autoscaler.bench.activator import QUIET_CORES, commit, versions
from autoscaler.bench.children import Child, child, listening_child
from autoscaler.bench.cores import Cores, divide, hardware, usable_cores
from autoscaler.bench.signals_page import page
from autoscaler.bench.signals_scraper import OURS, PLAIN, Asked, Seen

READERS: Final = (OURS, PLAIN)
WARM_S: Final = 2.0  # and until each pod may have been asked once
READ_S: Final = 1.0
SPARE_S: Final = 120.0
TIMES_PLAIN: Final = 10.0  # what is aimed at

Figures = Mapping[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, checked. `seconds`: of each turn, its warm-up comes on top."""

    pods: int
    seconds: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What one reader did in one round."""

    alone: Seen
    scraping: Seen


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found. `about`: what a figure needs to be believed."""

    readers: Mapping[str, Figures]
    ratios: Mapping[str, float | bool | None]
    about: Mapping[str, object]
    failed: Mapping[str, str]  # by our reader's rounds: why scrapes failed
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "command": "tidegate bench signals",
            **self.readers,
            **self.ratios,
            **self.about,
            "failed": dict(self.failed),
            "notes": list(self.notes),
        }


async def run_signals_bench(options: Options, *, console: Console) -> Report:
    """Measure; the progress goes to `console`. Raises `GiveUp`."""
    cores = divide(usable_cores())
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores.client})
    try:
        turns = await _measure(options, cores, console)
    finally:
        os.sched_setaffinity(0, ours)
    about: dict[str, object] = {
        "pods": options.pods,
        "page_bytes": len(page(0)),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "load_average": round(os.getloadavg()[0], 1),
        "cores": {"scraper": cores.proxy, "pods": cores.backend},
        "hardware": hardware(),
        "commit": commit(),
        "versions": versions(),
    }
    figures = {name: figures_of(of, pods=options.pods) for name, of in turns.items()}
    failed = {
        f"round {number + 1}": str(turn.scraping.why)
        for number, turn in enumerate(turns[OURS])
        if turn.scraping.failed
    }
    return Report(figures, ratios_of(figures), about, failed, _notes(cores, figures))


async def _measure(options: Options, cores: Cores, console: Console) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in READERS}
    pods_argv = [sys.executable, "-m", "autoscaler.bench.signals_pods"]
    argv = [sys.executable, "-m", "autoscaler.bench.signals_scraper"]
    with _bar(console, options.rounds * len(READERS)) as (says, advance):
        async with (
            listening_child("the pods", pods_argv, core=cores.backend) as (_, port),
            child("the scraper", argv, core=cores.proxy) as scraper,
        ):
            for number in range(options.rounds):
                for name in READERS:
                    says(f"round {number + 1} of {options.rounds}: {name}")
                    turns[name].append(await _turn(options, name, scraper, port, cores))
                    advance()
    return turns


async def _turn(options: Options, name: str, scraper: Child, port: int, cores: Cores) -> Turn:
    async def ask(port: int | None, seconds: float) -> Seen:
        warm_s = min(WARM_S, options.seconds) + options.pods / TRIED_PER_S
        asked = Asked(name, options.pods, port, warm_s, seconds, cores.proxy)
        within_s = warm_s + seconds + SPARE_S
        return Seen(**json.loads(await scraper.ask(json.dumps(asdict(asked)), within_s=within_s)))

    alone = await ask(None, min(READ_S, options.seconds))
    return Turn(alone, await ask(port, options.seconds))


def figures_of(turns: list[Turn], *, pods: int) -> Figures:
    """One reader's figures; each is the median over the rounds, None where no round has it."""

    def middle(of: Callable[[Turn], float | None]) -> float | None:
        known = [value for value in map(of, turns) if value is not None]
        return _rounded(median(known)) if known else None

    def per_scrape(turn: Turn) -> float | None:
        good = turn.scraping.scrapes - turn.scraping.failed
        return turn.scraping.cpu_s / good * 1e3 if good else None

    return {
        "read_us_per_page": middle(lambda turn: _times(turn.alone.page_s, 1e6)),
        "pods_per_s": middle(
            lambda turn: (turn.scraping.scrapes - turn.scraping.failed) / turn.scraping.seconds
        ),
        "cpu_s_per_1000_scrapes": middle(per_scrape),
        "cpu_cores": middle(lambda turn: turn.scraping.cpu_s / turn.scraping.seconds),
        "others_cores": middle(
            lambda turn: (
                max(0.0, turn.scraping.core_s - turn.scraping.cpu_s) / turn.scraping.seconds
            )
        ),
        "fresh_ratio": middle(lambda turn: turn.scraping.fresh_ratio),
        "least_fresh_ratio": middle(lambda turn: turn.scraping.least_fresh_ratio),
        "age_p50_s": middle(lambda turn: turn.scraping.age_p50_s),
        "age_p99_s": middle(lambda turn: turn.scraping.age_p99_s),
        "asked_every_s": middle(
            lambda turn: (
                pods * turn.scraping.seconds / turn.scraping.scrapes
                if turn.scraping.scrapes
                else None
            )
        ),
        "failed": sum(turn.scraping.failed for turn in turns),
    }


def ratios_of(figures: Mapping[str, Figures]) -> Mapping[str, float | bool | None]:
    """How many times our CPU time a page the plain reader takes: reading alone, and in all."""

    def ratio(name: str) -> float | None:
        ours, plain = figures[OURS][name], figures[PLAIN][name]
        return _rounded(plain / ours) if ours and plain else None

    alone, whole = ratio("read_us_per_page"), ratio("cpu_s_per_1000_scrapes")
    return {
        "plain_read_over_ours": alone,
        "plain_scrape_over_ours": whole,
        "ten_times_met": None
        if alone is None or whole is None
        else min(alone, whole) >= TIMES_PLAIN,
    }


def _notes(cores: Cores, figures: Mapping[str, Figures]) -> tuple[str, ...]:
    """What a reader must know before quoting a figure."""
    notes = [
        f"fresh: the newest look is at most {STALE_S:g} s old; each pod is to be asked every "
        f"{PERIOD_S:g} s",
        "cpu_s_per_1000_scrapes is all of the process: HTTP, reading, bookkeeping, and looking at "
        "every pod twice a second",
        "what the plain reader has read is thrown away, so its figures are a little too good",
    ]
    if cores.proxy_shares:
        notes.append("one core for everything: scraper and pods took time from each other")
    taken = max(of["others_cores"] or 0.0 for of in figures.values())
    if taken > QUIET_CORES:
        notes.append(
            f"other processes took {taken:.2f} of the scraper's core: pods_per_s and ages are "
            "worse than they need be; repeat on a quiet machine"
        )
    return tuple(notes)


@contextmanager
def _bar(
    console: Console, total: int
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """What says how far it is; it costs the pods' core next to nothing."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=2,
    ) as progress:
        bar = progress.add_task("starting", total=total)
        yield (
            lambda what: progress.update(bar, description=what),
            lambda: progress.advance(bar),
        )


def _times(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
