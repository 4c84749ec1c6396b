# SPDX-License-Identifier: Apache-2.0
"""Sends the demo's requests: for each visit a recorded stretch, compressed, moment by moment.

Every request is checked against the model's own answer: a wrong or missing one is lost.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import orjson

from simulations.demo.stage import DemoService
from simulations.traces.arrivals import Arrival
from simulations.traces.formats import read_trace
from simulations.traces.shape import Shape, shaped
from simulations.traces.synthetic import Synthetic, synthesize

SPEEDUP = 10.0
PATIENCE_S = 60.0
AZURE = Path("traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv")


@dataclass(frozen=True, slots=True)
class Visit:
    """One stretch of the trace sent to one service; seconds of the trace, and of the demo."""

    service: int
    from_s: float
    until_s: float
    starts_at_s: float


# Both services wake, one of them twice, and between the visits there is time to fall asleep.
VISITS = (
    Visit(service=0, from_s=0, until_s=150, starts_at_s=0),
    Visit(service=1, from_s=150, until_s=330, starts_at_s=4),
    Visit(service=0, from_s=400, until_s=520, starts_at_s=33),
)


@dataclass(frozen=True, slots=True)
class Shot:
    """One request of the demo: when, to whom, and how many rows it asks about."""

    at_s: float
    service: str
    rows: int


@dataclass
class Tally:
    """What became of one service's requests."""

    sent: int = 0
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    held: int = 0
    latencies_s: list[float] = field(default_factory=list)
    recent: list[tuple[float, float]] = field(default_factory=list)  # (when answered, latency)

    @property
    def open(self) -> int:
        return self.sent - self.answered - len(self.lost)


def recorded_trace() -> Path | None:
    """The Azure trace under $TIDEGATE_DATA, or under shared/data beside the project, if there."""
    data = os.environ.get("TIDEGATE_DATA")
    folders = [Path(data)] if data else [Path("../shared/data")]
    return next((folder / AZURE for folder in folders if (folder / AZURE).is_file()), None)


def arrivals(trace: Path | None, *, seed: int) -> tuple[str, Sequence[Arrival]]:
    """The trace's name and its arrivals; without a file a seeded synthetic one like it."""
    if trace is not None:
        recorded = read_trace(trace, "azure", seed=seed)
        return recorded.name, recorded.arrivals
    like_azure = Synthetic(duration_s=600.0, rate_per_s=5.5, prompt_tokens=1155, output_tokens=211)
    return f"synthetic, seed {seed}", synthesize(like_azure, Random(seed))  # noqa: S311  a seeded demo


def shots(arrivals: Sequence[Arrival], services: Sequence[DemoService]) -> list[Shot]:
    """Every visit's requests in order of time."""
    planned = []
    for visit in VISITS:
        service = services[visit.service]
        shape = Shape(from_s=visit.from_s, until_s=visit.until_s, speedup=SPEEDUP)
        planned += [
            Shot(
                visit.starts_at_s + arrival.at_s,
                service.name,
                min(1 + arrival.prompt_tokens // service.tokens_per_row, len(service.rows)),
            )
            for arrival in shaped(arrivals, shape, chance=Random(0))  # noqa: S311  nothing is drawn
        ]
    return sorted(planned, key=lambda shot: shot.at_s)


async def send(
    planned: Sequence[Shot], services: Sequence[DemoService], tallies: dict[str, Tally]
) -> None:
    """Send every shot at its moment, and wait until each has its answer or is lost."""
    loop = asyncio.get_running_loop()
    by_name = {service.name: service for service in services}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits, trust_env=False) as http:
        start_s = loop.time()
        async with asyncio.TaskGroup() as sending:
            for shot in planned:
                await asyncio.sleep(max(0.0, start_s + shot.at_s - loop.time()))
                service = by_name[shot.service]
                sending.create_task(_ask(http, service, shot.rows, tallies[shot.service]))


async def _ask(http: httpx.AsyncClient, service: DemoService, rows: int, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    tally.sent += 1
    try:
        answer = await http.post(
            f"http://127.0.0.1:{service.port}/v1/models/{service.name}:predict",
            content=orjson.dumps({"instances": service.rows[:rows]}),
            headers={"Content-Type": "application/json"},
        )
    except httpx.HTTPError as error:
        tally.lost.append(f"{type(error).__name__}: {error}")
        return
    latency_s = loop.time() - began_s
    if answer.status_code != 200:
        tally.lost.append(f"{answer.status_code}: {answer.text[:200]}")
    elif orjson.loads(answer.content).get("predictions") != service.answers[:rows]:
        tally.lost.append(f"wrong answer: {answer.text[:200]}")
    else:
        tally.answered += 1
        tally.held += "X-Tidegate-Held-S" in answer.headers
        tally.latencies_s.append(latency_s)
        tally.recent.append((loop.time(), latency_s))
