# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is asked, one query a signal for all services, and what an answer says. Pure.

An instant query tells when it was evaluated, never how old its samples are. So each query asks for
the numbers and for their time, told apart by a label; a number without its time is none.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

from autoscaler.adapters.engines.notation import Line
from autoscaler.adapters.engines.page import LEVELS, PARTS
from autoscaler.adapters.engines.table import ENGINES, Engine
from autoscaler.adapters.gpus.dcgm import ENGINE_ACTIVE, UTILIZATION
from autoscaler.adapters.prometheus.client import Sample
from autoscaler.core.signals import Measure, NoReading, Signal

MEASURED: Final[Mapping[Signal, Measure]] = {
    Signal.CONCURRENCY: Measure.IN_FLIGHT,
    Signal.QUEUE: Measure.WAITING,
    Signal.RPS: Measure.REQUESTS_TOTAL,
    Signal.TOKENS_PER_S: Measure.TOKENS_TOTAL,
    Signal.KV: Measure.KV_USED,
}

# Where a series says whose it is; the first that is there counts. What an exporter says of others
# comes first: `pod` may be the exporter's own.
POD_LABELS: Final = ("exported_pod", "pod_name", "pod", "kubernetes_pod_name")
NAMESPACE_LABELS: Final = (
    "exported_namespace", "pod_namespace", "namespace", "kubernetes_namespace",
)  # fmt: skip
WHOSE: Final = ", ".join((*NAMESPACE_LABELS, *POD_LABELS))
# A pod that is scraped twice, as behind two Services, is counted once.
SCRAPED_BY: Final = ("endpoint", "job", "prometheus", "prometheus_replica", "service")
PART: Final = "tidegate_part"
TIME: Final = "@"  # after the number of a part: when it was seen

GPU_OWN: Final = ("GPU_I_ID", "Hostname", "UUID", "gpu", "hostname")  # tell GPUs and slices apart
BELIEVED_MOST: Final = 1e15  # beyond it are the marks that stand for "not known"

Place = tuple[str, str]  # namespace, pod


@dataclass(frozen=True, slots=True)
class Use:
    """One part of a query, as a way counts it: `factor` times; without it, where it is optional."""

    part: str
    name: str
    factor: float = 1.0
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which a pod may tell a signal, a sum. Above `most` a value is a mistake."""

    uses: tuple[Use, ...]
    most: float

    def __str__(self) -> str:
        return " + ".join(use.name for use in self.uses)


@dataclass(frozen=True, slots=True)
class Question:
    """One signal of all pods; `ways`: the one that a pod has most of counts, then the first."""

    signal: Signal
    promql: str
    ways: tuple[Way, ...]
    window_s: float


@dataclass(frozen=True, slots=True)
class Told:
    """What one pod's series say; `age_s`: of the oldest sample in it, by Prometheus' clock."""

    value: float
    age_s: float


def questions(*, window_s: float) -> tuple[Question, ...]:
    """One for each signal that anything tells; rates are means over `window_s`."""
    asked = [_of_engines(signal, window_s=window_s) for signal in MEASURED]
    return tuple(one for one in (*asked, _of_gpus(window_s=window_s)) if one.ways)


def place_of(labels: Mapping[str, str]) -> Place:
    """Whose series it is; empty where it does not say."""
    return _first(labels, NAMESPACE_LABELS), _first(labels, POD_LABELS)


def told_by_pods(question: Question, samples: Sequence[Sample]) -> Mapping[Place, Told | NoReading]:
    """What the answer to a question says of each pod, as of one moment."""
    seen: defaultdict[Place, dict[str, float]] = defaultdict(dict)
    at_s = samples[0].at_s if samples else 0.0
    for labels, value, _ in samples:
        parts, part = seen[place_of(labels)], labels.get(PART, "")
        if part in parts:  # told twice, as by an exporter that has just been replaced
            value = (min if part.endswith(TIME) else max)(value, parts[part])
        parts[part] = value
    return {place: _told(question, parts, at_s=at_s) for place, parts in seen.items() if all(place)}


def _told(question: Question, parts: Mapping[str, float], *, at_s: float) -> Told | NoReading:
    whys = []
    # Two engines may share names, and one has more of them: the way that a pod has most of.
    for way in sorted(question.ways, key=lambda way: -_had(way, parts)):
        if _had(way, parts):
            told = _by_one_way(way, parts, at_s=at_s, window_s=question.window_s)
            if isinstance(told, Told):
                return told
            whys.append(told)
    return whys[0] if whys else NoReading(f"{question.signal} has no time")


def _had(way: Way, parts: Mapping[str, float]) -> int:
    """How many of a way's parts there are."""
    return sum(use.part + TIME in parts for use in way.uses)


