# SPDX-License-Identifier: Apache-2.0
"""One replica's page of metrics: which engine wrote it, and what it says. Pure.

What is not finite, negative or not exposed is no reading (rule D1).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from autoscaler.adapters.engines.answers import why_no_page
from autoscaler.adapters.engines.table import ENGINES, Engine, Line
from autoscaler.adapters.plain_http import Answer, At, NoAnswer
from autoscaler.core.signals import Measure, NoReading

SCRAPE_TIMEOUT_S = 1.0  # for all of one scrape
SCRAPE_MAX_BYTES = 1024 * 1024  # a large vLLM exposition is a tenth of this

LEVELS = frozenset({Measure.IN_FLIGHT, Measure.WAITING})  # all else is a total

# Only the lines of `ENGINES` are parsed: a page has thousands that nobody asked for.
_NAMES = sorted({line.name for engine in ENGINES for line in engine.lines})
_KNOWN_LINES = re.compile(
    rf"^(?:{'|'.join(map(re.escape, _NAMES))})(?![a-zA-Z0-9_:]).*$", re.MULTILINE
)

Series = frozenset[tuple[str, str]]  # the name and the labels that tell one series from another


@dataclass(frozen=True, slots=True)
class Page:
    """What one replica's metrics say: per measure the value of each series, or why not.

    `stirs`: see `Engine`; empty where the engine has none, or exposes not all of them.
    """

    engine: Engine
    values: Mapping[Measure, Mapping[Series, float] | NoReading]
    stirs: Mapping[Series, float]

    def total(self, measure: Measure) -> float | None:
        """The sum of a measure over its series; None: not told."""
        series = self.values.get(measure)
        return sum(series.values()) if isinstance(series, Mapping) else None


def page_of(at: At, answer: Answer | NoAnswer) -> Page | NoReading:
    """What a replica answered when it was asked for its metrics."""
    if isinstance(answer, NoAnswer):
        return NoReading(f"{at} {answer.why}")
    why = why_no_page(answer)
    if why is not None:
        return NoReading(f"{at} {why}")
    page = read_page(answer.body.decode(errors="replace"))
    return NoReading(f"{at}: {page.why}") if isinstance(page, NoReading) else page


def read_page(text: str) -> Page | NoReading:
    """Recognise the engine and read its measures from a page in Prometheus' text format."""
    known = "".join(f"{line}\n" for line in _KNOWN_LINES.findall(text))
    try:
        samples = [s for family in text_string_to_metric_families(known) for s in family.samples]
    except (ValueError, KeyError, IndexError) as error:
        return NoReading(f"not in Prometheus' text format: {error}")
    engine = next((e for e in ENGINES if any(s.name.startswith(e.known_by) for s in samples)), None)
    if engine is None:
        names = ", ".join(engine.name for engine in ENGINES)
        return NoReading(f"no metric of a known engine ({names})")
    unborn = _unborn(engine, {sample.name for sample in samples})
    values = {
        measure: {} if measure in unborn else _series(lines, samples, engine.same_on)
        for measure, lines in engine.samples.items()
    }
    stirs = _series(engine.stirs, samples, engine.same_on)
    return Page(engine, values, {} if isinstance(stirs, NoReading) else stirs)


def _unborn(engine: Engine, exposed: Collection[str]) -> Collection[Measure]:
    """The totals that no request has moved yet, so that they are not exposed though they are 0.

    Where only some are missing, they have other names in this version of the engine: not told.
    """
    if not engine.born_late:
        return ()
    totals = [measure for measure in engine.samples if measure not in LEVELS]
    born = any(line.name in exposed for measure in totals for line in engine.samples[measure])
    return () if born else totals


def _series(
    lines: Iterable[Line], samples: Iterable[Sample], same_on: frozenset[str]
) -> Mapping[Series, float] | NoReading:
    """The value of each series; of those that repeat one another, the largest."""
    values: dict[Series, float] = {}
    for line in lines:
        exposed = False
        for sample in samples:
            if sample.name != line.name or not line.where.items() <= sample.labels.items():
                continue
            if not isfinite(sample.value) or sample.value < 0:
                return NoReading(f"{line.name} is {sample.value:g}")
            exposed = True
            told_apart = (item for item in sample.labels.items() if item[0] not in same_on)
            series = frozenset((("", line.name), *told_apart))
            values[series] = max(values.get(series, 0.0), sample.value)
        if not exposed:
            return NoReading(f"{line.name} is not exposed")
    return values
