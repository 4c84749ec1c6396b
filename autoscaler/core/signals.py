# SPDX-License-Identifier: Apache-2.0
"""What was seen of a service, when, and in which unit.

Absence is not zero (rule D1): what could not be read is `NoReading(why)`, and nothing in the core
lowers a count on it. Only this file says which signals exist and what they are made of.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from autoscaler.core.replicas import Replica


@dataclass(frozen=True, slots=True)
class ServiceId:
    """Names one service; on the local platform the namespace is `local`."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Measure(StrEnum):
    """A raw quantity, summed over a whole service, as a source hands it over.

    Names that end in `_total` only ever grow; a source that starts anew starts them at 0 again.
    """

    HELD = "held"
    IN_FLIGHT = "in_flight"
    WORKING = "working"
    WAITING = "waiting"
    REQUESTS_TOTAL = "requests_total"
    REQUEST_SECONDS_TOTAL = "request_seconds_total"
    HELD_SECONDS_TOTAL = "held_seconds_total"
    TOKENS_TOTAL = "tokens_total"
    PROMPT_TOKENS_TOTAL = "prompt_tokens_total"
    KV_USED = "kv_used"
    HELD_PROMPT_TOKENS = "held_prompt_tokens"
    HELD_OUTPUT_TOKENS = "held_output_tokens"
    HELD_OPEN_ENDED = "held_open_ended"
    PROMPT_TOKENS_ARRIVED_TOTAL = "prompt_tokens_arrived_total"
    OUTPUT_TOKENS_ASKED_TOTAL = "output_tokens_asked_total"
    OPEN_ENDED_TOTAL = "open_ended_total"


@dataclass(frozen=True, slots=True)
class MeasureMeaning:
    """What one reads of a measure in the API and in the documentation."""

    unit: str
    meaning: str


MEASURES: Mapping[Measure, MeasureMeaning] = {
    Measure.HELD: MeasureMeaning("requests", "requests the activator keeps back now"),
    Measure.IN_FLIGHT: MeasureMeaning(
        "requests", "requests sent to a replica and not answered yet"
    ),
    Measure.WORKING: MeasureMeaning(
        "requests",
        "signs of work in replicas without a gauge of what is in flight: requests begun and not "
        "ended, or a process that computes",
    ),
    Measure.WAITING: MeasureMeaning("requests", "requests queued inside the replicas"),
    Measure.REQUESTS_TOTAL: MeasureMeaning("requests", "requests that ever arrived"),
    Measure.REQUEST_SECONDS_TOTAL: MeasureMeaning(
        "request-seconds", "integral over time of held and in flight"
    ),
    Measure.HELD_SECONDS_TOTAL: MeasureMeaning("request-seconds", "integral over time of held"),
    Measure.TOKENS_TOTAL: MeasureMeaning("tokens", "tokens generated"),
    Measure.PROMPT_TOKENS_TOTAL: MeasureMeaning("tokens", "tokens of prompts taken in"),
    Measure.KV_USED: MeasureMeaning(
        "replicas", "part of its KV cache that a replica uses, 0-1, summed over replicas"
    ),
    Measure.HELD_PROMPT_TOKENS: MeasureMeaning(
        "tokens", "prompts that the activator keeps back now, estimated from their bytes"
    ),
    Measure.HELD_OUTPUT_TOKENS: MeasureMeaning(
        "tokens", "what the requests it keeps back now allow for their answers"
    ),
    Measure.HELD_OPEN_ENDED: MeasureMeaning(
        "requests", "those it keeps back now that are for generated text of any length"
    ),
    Measure.PROMPT_TOKENS_ARRIVED_TOTAL: MeasureMeaning(
        "tokens", "prompts that ever arrived at an activator, estimated from their bytes"
    ),
    Measure.OUTPUT_TOKENS_ASKED_TOTAL: MeasureMeaning(
        "tokens", "what requests that ever arrived at an activator allow for their answers"
    ),
    Measure.OPEN_ENDED_TOTAL: MeasureMeaning(
        "requests", "those that ever arrived at an activator for generated text of any length"
    ),
}


class Signal(StrEnum):
    """A quantity that a target can be set for, per replica. The value is its name in `targets`."""

    CONCURRENCY = "concurrency"
    QUEUE = "queue"
    RPS = "rps"
    TOKENS_PER_S = "tokens/s"
    KV = "kv"
    GPU_UTILIZATION = "gpu-utilization"


# Their targets are parts of a whole: what each replica uses of what it has.
RATIOS = frozenset({Signal.KV, Signal.GPU_UTILIZATION})


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression that a target was set for; its value is the whole service's."""

    promql: str

    def __str__(self) -> str:
        return f"prometheus({self.promql})"


