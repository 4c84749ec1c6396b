# SPDX-License-Identifier: Apache-2.0
"""What model servers say of themselves in `/metrics`: queues and tokens, summed over a service.

Only `ENGINES` knows the names; an engine is recognised by what it exposes. What was not read is no
reading (rule D1): a replica that failed lowers the share that a reading speaks for.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from math import isfinite

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from autoscaler.adapters.plain_http import At, NoAnswer, get
from autoscaler.core.signals import AVERAGED, Measure, Measures, NoReading, Over, Reading, ServiceId
from autoscaler.ports import Clock

SCRAPE_TIMEOUT_S = 1.0  # for all of one scrape; a tick waits for the slowest
SCRAPE_MAX_BYTES = 1024 * 1024  # a large vLLM exposition is a tenth of this


class Inside(StrEnum):
    """What a replica tells of its own requests, where they need not pass an activator."""

    PRESENT = "present"  # requests in the replica now, queued ones too; levels that are summed
    ARRIVED_TOTAL = "arrived_total"  # grows with every request, at its beginning or its end
    SECONDS_TOTAL = "seconds_total"  # exact integral of PRESENT over time


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of model server: the sample that each measure is read from.

    `inside`: the samples whose sum each is; what an engine does not tell is not there.
    `same_on`: labels of ranks that work on the same requests and so repeat one another's numbers;
    of such series the largest counts. Over all other labels one sums: models, data-parallel ranks.
    """

    name: str
    samples: Mapping[Measure, str]
    inside: Mapping[Inside, tuple[str, ...]] = field(default_factory=dict)
    same_on: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Every sample that is read of it."""
        inside = (name for names in self.inside.values() for name in names)
        return frozenset((*self.samples.values(), *inside))


ENGINES: tuple[Engine, ...] = (
    Engine(
        "tidegate worker",
        {
            Measure.WAITING: "tidegate_worker_queue_depth",
        },
        inside={
            Inside.PRESENT: ("tidegate_worker_requests_in_flight",),
            Inside.ARRIVED_TOTAL: ("tidegate_worker_requests_arrived_total",),
            Inside.SECONDS_TOTAL: ("tidegate_worker_request_seconds_total",),
        },
    ),
    Engine(
        "vLLM",
        {
            Measure.WAITING: "vllm:num_requests_waiting",
            Measure.TOKENS_TOTAL: "vllm:generation_tokens_total",
        },
        inside={
            Inside.PRESENT: ("vllm:num_requests_running", "vllm:num_requests_waiting"),
            Inside.ARRIVED_TOTAL: ("vllm:request_success_total",),
        },
    ),
    Engine(
        "SGLang",
        {
            Measure.WAITING: "sglang:num_queue_reqs",
            # It moves only when a request finishes, so its rate lags by a request's length.
            Measure.TOKENS_TOTAL: "sglang:generation_tokens_total",
        },
        inside={
            Inside.PRESENT: ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
            Inside.ARRIVED_TOTAL: ("sglang:num_requests_total",),
        },
        same_on=frozenset({"tp_rank", "pp_rank", "moe_ep_rank"}),
    ),
    Engine(
        "TGI",
        {
            Measure.WAITING: "tgi_queue_size",
            Measure.TOKENS_TOTAL: "tgi_request_generated_tokens_sum",
        },
        inside={
            Inside.PRESENT: ("tgi_batch_current_size", "tgi_queue_size"),
            Inside.ARRIVED_TOTAL: ("tgi_request_count_total", "tgi_request_count"),
        },
    ),
    Engine(
        "llama.cpp",
        {
            Measure.WAITING: "llamacpp:requests_deferred",
            Measure.TOKENS_TOTAL: "llamacpp:tokens_predicted_total",
        },
    ),
)

# What some engine tells; whether it is a level or a total is the same for all (`AVERAGED`).
KNOWN = tuple(dict.fromkeys(measure for engine in ENGINES for measure in engine.samples))

Series = frozenset[tuple[str, str]]  # the labels that tell one series from another


@dataclass(frozen=True, slots=True)
class Page:
    """What one replica's metrics say: per measure the value of each series, or why not."""

    engine: Engine
    values: Mapping[Measure, Mapping[Series, float] | NoReading]
    inside: Mapping[Inside, Mapping[Series, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Growth:
    """A total of a service that never falls, whatever its replicas' counters do.

    A counter seen for the first time on a replica that is itself new to us adds nothing: how much
    of it is old cannot be known; unless `began` says that it began at 0 under our eyes.
    """

    total: float = 0.0
    last: dict[str, dict[Series, float]] = field(default_factory=dict)

    def add(self, replica: str, counters: Mapping[Series, float], *, began: bool = False) -> None:
        known = self.last.get(replica, {} if began else None)
        if known is not None:
            for series, value in counters.items():
                before = known.get(series, 0.0)
                self.total += value - before if value >= before else value  # it began anew
        self.last[replica] = {**(known or {}), **counters}

    def forget_all_but(self, replicas: Collection[str]) -> None:
        self.last = {name: last for name, last in self.last.items() if name in replicas}


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

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        """Every service that has metrics, asked all together; takes a second at most."""
        places = {service: of for service, of in self._places().items() if service in services}
        asked = [
            (service, replica, at) for service, of in places.items() for replica, at in of.items()
        ]
        pages = await asyncio.gather(*(scrape(at) for _, _, at in asked))
        by_service: dict[ServiceId, dict[str, Page | NoReading]] = {
            service: {} for service in places
        }
        for (service, replica, _), page in zip(asked, pages, strict=True):
            by_service[service][replica] = page
        return {service: self._sum(service, pages) for service, pages in by_service.items()}

    def _sum(self, service: ServiceId, pages: Mapping[str, Page | NoReading]) -> Measures:
        """One service's measures from what each of its replicas said."""
        for page in pages.values():
            if isinstance(page, Page):
                self._engines[service] = page.engine
        engine = self._engines.get(service)
        if engine is None:
            # Which measures its engine would have is not known before a first answer.
            return {measure: _first_why(pages, measure) for measure in KNOWN} if pages else {}
        return {measure: self._one(service, measure, pages) for measure in engine.samples}

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
        if AVERAGED[measure] is Over.MEAN:
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
    answer = await get(at, timeout_s=SCRAPE_TIMEOUT_S, max_bytes=SCRAPE_MAX_BYTES)
    if isinstance(answer, NoAnswer):
        return NoReading(f"{at} {answer.why}")
    if answer.status != HTTPStatus.OK:
        return NoReading(f"{at} answered {answer.status}")
    if not answer.whole:
        return NoReading(f"{at} broke off, or gave more than {SCRAPE_MAX_BYTES} bytes")
    page = read_page(answer.body.decode(errors="replace"))
    return NoReading(f"{at}: {page.why}") if isinstance(page, NoReading) else page


def read_page(text: str) -> Page | NoReading:
    """Recognise the engine and read its measures from a page in Prometheus' text format."""
    try:
        samples = _known_samples(text)
    except (ValueError, KeyError, IndexError) as error:
        return NoReading(f"not in Prometheus' text format: {error}")
    exposed = {sample.name for sample in samples}
    engine = next((e for e in ENGINES if exposed & e.names), None)
    if engine is None:
        names = ", ".join(engine.name for engine in ENGINES)
        return NoReading(f"no metric of a known engine ({names})")
    return Page(
        engine,
        {
            measure: _series((s for s in samples if s.name == name), name, engine.same_on)
            for measure, name in engine.samples.items()
        },
        _inside(engine, samples),
    )


def _inside(engine: Engine, samples: Collection[Sample]) -> Mapping[Inside, Mapping[Series, float]]:
    """What the page tells of the replica's own requests; a value that cannot be is left out."""
    told: dict[Inside, Mapping[Series, float]] = {}
    for what, names in engine.inside.items():
        exposed = {s.name for s in samples} & set(names)
        both = {
            name: _series((s for s in samples if s.name == name), name, engine.same_on)
            for name in exposed
        }
        if exposed and not any(isinstance(series, NoReading) for series in both.values()):
            told[what] = {
                labels | {("sample", name)}: value
                for name, series in both.items()
                if isinstance(series, Mapping)
                for labels, value in series.items()
            }
    return told


def _known_samples(text: str) -> list[Sample]:
    """Only the lines of `ENGINES` are parsed: a page has thousands that nobody asked for."""
    names = tuple(name for engine in ENGINES for name in engine.names)
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(names))
    families = text_string_to_metric_families(lines)
    return [sample for family in families for sample in family.samples]


def _series(
    samples: Iterable[Sample], name: str, same_on: frozenset[str]
) -> Mapping[Series, float] | NoReading:
    """The value of each series; of those that repeat one another, the largest."""
    values: dict[Series, float] = {}
    for sample in samples:
        if not isfinite(sample.value) or sample.value < 0:
            return NoReading(f"{name} is {sample.value:g}")
        labels = frozenset(item for item in sample.labels.items() if item[0] not in same_on)
        values[labels] = max(values.get(labels, 0.0), sample.value)
    return values or NoReading(f"{name} is not exposed")


def _first_why(pages: Mapping[str, Page | NoReading], measure: Measure) -> NoReading:
    """Why no replica said anything of a measure, in the words of the first."""
    replica, page = next(iter(pages.items()))
    said = page if isinstance(page, NoReading) else page.values.get(measure)
    why = said.why if isinstance(said, NoReading) else f"{measure} is not exposed"
    more = f" (and {len(pages) - 1} more)" if len(pages) > 1 else ""
    return NoReading(f"{replica}: {why}{more}")