def _by_one_way(
    way: Way, parts: Mapping[str, float], *, at_s: float, window_s: float
) -> Told | NoReading:
    total, oldest_s = 0.0, at_s
    for use in way.uses:
        value, seen_at_s = parts.get(use.part), parts.get(use.part + TIME)
        if seen_at_s is None:
            if use.optional:
                continue
            return NoReading(f"{use.name} is not exposed, or no longer scraped")
        if value is None:
            return NoReading(f"{use.name} has fewer than two samples in {window_s:g} s")
        if not isfinite(value) or value < 0:
            return NoReading(f"{use.name} is {value:g}")
        total += value * use.factor
        oldest_s = min(oldest_s, seen_at_s)
    if not 0 <= total <= way.most:
        return NoReading(f"{way} is {total:g}, which cannot be")
    return Told(total, at_s - oldest_s)


class _Parts:
    """The parts of one query, each once however many ways count it."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}
        self._terms: list[str] = []

    def number(self, value: str, *, seen: str) -> str:
        """The number of the part with this value, whose samples are those of `seen`."""
        if value not in self._numbers:
            number = self._numbers[value] = str(len(self._numbers))
            time = f"min by ({WHOSE}) (timestamp({seen}))"
            for expression, name in ((value, number), (time, number + TIME)):
                self._terms.append(f'label_replace({expression}, "{PART}", "{name}", "", "")')
        return self._numbers[value]

    def __str__(self) -> str:
        return _joined(self._terms)


def _joined(terms: Sequence[str]) -> str:
    """All of them, in pairs of pairs: each `or` copies what stands on both of its sides."""
    if len(terms) <= 1:
        return "".join(terms)
    half = len(terms) // 2
    return f"({_joined(terms[:half])} or {_joined(terms[half:])})"


def _of_engines(signal: Signal, *, window_s: float) -> Question:
    measure, parts = MEASURED[signal], _Parts()
    most = 1.0 if measure in PARTS else BELIEVED_MOST
    ways = dict.fromkeys(  # each once: engines share names
        Way(tuple(_use(line, engine, measure, parts, window_s=window_s) for line in way), most)
        for engine in ENGINES
        for way in engine.samples.get(measure, ())
    )
    return Question(signal, str(parts), tuple(ways), window_s)


def _use(line: Line, engine: Engine, measure: Measure, parts: _Parts, *, window_s: float) -> Use:
    """A line's number for each pod: a level's sum, the mean of parts of a whole, or a rate."""
    wholes = (f'{label}=""' for label in sorted(engine.whole_on))
    where = (f'{label}="{value}"' for label, value in line.where.items())
    matchers = ", ".join((*where, *wholes, *_known(engine, line)))
    seen = f"{line.name}{{{matchers}}}" if matchers else line.name
    level = seen if measure in LEVELS else f"rate({seen}[{window_s * 1000:.0f}ms])"
    once = ", ".join(sorted({*SCRAPED_BY, *engine.same_on}))
    combined = "avg" if measure in PARTS else "sum"
    value = f"{combined} by ({WHOSE}) (max without ({once}) ({level}))"
    return Use(parts.number(value, seen=seen), str(line), line.factor, line.optional)


def _known(engine: Engine, line: Line) -> Iterator[str]:
    """What tells this engine's series from those of another that uses the same names."""
    if engine.known_label and line.name.startswith(engine.known_by):
        yield f'{engine.known_label}!=""'


def _of_gpus(*, window_s: float) -> Question:
    """The mean over a pod's GPUs: of their engines' activity, else of the time with any kernel."""
    parts, ways = _Parts(), []
    for field in (ENGINE_ACTIVE, UTILIZATION):
        each = f"max by ({WHOSE}, {', '.join(GPU_OWN)}) ({field.name})"
        part = parts.number(f"avg by ({WHOSE}) ({each})", seen=field.name)
        ways.append(Way((Use(part, field.name, 1 / field.per),), field.most / field.per))
    return Question(Signal.GPU_UTILIZATION, str(parts), tuple(ways), window_s)


def _first(labels: Mapping[str, str], names: Iterable[str]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")