class Over(Enum):
    """How a measure becomes a signal over the signal window."""

    RATE = "increase per second of a growing total"
    MEAN = "mean of a level"


@dataclass(frozen=True, slots=True)
class Term:
    measure: Measure
    over: Over


@dataclass(frozen=True, slots=True)
class SignalMeaning:
    """What a signal is the sum of, and what one reads in the documentation."""

    terms: tuple[Term, ...]
    unit: str
    meaning: str


# A level is had exactly from its integral over time (Little's law), so a request that comes and
# goes between two ticks still counts; a gauge is averaged only where nothing better is exposed.
SIGNALS: Mapping[Signal, SignalMeaning] = {
    Signal.CONCURRENCY: SignalMeaning(
        (Term(Measure.REQUEST_SECONDS_TOTAL, Over.RATE),),
        "requests",
        "requests held or in flight at once",
    ),
    Signal.QUEUE: SignalMeaning(
        (Term(Measure.HELD_SECONDS_TOTAL, Over.RATE), Term(Measure.WAITING, Over.MEAN)),
        "requests",
        "requests waiting: held in the activator or queued in a replica",
    ),
    Signal.RPS: SignalMeaning(
        (Term(Measure.REQUESTS_TOTAL, Over.RATE),), "requests/s", "requests arriving per second"
    ),
    Signal.TOKENS_PER_S: SignalMeaning(
        (Term(Measure.TOKENS_TOTAL, Over.RATE),), "tokens/s", "tokens generated per second"
    ),
    Signal.KV: SignalMeaning(
        (Term(Measure.KV_USED, Over.MEAN),), "0-1", "part of its KV cache that a replica uses"
    ),
    Signal.GPU_UTILIZATION: SignalMeaning(
        (), "0-1 or %", "part of the time that a replica's GPUs compute, mean over its GPUs"
    ),
}


# Every measure that some signal is made of, and how it is averaged; and what arrives, in tokens.
AVERAGED: Mapping[Measure, Over] = {
    term.measure: term.over for meaning in SIGNALS.values() for term in meaning.terms
} | {Measure.OUTPUT_TOKENS_ASKED_TOTAL: Over.RATE, Measure.OPEN_ENDED_TOTAL: Over.RATE}


@dataclass(frozen=True, slots=True)
class Reading:
    """A value that was really seen.

    `share_ratio` (0-1) is the part of the replicas that the value speaks for; below 1 the truth may
    be larger, so such a reading may raise a count and never lower it.
    """

    value: float
    at_s: float
    source: str
    share_ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class NoReading:
    """Nothing was seen, and why: a scrape that failed, a sample too old, a NaN."""

    why: str


def reading(
    value: float, *, at_s: float, source: str, share_ratio: float = 1.0
) -> Reading | NoReading:
    """Take a number from outside: NaN, infinities and negatives are no reading (rule D1)."""
    if not math.isfinite(value):
        return NoReading(f"{source} gave {value}")
    if value < 0:
        return NoReading(f"{source} gave the negative {value:g}")
    return Reading(value, at_s, source, share_ratio)


# What a source hands over. Measures are averaged here, over the service's own window. A source that
# only has averages (a monitoring system, a GPU's own counters) hands over the signal itself, as of
# the replicas alone: what activators hold comes on top. Where both speak, measures count.
Quantity = Measure | Signal | Query
Measures = Mapping[Quantity, Reading | NoReading]
Signals = Mapping[Signal | Query, Reading | NoReading]


def first_told(told: Iterable[Measures]) -> dict[Quantity, Reading | NoReading]:
    """What several sources say of one service, the one that counts for most first.

    Of each quantity the first reading that speaks for anybody; else the first reason why not.
    """
    merged: dict[Quantity, Reading | NoReading] = {}
    for measures in told:
        for quantity, seen in measures.items():
            if not _speaks(merged.get(quantity)) and (quantity not in merged or _speaks(seen)):
                merged[quantity] = seen
    return merged


def _speaks(seen: Reading | NoReading | None) -> bool:
    return isinstance(seen, Reading) and seen.share_ratio > 0


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """All that one decision may look at.

    `scale` is the replica count asked of the platform now; `generation` is the platform's number
    for this state of the service: an action is refused once it has moved on. `written_by`: who set
    that count, where it was neither Tidegate nor whoever made the service; else empty.
    `in_path`: the activator stands in the path now; `path_held` is true only if an activator has
    been proven to receive the service's requests.
    A measure that no configured source speaks of is absent from `measures`; one whose source failed
    is there as `NoReading`.
    """

    service: ServiceId
    at_s: float
    generation: int
    scale: int
    replicas: tuple[Replica, ...]
    measures: Measures = field(default_factory=dict)
    path_held: bool = False
    in_path: bool = True
    written_by: str = ""
