# SPDX-License-Identifier: Apache-2.0
"""All that a metrics page says, in one vocabulary, for people and programs that ask. Pure.

The loop reads less, and faster: `page.py`. What is absent is named with the reason, never 0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from autoscaler.adapters.engines.exposition import Sample, samples
from autoscaler.adapters.engines.histograms import Distribution, distribution
from autoscaler.adapters.engines.notation import Mean, Ways
from autoscaler.adapters.engines.page import by_name, implausible, recognised, series
from autoscaler.adapters.engines.table import (
    ENGINES,
    EXPORTER_KEY,
    EXPORTER_KNOWN_BY,
    Detail,
    Engine,
    Times,
)
from autoscaler.adapters.gpus import dcgm
from autoscaler.adapters.gpus.devices import Device
from autoscaler.core.signals import Measure, NoReading

# In the order in which they are shown.
READINGS: Final[Mapping[str, Measure | Detail]] = {
    "queue_depth": Measure.WAITING,
    "running": Detail.RUNNING,
    "kv_used_ratio": Measure.KV_USED,
    "prompt_tokens_total": Measure.PROMPT_TOKENS_TOTAL,
    "generation_tokens_total": Measure.TOKENS_TOTAL,
    "requests_total": Measure.REQUESTS_TOTAL,
    "preemptions_total": Detail.PREEMPTIONS_TOTAL,
}
CAPACITIES: Final[Mapping[str, Detail]] = {
    "kv_tokens_max": Detail.KV_TOKENS_MAX,
    "running_max": Detail.RUNNING_MAX,
}
KEYS: Final = tuple(sorted({engine.key for engine in ENGINES} | {EXPORTER_KEY}))
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True)
class Told:
    """`engine`: as users name it, and `name` as its makers do; `absent`: what is missing, and why.

    `capacities`: how much there is of what is used, where the engine tells.
    """

    engine: str
    name: str
    readings: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[Times, Distribution] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    capacities: Mapping[str, float] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()


def told(text: str, *, key: str = AUTO) -> Told | NoReading:
    """What a page says. `key`: of the engine that it is taken for; by itself it is recognised."""
    known = samples(text, names=_ASKED)
    if isinstance(known, NoReading):
        return known
    exporter = any(sample.name.startswith(EXPORTER_KNOWN_BY) for sample in known)
    engine = _engine(text, key)
    if key == EXPORTER_KEY or (key == AUTO and engine is None and exporter):
        return _exported(known)
    if engine is None:
        return NoReading(_unknown(text))
    return _of_engine(engine, known)


def _unknown(text: str) -> str:
    anything = samples(text)
    if isinstance(anything, NoReading):
        return anything.why
    if not anything:
        return "no metric in it"
    return f"no metric of a known engine ({', '.join(KEYS)})"


def _engine(text: str, key: str) -> Engine | None:
    """The row of the table; of several with one key the one that fits, else the most general."""
    rows = [engine for engine in ENGINES if key in (AUTO, engine.key)]
    fits = recognised(text, among=rows)
    return rows[-1] if fits is None and rows and key != AUTO else fits


def _of_engine(engine: Engine, known: tuple[Sample, ...]) -> Told:
    samples_of = by_name(known)
    readings, absent = _read(READINGS, engine, samples_of)
    capacities, _ = _read(CAPACITIES, engine, samples_of)
    histograms = {}
    for time in Times:
        seen = _distribution(engine, time, samples_of)
        if isinstance(seen, Distribution):
            histograms[time] = seen
        else:
            absent[str(time)] = seen.why
    return Told(
        engine.key,
        engine.name,
        readings,
        histograms,
        absent,
        capacities,
        _own_devices(samples_of),
    )


def _read(
    names: Mapping[str, Measure | Detail], engine: Engine, known: Mapping[str, list[Sample]]
) -> tuple[dict[str, float], dict[str, str]]:
    """What is told under these names, and why the rest is not."""
    found, absent = {}, {}
    for name, quantity in names.items():
        ways = told_by(engine, quantity)
        values = None if ways is None else series(ways, known, engine=engine, of=quantity)
        if isinstance(values, Mapping):
            found[name] = max(0.0, sum(values.values()))
        else:
            absent[name] = _silent(engine) if values is None else values.why
    return found, absent


def told_by(engine: Engine, quantity: Measure | Detail) -> Ways | None:
    """What an engine tells a quantity by; None: it does not."""
    if isinstance(quantity, Measure):
        return engine.samples.get(quantity)
    return engine.details.get(quantity)


def _silent(engine: Engine) -> str:
    return f"{engine.name} does not tell it"


def _distribution(
    engine: Engine, time: Times, known: Mapping[str, list[Sample]]
) -> Distribution | NoReading:
    """Of the first way that is exposed."""
    whys = []
    for way in engine.times.get(time, ()):
        seen = distribution(way, known, same_on=engine.same_on)
        if isinstance(seen, Distribution):
            return seen
        whys.append(seen.why)
    # The reason that is worth most is of a name that is exposed, and cannot be believed.
    broken = [why for why in whys if not why.endswith("is not exposed")]
    return NoReading(next(iter((*broken, *whys)), _silent(engine)))


def _exported(known: tuple[Sample, ...]) -> Told:
    why = "the exporter tells of GPUs, not of requests"
    absent = dict.fromkeys((*READINGS, *map(str, Times)), why)
    devices = dcgm.devices(s for s in known if s.name.startswith(EXPORTER_KNOWN_BY))
    return Told(EXPORTER_KEY, "DCGM exporter", absent=absent, devices=devices)


# Triton tells of its GPUs too, in our units.
_OWN_DEVICE: Final = {
    "nv_gpu_utilization": "utilization_ratio",
    "nv_gpu_memory_used_bytes": "memory_used_bytes",
    "nv_gpu_memory_total_bytes": "memory_total_bytes",
    "nv_gpu_power_usage": "power_w",
}


def _own_devices(known: Mapping[str, list[Sample]]) -> tuple[Device, ...]:
    rows: dict[str, dict[str, float]] = {}
    for name, what in _OWN_DEVICE.items():
        for sample in known.get(name, ()):
            uuid = sample.labels.get("gpu_uuid")
            if uuid and implausible(sample, level=True, part=what.endswith("_ratio")) is None:
                rows.setdefault(uuid, {})[what] = sample.value
    return tuple(
        Device(
            uuid,
            utilization_ratio=row.get("utilization_ratio"),
            memory_used_bytes=_whole(row.get("memory_used_bytes")),
            memory_total_bytes=_whole(row.get("memory_total_bytes")),
            power_w=row.get("power_w"),
        )
        for uuid, row in rows.items()
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _asked() -> re.Pattern[str]:
    """The names of everything that any engine tells."""
    lines = {line.name for engine in ENGINES for line in engine.lines}
    for engine in ENGINES:
        lines |= {line.name for e in engine.details.values() for way in e for line in way}
    times = [way for engine in ENGINES for e in engine.times.values() for way in e]
    means = {line.name for way in times if isinstance(way, Mean) for line in (way.total, way.count)}
    families = {way.name for way in times if not isinstance(way, Mean)}
    plain = "|".join(map(re.escape, sorted(lines | means | set(_OWN_DEVICE))))
    family = "|".join(map(re.escape, sorted(families)))
    return re.compile(f"{plain}|(?:{family})(?:_bucket|_count|_sum)?|{EXPORTER_KNOWN_BY}\\w+")


_ASKED: Final = _asked()
