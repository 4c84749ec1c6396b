# SPDX-License-Identifier: Apache-2.0
"""`tidegate bench platform` from its options to its report."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.bench.activator import commit, versions
from autoscaler.bench.controller import Controller, controller
from autoscaler.bench.cores import hardware
from autoscaler.bench.platform_report import (
    Figures,
    Phase,
    Start,
    phase_figures,
    start_figures,
    targets,
)
from autoscaler.bench.population import Population, name_of
from autoscaler.bench.scrape import Scrape
from autoscaler.errors import BadInput, GiveUp, RetryLater

POPULATED_S: Final = 1800.0
REMOVED_S: Final = 900.0
SYNCED_S: Final = 300.0
SETTLED_S: Final = 600.0
QUIET_S: Final = 3.0  # without a write the controller has said what it had to say
WRITES: Final = frozenset({"create", "update", "patch", "delete"})
SEEN_WITHIN_S: Final = 20.0
LOOK_S: Final = 0.02
SAMPLE_S: Final = 0.5

NOTES: Final = (
    "no activator is connected, so no service has a reading and none is scaled",
    "the pods are played: where their metrics are asked for nothing answers, or nobody is there",
    "the controller looks at the one namespace; whatever else runs on this machine slows it: judge "
    "by tick_cpu_p99_s where load_average, of five minutes, is above the number of cores",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, checked. `nodes`: label selector of the nodes that are played."""

    kubeconfig: Path
    namespace: str
    services: int
    replicas: int
    seconds: float
    changes_per_s: float
    nodes: str
    keep: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found. `about`: what a figure needs to be believed."""

    start: Figures
    steady: Figures
    wave: Figures
    targets: Figures
    about: Figures

    def as_json(self) -> dict[str, object]:
        return {
            "command": "tidegate bench platform",
            "start": self.start,
            "steady": self.steady,
            "wave": self.wave,
            "targets": self.targets,
            **self.about,
            "notes": list(NOTES),
        }


async def run_platform_bench(options: Options, *, console: Console) -> Report:
    """Make the objects, measure, take them away. Raises `BadInput`, `GiveUp`, `RetryLater`."""
    async with AsyncExitStack() as stack:
        api = KubeApi.connect(options.kubeconfig)
        try:
            await stack.enter_async_context(api)
        except GiveUp as wrong:
            raise BadInput(f"--kubeconfig {options.kubeconfig}: {wrong}") from wrong
        people = Population(
            api,
            namespace=options.namespace,
            services=options.services,
            replicas=options.replicas,
            nodes=options.nodes,
        )
        nodes = await people.claim()
        try:
            populated_s = await _populate(people, nodes, console)
            start, steady, wave = await _measure(options, people, console)
        finally:
            if not options.keep:
                await _remove(people, console)
    about: Figures = {
        "services": options.services,
        "pods": options.services * options.replicas,
        "nodes": len(nodes),
        "populated_s": round(populated_s, 1),
        "load_average": round(os.getloadavg()[1], 1),
        "hardware": hardware(),
        "commit": commit(),
        "versions": versions(),
    }
    return Report(
        start_figures(start),
        phase_figures(steady),
        phase_figures(wave),
        targets([steady, wave]),
        about,
    )


async def _populate(people: Population, nodes: list[str], console: Console) -> float:
    began_s = time.monotonic()
    with _bar(console, "making Deployments and Services", people.services * 2) as advance:
        await people.create(nodes, advance=advance)
    with _bar(console, "waiting for pods", people.services * people.replicas) as advance:
        await people.ready(advance=advance, within_s=POPULATED_S)
    return time.monotonic() - began_s


async def _remove(people: Population, console: Console) -> None:
    with _bar(console, "removing pods", people.services * people.replicas) as advance:
        await people.remove(advance=advance, within_s=REMOVED_S)


async def _measure(
    options: Options, people: Population, console: Console
) -> tuple[Start, Phase, Phase]:
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        async with controller(
            Path(folder), options.kubeconfig, namespace=options.namespace
        ) as running:
            with _bar(console, "waiting until the controller is at rest", None):
                start = await _started(running)
            with _bar(console, "steady", round(options.seconds)) as advance:
                steady = await _phase(running, options.seconds, advance)
            with _bar(console, "a wave of changes", round(options.seconds)) as advance:
                wave = await _phase(running, options.seconds, advance, Wave(options, people))
    return start, steady, wave


async def _started(running: Controller) -> Start:
    """From the start to the moment when the controller has nothing more to write."""
    synced_s = await running.until("synced", within_s=SYNCED_S)
    first_tick_s, written, quiet_since_s = 0.0, -1.0, 0.0
    while True:
        seen = await running.scrape()
        since_s = seen.at_s - running.began_s
        if not first_tick_s and seen.ticks_of("all").count:
            first_tick_s = since_s
        if (now_written := _writes(seen)) != written:
            written, quiet_since_s = now_written, since_s
        elif first_tick_s and since_s - quiet_since_s >= QUIET_S:
            return Start(
                synced_s, first_tick_s, quiet_since_s, sum(seen.requests.values()), seen.cpu_s
            )
        if since_s > SETTLED_S:
            raise GiveUp(f"after {since_s:.0f} s the controller still writes, or does not lead")
        await asyncio.sleep(QUIET_S / 3)


def _writes(seen: Scrape) -> float:
    """But for its Lease, which it renews for as long as it lives."""
    return sum(
        n for (verb, what), n in seen.requests.items() if verb in WRITES and what != "leases"
    )


class Wave:
    """Changes at an even pace: a Deployment scaled and a pod replaced, in turns.

    Of the scaled ones it is measured how long the controller takes to see it, one at a time.
    """

    def __init__(self, options: Options, people: Population) -> None:
        self.changes = 0
        self.seen_s: list[float] = []
        self.unseen = 0
        self._options = options
        self._people = people
        self._extra: dict[int, int] = {}
        self._looking: asyncio.Task[None] | None = None

    async def run(self, running: Controller) -> None:
        """Until cancelled."""
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as changing:
            for number in count():
                due_s = began_s + number / self._options.changes_per_s
                await asyncio.sleep(max(due_s - time.perf_counter(), 0.0))
                changing.create_task(self._change(number, running))

    async def _change(self, number: int, running: Controller) -> None:
        try:
            if number % 2:
                await self._people.replace_a_pod()
            else:
                await self._scale(number // 2 % self._options.services, running)
        except RetryLater:  # the API server is busy: this change did not happen
            return
        self.changes += 1

    async def _scale(self, service: int, running: Controller) -> None:
        self._extra[service] = 1 - self._extra.get(service, 0)
        replicas = self._options.replicas + self._extra[service]
        await self._people.scale(service, replicas)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(service, replicas, running))

    async def _look(self, service: int, replicas: int, running: Controller) -> None:
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < SEEN_WITHIN_S:
            if await running.wanted(self._options.namespace, name_of(service)) == replicas:
                self.seen_s.append(time.perf_counter() - began_s)
                return
            await asyncio.sleep(LOOK_S)
        self.unseen += 1


async def _phase(
    running: Controller, seconds: float, advance: Callable[[int], None], wave: Wave | None = None
) -> Phase:
    began = await running.scrape()
    changing = None if wave is None else asyncio.create_task(wave.run(running))
    most_bytes, ends_s = 0, time.perf_counter() + seconds
    try:
        while (left_s := ends_s - time.perf_counter()) > 0:
            most_bytes = max(most_bytes, running.rss_bytes())
            advance(round(seconds - left_s))
            await asyncio.sleep(min(SAMPLE_S, left_s))
            if changing is not None and changing.done():
                changing.result()
    finally:
        if changing is not None:
            changing.cancel()
            await asyncio.wait({changing})
    ended = await running.scrape()
    most_bytes = max(most_bytes, running.rss_bytes())
    if wave is None:
        return Phase(began, ended, most_bytes)
    return Phase(began, ended, most_bytes, wave.changes, tuple(wave.seen_s), wave.unseen)


@contextmanager
def _bar(console: Console, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=2,  # it must cost nothing
    ) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)
