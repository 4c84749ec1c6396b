# SPDX-License-Identifier: Apache-2.0
"""The process that scrapes: `EngineScraper` with our reader of pages, or with a plain one.

`python -m autoscaler.bench.signals_scraper` answers each line on its standard input, an `Asked` in
JSON, with a `Seen`. HTTP, bookkeeping and limits are the same for both readers. What the plain one
has read it throws away, and one page read beforehand stands for all: only its reading is measured.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from statistics import fmean, median
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from autoscaler.adapters.engines.growth import Look
from autoscaler.adapters.engines.page import Page, page_of
from autoscaler.adapters.engines.scraper import EngineScraper
from autoscaler.adapters.plain_http import Answer, At, NoAnswer
from autoscaler.bench.client import quantile
from autoscaler.bench.cores import cores_busy_s
from autoscaler.bench.parent import next_line, tell
from autoscaler.bench.signals_page import page
from autoscaler.bench.signals_pods import PATH
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.descriptors import raise_descriptor_limit

OURS: Final = "tidegate"
PLAIN: Final = "plain"
LOOK_S: Final = 0.5  # how often it is seen how old everything is
PODS_OF_A_SERVICE: Final = 5
AT: Final = At("127.0.0.1", 1, "/metrics")


class MonotonicClock:
    """Seconds of this machine that never go back."""

    def now_s(self) -> float:
        return time.monotonic()


Read = Callable[[At, Answer | NoAnswer], Page | NoReading]


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn: `pods` of them behind `port`, scraped for `warm_s` and then measured.

    Without a port nothing is scraped: pages are read for `seconds`, one after another.
    """

    reader: str
    pods: int
    port: int | None
    warm_s: float
    seconds: float
    core: int


@dataclass(frozen=True, slots=True)
class Seen:
    """`cpu_s`: of this process; `core_s`: for how long its core was not idle, whoever used it.

    `fresh_ratio`: the part of the pods whose newest look counts, on average over the time, and
    `least_fresh_ratio` at its worst; the ages are of those.
    """

    seconds: float
    cpu_s: float
    core_s: float
    scrapes: int
    failed: int = 0
    why: str | None = None
    page_s: float | None = None  # CPU time, the median over pages; where nothing was scraped
    fresh_ratio: float | None = None
    least_fresh_ratio: float | None = None
    age_p50_s: float | None = None
    age_p99_s: float | None = None


def reader(name: str) -> Read:
    """By whom pages are read."""
    if name == OURS:
        return page_of
    known = page_of(AT, Answer(200, page(0), whole=True))
    return partial(_plainly, known)


def _plainly(known: Page | NoReading, at: At, answer: Answer | NoAnswer) -> Page | NoReading:
    if isinstance(answer, NoAnswer) or answer.status != 200 or not answer.whole:
        return page_of(at, answer)
    for _ in text_string_to_metric_families(answer.body.decode()):
        pass
    return known


async def scraped(asked: Asked) -> Seen:
    """One turn of scraping."""
    if asked.port is None:
        return read_alone(asked)
    places = _places(asked.pods, asked.port)
    clock = MonotonicClock()
    scraper = EngineScraper(clock=clock, random=Random(7), read=reader(asked.reader))  # noqa: S311
    async with _running(scraper):
        await _look(scraper, places, clock, asked.warm_s)
        before = scraper.health()
        began_s, cpu_s, core_s = clock.now_s(), time.process_time(), cores_busy_s()[asked.core]
        fresh, ages_s = await _look(scraper, places, clock, asked.seconds)
        after = scraper.health()
        return Seen(
            seconds=clock.now_s() - began_s,
            cpu_s=time.process_time() - cpu_s,
            core_s=cores_busy_s()[asked.core] - core_s,
            scrapes=after.asked - before.asked,
            failed=after.failed - before.failed,
            why=after.why,
            fresh_ratio=fmean(fresh),
            least_fresh_ratio=min(fresh),
            age_p50_s=quantile(ages_s, 0.5),
            age_p99_s=quantile(ages_s, 0.99),
        )


def read_alone(asked: Asked) -> Seen:
    """Read one page after another; each is another, as a second later."""
    read = reader(asked.reader)
    answers = [Answer(200, page(step), whole=True) for step in range(20)]
    took_s: list[float] = []
    began_s, core_s = time.monotonic(), cores_busy_s()[asked.core]
    while time.monotonic() - began_s < asked.seconds:
        for answer in answers:
            before_s = time.process_time()
            read(AT, answer)
            took_s.append(time.process_time() - before_s)
    return Seen(
        seconds=time.monotonic() - began_s,
        cpu_s=sum(took_s),
        core_s=cores_busy_s()[asked.core] - core_s,
        scrapes=0,
        page_s=median(took_s),
    )


def _places(pods: int, port: int) -> dict[ServiceId, dict[str, At]]:
    each = [(f"pod-{n}", At("127.0.0.1", port, PATH.format(n))) for n in range(pods)]
    return {
        ServiceId("bench", f"llm-{n}"): dict(each[n : n + PODS_OF_A_SERVICE])
        for n in range(0, pods, PODS_OF_A_SERVICE)
    }


@asynccontextmanager
async def _running(scraper: EngineScraper) -> AsyncIterator[None]:
    task = asyncio.create_task(scraper.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _look(
    scraper: EngineScraper,
    places: dict[ServiceId, dict[str, At]],
    clock: MonotonicClock,
    seconds: float,
) -> tuple[Sequence[float], Sequence[float]]:
    """Look as ticks do, for so long: which part was fresh each time; and all ages, in order."""
    fresh: list[float] = []
    ages_s: list[float] = []
    ends_s = clock.now_s() + seconds
    while (left_s := ends_s - clock.now_s()) > 0 or not fresh:
        for service, of in places.items():
            scraper.expect(service, of)
        looks = [scraper.look(service, pod) for service, of in places.items() for pod in of]
        now_s = clock.now_s()
        seen_s = [now_s - look.at_s for look in looks if isinstance(look, Look)]
        fresh.append(len(seen_s) / len(looks))
        ages_s += seen_s
        await asyncio.sleep(min(LOOK_S, max(left_s, 0.0)))
    return fresh, sorted(ages_s)


async def serve() -> None:
    """Answer until the parent ends."""
    raise_descriptor_limit()
    while line := await next_line():
        tell(json.dumps(asdict(await scraped(Asked(**json.loads(line))))))


if __name__ == "__main__":
    sys.exit(asyncio.run(serve()))
