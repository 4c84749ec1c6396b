# SPDX-License-Identifier: Apache-2.0
"""A source of signals that asks all replicas for their metrics during the tick, at once.

What was not read is no reading (rule D1): a replica that failed lowers the share that a reading
speaks for.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

from autoscaler.adapters.engines.growth import Growth
from autoscaler.adapters.engines.page import (
    LEVELS,
    SCRAPE_MAX_BYTES,
    SCRAPE_TIMEOUT_S,
    Page,
    Series,
    page_of,
)
from autoscaler.adapters.engines.table import Engine
from autoscaler.adapters.plain_http import At, get
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId
from autoscaler.ports import Clock, SourceHealth

# On one machine every request passes the activator, which tells the rest.
ASKED_FOR = (
    Measure.WAITING,
    Measure.TOKENS_TOTAL,
    Measure.PROMPT_TOKENS_TOTAL,
    Measure.KV_USED,
)


class EngineMetrics:
    """A `SignalSource`: asks every ready replica for its metrics, all at once."""

    name = "engine metrics"

    def __init__(
        self, places: Callable[[], Mapping[ServiceId, Mapping[str, At]]], *, clock: Clock
    ) -> None:
        """`places`: of each service that has metrics, replica id -> address, at this moment."""
        self._places = places
        self._clock = clock
        self._growth: dict[ServiceId, dict[Measure, Growth]] = {}
        self._engines: dict[ServiceId, Engine] = {}  # as last recognised
        self._asked = self._failed = 0
        self._why: str | None = None
        self._answered_at_s: float | None = None

    def health(self) -> SourceHealth:
        answered_at_s = self._answered_at_s
        age_s = None if answered_at_s is None else self._clock.now_s() - answered_at_s
        return SourceHealth(self.name, self._why, age_s, self._asked, self._failed)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        """Every service that has metrics, asked all together; takes a second at most."""
        places = {service: of for service, of in self._places().items() if service in services}
        asked = [
            (service, replica, at) for service, of in places.items() for replica, at in of.items()
        ]
        pages = await asyncio.gather(*(scrape(at) for _, _, at in asked))
        self._note(pages)
        by_service: dict[ServiceId, dict[str, Page | NoReading]] = {
            service: {} for service in places
        }
        for (service, replica, _), page in zip(asked, pages, strict=True):
            by_service[service][replica] = page
        return {service: self._sum(service, pages) for service, pages in by_service.items()}

    def _note(self, pages: Sequence[Page | NoReading]) -> None:
        whys = [page.why for page in pages if isinstance(page, NoReading)]
        self._asked += len(pages)
        self._failed += len(whys)
        self._why = f"{len(whys)} of {len(pages)} scrapes failed: {whys[0]}" if whys else None
        if len(whys) < len(pages):
            self._answered_at_s = self._clock.now_s()

    def _sum(self, service: ServiceId, pages: Mapping[str, Page | NoReading]) -> Measures:
        """One service's measures from what each of its replicas said."""
        for page in pages.values():
            if isinstance(page, Page):
                self._engines[service] = page.engine
        engine = self._engines.get(service)
        if engine is None:
            # Which measures its engine would have is not known before a first answer.
            return {measure: _first_why(pages, measure) for measure in ASKED_FOR} if pages else {}
        return {
            measure: self._one(service, measure, pages)
            for measure in ASKED_FOR
            if measure in engine.samples
        }

    def _one(
        self, service: ServiceId, measure: Measure, pages: Mapping[str, Page | NoReading]
    ) -> Reading | NoReading:
        said: dict[str, Mapping[Series, float]] = {}
        for replica, page in pages.items():
            values = page if isinstance(page, NoReading) else page.values.get(measure)
            if isinstance(values, Mapping):
                said[replica] = values
        if pages and not said:
            return _first_why(pages, measure)
        if measure in LEVELS:
            value = sum(sum(series.values()) for series in said.values())
        else:
            value = self._grown(service, measure, said, replicas=pages)
        # Without a replica nothing waits in one, and no token is added: that is known, not missing.
        share_ratio = len(said) / len(pages) if pages else 1.0
        return Reading(value, self._clock.now_s(), self.name, share_ratio)

    def _grown(
        self,
        service: ServiceId,
        measure: Measure,
        said: Mapping[str, Mapping[Series, float]],
        *,
        replicas: Collection[str],
    ) -> float:
        growth = self._growth.setdefault(service, {}).setdefault(measure, Growth())
        growth.forget_all_but(replicas)
        for replica, counters in said.items():
            growth.add(replica, counters)
        return growth.total


async def scrape(at: At) -> Page | NoReading:
    """What one replica says of itself now."""
    return page_of(at, await get(at, timeout_s=SCRAPE_TIMEOUT_S, max_bytes=SCRAPE_MAX_BYTES))


def _first_why(pages: Mapping[str, Page | NoReading], measure: Measure) -> NoReading:
    """Why no replica said anything of a measure, in the words of the first."""
    replica, page = next(iter(pages.items()))
    said = page if isinstance(page, NoReading) else page.values.get(measure)
    why = said.why if isinstance(said, NoReading) else f"{measure} is not exposed"
    more = f" (and {len(pages) - 1} more)" if len(pages) > 1 else ""
    return NoReading(f"{replica}: {why}{more}")
