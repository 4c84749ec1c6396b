# SPDX-License-Identifier: Apache-2.0
"""The page of engines: what is read of each model server, drawn from the table that reads it."""

from collections.abc import Iterator

from autoscaler.adapters.engines.notation import Line, Mean, TimeWays, Ways
from autoscaler.adapters.engines.table import ENGINES, Engine, Times
from autoscaler.adapters.engines.telling import CAPACITIES, READINGS, told_by
from autoscaler.core.signals import Measure
from docs.table import table

_INTRODUCTION = """# Engines

What Tidegate reads in the `/metrics` of model servers. An engine is recognised by the names of its
samples; `tidegate signals parse FILE|URL` says what a page tells, in one vocabulary and with the
reason for what is absent. Text format 0.0.4 and OpenMetrics 1.0 are read alike.

- Where several names stand for one quantity the first that is exposed counts: newer ones, then
  older.
- Series are summed: models, data-parallel engines. Ranks that repeat one another (SGLang's
  `tp_rank`, `pp_rank`, `moe_ep_rank`) count once, with the largest number.
- KV use is a part of the replica's whole cache: of data-parallel engines it is the mean. The same
  GPUs as so many replicas of one engine would give the same number.
- Times are seconds. A quantile is worked out from whatever buckets there are, on a line within one,
  as `histogram_quantile` does; of series with different buckets by those that they share. A
  summary's own quantiles are taken as they are, where it has one series; two counters give a mean
  alone.
- Not believed, and so absent: NaN, infinities, negatives, levels beyond 1e15 (2^64-1 stands for
  unknown), a part of a whole above 1, and a page that does not end with a newline: it was cut off.
- Idle is proven by an engine that tells both how much is in flight and how many requests it had;
  or, without a gauge of what is in flight, that as many requests ended as began, and that its
  process hardly used a CPU: less than a tenth of one. A request that failed in between has begun
  and never ends; after 10 minutes without any change nobody waits for it any more. Without such
  proof a service is scaled and never put to sleep.

"""
_STILL = {"begun and not ended": "unended", "seconds of CPU": "work_s"}
_MORE = {"in flight": Measure.IN_FLIGHT, "request-seconds": Measure.REQUEST_SECONDS_TOTAL}


def engines_page() -> str:
    head = ("engine", "`--engine`", "proves idle", "queue", "runs", "KV use", "tokens", "times")
    parts = [_INTRODUCTION, table(head, map(_row, ENGINES))]
    for engine in ENGINES:
        begins = " or ".join(f"`{begin}`" for begin in engine.known_by)
        labelled = f", with the label `{engine.known_label}`" if engine.known_label else ""
        parts.append(f"\n## {engine.name}\n\nRecognised by {begins}{labelled}.\n\n")
        parts.append(table(("quantity", "read from"), _names(engine)))
    return "".join(parts)


def _row(engine: Engine) -> tuple[str, ...]:
    samples = engine.samples
    return (
        engine.name,
        f"`{engine.key}`",
        _yes(engine.proves_idle),
        _yes(Measure.WAITING in samples),
        _yes(READINGS["running"] in engine.details),
        _yes(Measure.KV_USED in samples),
        _yes(Measure.TOKENS_TOTAL in samples),
        ", ".join(time.removesuffix("_s") for time in Times if time in engine.times) or "-",
    )


def _yes(told: bool) -> str:
    return "yes" if told else "-"


def _names(engine: Engine) -> Iterator[tuple[str, str]]:
    for name, quantity in (*READINGS.items(), *CAPACITIES.items(), *_MORE.items()):
        ways = told_by(engine, quantity)
        if ways is not None:
            yield name, _ways(ways)
    for name, field in _STILL.items():
        if either := getattr(engine, field):
            yield name, _ways(either)
    for time, either in engine.times.items():
        yield time, _times(either)


def _ways(ways: Ways) -> str:
    return "<br>else ".join("".join(map(_term, way)).removeprefix(" + ") for way in ways)


def _term(line: Line) -> str:
    times = "".join(f" x `{label}`" for label in line.times)
    sign = " - " if line.factor < 0 else " + "
    return f"{sign}`{line}`{times}{' (if exposed)' if line.optional else ''}"


def _times(ways: TimeWays) -> str:
    return "<br>else ".join(
        f"`{way.total}` / `{way.count}`" if isinstance(way, Mean) else f"`{way}`" for way in ways
    )
