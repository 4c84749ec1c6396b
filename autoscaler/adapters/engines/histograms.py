# SPDX-License-Identifier: Apache-2.0
"""How long things took: counts, sums and quantiles of histograms and summaries. Pure.

Bounds are as a page gives them: operators may choose their own. What is not whole (buckets that
fall, a number that is none) is no reading (rule D1).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan

from autoscaler.adapters.engines.exposition import Sample
from autoscaler.adapters.engines.notation import Line, Mean
from autoscaler.adapters.engines.page import implausible
from autoscaler.core.signals import NoReading

ByName = Mapping[str, Sequence[Sample]]
Buckets = Sequence[tuple[float, float]]  # upper bound, how many are at or below it; both rise


@dataclass(frozen=True, slots=True)
class Distribution:
    """Since the server began. A quantile is None where no bucket tells it."""

    count: float
    sum_s: float
    p50_s: float | None = None
    p95_s: float | None = None


def quantile(buckets: Buckets, q: float) -> float | None:
    """Where the part `q` (0-1) lies, on a line within its bucket; None: nothing was seen.

    The first bucket begins at 0, unless it ends below; beyond the last finite bound all that is
    known is that bound.
    """
    total = buckets[-1][1] if buckets else 0.0
    finite = [bound for bound, _ in buckets if bound != inf]
    if total <= 0 or not finite:
        return None
    rank = q * total
    below, seen = (0.0, 0.0) if finite[0] > 0 else (finite[0], 0.0)
    for bound, count in buckets:
        if count >= rank:
            if bound == inf:
                return finite[-1]
            inside = count - seen
            return below + (bound - below) * (rank - seen) / inside if inside > 0 else bound
        below, seen = bound, count
    return finite[-1]


def distribution(
    told: Line | Mean, known: ByName, *, same_on: Collection[str] = ()
) -> Distribution | NoReading:
    """What a page says of one time, summed over its series; ranks that repeat count once."""
    if isinstance(told, Mean):
        return _mean(told, known, same_on)
    if not any(told.name + ending in known for ending in ("_count", "_sum", "_bucket", "")):
        return NoReading(f"{told.name} is not exposed")
    count = _summed(f"{told.name}_count", known, same_on)
    total = _summed(f"{told.name}_sum", known, same_on)
    if isinstance(count, NoReading):
        return count
    if isinstance(total, NoReading):
        return total
    buckets = [s for name in ("_bucket", "") for s in known.get(told.name + name, ())]
    histogram = [sample for sample in buckets if "le" in sample.labels]
    if histogram:
        merged = _merged(told.name, histogram, same_on)
        if isinstance(merged, NoReading):
            return merged
        p50, p95 = quantile(merged, 0.5), quantile(merged, 0.95)
    else:
        p50, p95 = (_of_summary(known.get(told.name, ()), q) for q in (0.5, 0.95))
    return Distribution(
        count,
        _seconds(total, told),
        None if p50 is None else _seconds(p50, told),
        None if p95 is None else _seconds(p95, told),
    )


def _seconds(value: float, told: Line) -> float:
    """Without what a factor such as 1e-6, which no float is, adds in the seventeenth digit."""
    return value if told.factor == 1 else float(f"{value * told.factor:.12g}")


def _mean(told: Mean, known: ByName, same_on: Collection[str]) -> Distribution | NoReading:
    total = _summed(told.total.name, known, same_on)
    count = _summed(told.count.name, known, same_on)
    if isinstance(total, NoReading):
        return total
    if isinstance(count, NoReading):
        return count
    return Distribution(count, _seconds(total, told.total))


def _summed(name: str, known: ByName, same_on: Collection[str]) -> float | NoReading:
    values: dict[object, float] = {}
    for sample in known.get(name, ()):
        why = implausible(sample, level=False)
        if why is not None:
            return NoReading(why)
        key = _apart(sample, same_on)
        values[key] = max(values.get(key, 0.0), sample.value)
    return sum(values.values()) if values else NoReading(f"{name} is not exposed")


def _apart(sample: Sample, same_on: Collection[str]) -> frozenset[tuple[str, str]]:
    """What tells a series from the others."""
    hidden = {"le", "quantile", *same_on}
    return frozenset(item for item in sample.labels.items() if item[0] not in hidden)


def _merged(
    name: str, samples: Iterable[Sample], same_on: Collection[str]
) -> list[tuple[float, float]] | NoReading:
    """All series as one, by the bounds that they have in common."""
    each: dict[object, dict[float, float]] = {}
    for sample in samples:
        try:
            bound = float(sample.labels["le"])
        except ValueError:
            return NoReading(f"{name} has a bucket up to {sample.labels['le']!r}")
        if isnan(bound) or not 0 <= sample.value < inf:
            return NoReading(f"{name} has {sample.value:g} up to {bound:g}")
        series = each.setdefault(_apart(sample, same_on), {})
        series[bound] = max(series.get(bound, 0.0), sample.value)
    for series in each.values():
        counts = [series[bound] for bound in sorted(series)]
        if counts != sorted(counts):
            return NoReading(f"{name} has buckets whose counts fall")
    common = set.intersection(*(set(series) for series in each.values()))
    if inf not in common:
        return []
    return [(b, sum(series[b] for series in each.values())) for b in sorted(common)]


def _of_summary(samples: Iterable[Sample], q: float) -> float | None:
    """As the server found it; quantiles of several series do not add up to one."""
    found = []
    for sample in samples:
        try:
            is_it = float(sample.labels.get("quantile", "nan")) == q
        except ValueError:
            return None
        if is_it:
            found.append(sample.value)
    return found[0] if len(found) == 1 and 0 <= found[0] < inf else None
