# SPDX-License-Identifier: Apache-2.0
"""One replica's page of metrics: which engine wrote it, and what it says. Pure.

What is not finite, negative, a sentinel or not exposed is no reading (rule D1).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite, prod
from typing import Final

from autoscaler.adapters.engines.answers import why_no_page
from autoscaler.adapters.engines.exposition import Sample, named, samples
from autoscaler.adapters.engines.notation import Line, Ways
from autoscaler.adapters.engines.stillness import Moved
from autoscaler.adapters.engines.table import ENGINES, Detail, Engine
from autoscaler.adapters.plain_http import Answer, At, NoAnswer
from autoscaler.core.signals import Measure, NoReading

SCRAPE_TIMEOUT_S = 1.0  # for all of one scrape
SCRAPE_MAX_BYTES = 1024 * 1024  # a large vLLM exposition is a tenth of this

# Parts of a whole are levels too; all else is a total.
PARTS: Final = frozenset({Measure.KV_USED})
LEVELS: Final = PARTS | {Measure.IN_FLIGHT, Measure.WAITING}
_DETAILED_TOTALS: Final = frozenset({Detail.PREEMPTIONS_TOTAL})

# Programs that do not know a number write the largest one that they have, or one near it: for a
# level far less is no number of requests either; a total of microseconds may well be larger.
_SENTINEL_LEVEL: Final = 1e15
_SENTINEL_TOTAL: Final = 9e18

Series = frozenset[tuple[str, str]]  # the name and the labels that tell one series from another
ByName = Mapping[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class Page:
    """What one replica's metrics say: per measure the value of each series, or why not.

    `stirs`: see `Engine`; empty where the engine has none, or exposes not all of them. `moved`: of
    an engine that has no gauge of what runs.
    """

    engine: Engine
    values: Mapping[Measure, Mapping[Series, float] | NoReading]
    stirs: Mapping[Series, float]
    moved: Moved | NoReading | None = None

    def total(self, measure: Measure) -> float | None:
        """The sum of a measure over its series; None: not told."""
        series = self.values.get(measure)
        # (Asking for `Mapping` instead takes three times as long, and this is asked all the time.)
        return None if series is None or isinstance(series, NoReading) else sum(series.values())


def page_of(at: At, answer: Answer | NoAnswer) -> Page | NoReading:
    """What a replica answered when it was asked for its metrics."""
    if isinstance(answer, NoAnswer):
        return NoReading(f"{at} {answer.why}")
    why = why_no_page(answer)
    if why is not None:
        return NoReading(f"{at} {why}")
    page = read_page(answer.body.decode(errors="replace"))
    if isinstance(page, NoReading):
        return NoReading(f"{at}: {page.why}")
    if page.engine.unended and at.processes > 1:
        # Connections go to one of them again and again, however busy the others are.
        return NoReading(
            f"{at}: one of several processes of {page.engine.name} answered, and each tells of "
            "itself alone; leave --workers at 1, and have more replicas"
        )
    return page


def read_page(text: str) -> Page | NoReading:
    """Recognise the engine and read its measures from a page."""
    engine = recognised(text)
    # Of a page that nobody's engine wrote it is only asked why it cannot be read.
    told = samples(text, names=_names(engine))
    if isinstance(told, NoReading):
        return told
    if engine is None:
        names = ", ".join(engine.name for engine in ENGINES)
        return NoReading(f"no metric of a known engine ({names})")
    known = by_name(told)
    unborn = _unborn(engine, known)
    values = {
        measure: {} if measure in unborn else series(either, known, engine=engine, of=measure)
        for measure, either in engine.samples.items()
    }
    stirs = series(engine.stirs, known, engine=engine, of=None)
    stirs = {} if isinstance(stirs, NoReading) else stirs
    moved = _moved(engine, values[Measure.REQUESTS_TOTAL], known) if engine.unended else None
    return Page(engine, values, stirs, moved)


def _moved(
    engine: Engine, requests: Mapping[Series, float] | NoReading, known: ByName
) -> Moved | NoReading:
    if isinstance(requests, NoReading):
        return requests
    unended = series(engine.unended, known, engine=engine, of=None)
    if isinstance(unended, NoReading):
        if requests or not engine.born_late:
            return unended
        unended = {}  # nothing has begun yet
    work_s = series(engine.work_s, known, engine=engine, of=None)
    if isinstance(work_s, NoReading):
        return work_s
    return Moved(max(0.0, sum(unended.values())), sum(requests.values()), sum(work_s.values()))


def recognised(text: str, *, among: Iterable[Engine] = ENGINES) -> Engine | None:
    """Whose metrics these are."""
    page, rows = f"\n{text}", tuple(among)
    engine = next((engine for engine in rows if _wrote(engine, page)), None)
    if engine is None and ("\n " in page or "\n\t" in page):
        page = re.sub(r"\n[ \t]+", "\n", page)  # lines may be indented
        engine = next((engine for engine in rows if _wrote(engine, page)), None)
    return engine


def _wrote(engine: Engine, page: str) -> bool:
    for begins in engine.known_by:
        at = page.find(f"\n{begins}")
        if at >= 0:
            line = page[at : page.find("\n", at + 1)]
            label = engine.known_label
            return not label or re.search(rf'[{{, ]{label}="', line) is not None
    return False


@cache
def _names(engine: Engine | None) -> re.Pattern[str]:
    return named(() if engine is None else (line.name for line in engine.lines))


def by_name(told: Iterable[Sample]) -> ByName:
    known: dict[str, list[Sample]] = {}
    for sample in told:
        known.setdefault(sample.name, []).append(sample)
    return known


def _unborn(engine: Engine, exposed: Collection[str]) -> Collection[Measure]:
    """The totals that no request has moved yet, so that they are not exposed though they are 0.

    Where only some are missing, they have other names in this version of the engine: not told.
    """
    if not engine.born_late:
        return ()
    totals = [measure for measure in engine.samples if measure not in LEVELS]
    lines = (line for total in totals for way in engine.samples[total] for line in way)
    return () if any(line.name in exposed for line in lines) else totals


def series(
    either: Ways, known: ByName, *, engine: Engine, of: Measure | Detail | None
) -> Mapping[Series, float] | NoReading:
    """The value of each series of the first way that is exposed; of parts of a whole, their mean.

    `of`: the quantity, None for totals of no quantity.
    """
    missing = None
    for way in either:
        exposed = [(line, _fitting(line, known)) for line in way]
        missing = missing or next(
            (line for line, fit in exposed if not fit and not line.optional), None
        )
        if all(fit or line.optional for line, fit in exposed):
            return _combined(exposed, engine=engine, of=of)
    others = [str(line) for way in either[1:] for line in way if not line.optional]
    nor = f", nor is {' or '.join(dict.fromkeys(others))}" if others else ""
    return NoReading(f"{missing} is not exposed{nor}")


def _fitting(line: Line, known: ByName) -> list[Sample]:
    found = known.get(line.name, [])
    return [s for s in found if line.where.items() <= s.labels.items()] if line.where else found


def _combined(
    exposed: Iterable[tuple[Line, list[Sample]]], *, engine: Engine, of: Measure | Detail | None
) -> Mapping[Series, float] | NoReading:
    """Of series that repeat one another the largest; of a whole and its parts the whole."""
    level = of in LEVELS or (isinstance(of, Detail) and of not in _DETAILED_TOTALS)
    values: dict[Series, float] = {}
    for line, found in exposed:
        for sample in _wholes(found, engine.whole_on):
            why = implausible(sample, level=level, part=of in PARTS)
            value = None if why else _scaled(line, sample)
            if value is None:
                return NoReading(why or f"{line} has no number in {' or '.join(line.times)}")
            told_apart = (item for item in sample.labels.items() if item[0] not in engine.same_on)
            key = frozenset((("", line.name), *told_apart))
            values[key] = max(values[key], value) if key in values else value
    if of in PARTS and values:
        return {frozenset({("", str(of))}): sum(values.values()) / len(values)}
    return values


def _wholes(found: list[Sample], whole_on: frozenset[str]) -> list[Sample]:
    if not whole_on:
        return found
    wholes = [s for s in found if not any(s.labels.get(label) for label in whole_on)]
    return wholes or found


def implausible(sample: Sample, *, level: bool, part: bool = False) -> str | None:
    """Why a number cannot be believed; None: it can."""
    value = sample.value
    if not isfinite(value) or value < 0:
        return f"{sample.name} is {value:g}"
    if value > (_SENTINEL_LEVEL if level else _SENTINEL_TOTAL):
        return f"{sample.name} is {value:g}, which stands for unknown"
    if part and value > 1:
        return f"{sample.name} is {value:g}, more than the whole"
    return None


def _scaled(line: Line, sample: Sample) -> float | None:
    """In our unit; None: the labels that it is to be multiplied by are no numbers."""
    try:
        return sample.value * line.factor * prod(float(sample.labels[name]) for name in line.times)
    except (KeyError, ValueError):
        return None
