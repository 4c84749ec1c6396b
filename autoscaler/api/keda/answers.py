# SPDX-License-Identifier: Apache-2.0
"""What KEDA is told of a service, and when it is told nothing. Pure.

A value that is 0 lowers a count, and an inactive service is scaled to 0: both need proof here, as
they do in the loop (rule D1). Where there is none KEDA gets an error; then it and its HPA hold the
count, or use the ScaledObject's `fallback`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from autoscaler.api.keda.trigger import MOST, WISH, Trigger
from autoscaler.core.signals import RATIOS, Measure, NoReading, Reading, Signal
from autoscaler.core.zero import ZeroState
from autoscaler.loop import Record

# What replicas have and nobody else: of no replica it is none.
INSIDE: Final = frozenset({*RATIOS, Signal.TOKENS_PER_S})
# Idle for the whole keep-alive. DRAINING waits for an activator in the path, which in a dry run
# never comes: the step to 0 is KEDA's, and so is what happens to requests after it.
AT_REST: Final = frozenset({ZeroState.DRAINING, ZeroState.ASLEEP})
NOT_LOOKED_AT: Final = NoReading("the controller has not looked at it yet")


class Because(Enum):
    """Why there is no answer."""

    UNREAD = "what was asked for is not known now"
    UNFIT = "the service does not stand as the trigger needs it"


@dataclass(frozen=True, slots=True)
class NoAnswer:
    because: Because
    why: str


def value(trigger: Trigger, record: Record) -> float | NoAnswer:
    """The whole service's value of what the trigger asks for, at most `MOST`.

    A value that speaks for a part of the replicas is told only where it does not lower the count.
    Raises `BadInput` for a trigger that asks for what there is not.
    """
    per_replica, scale = trigger.per_replica(record.policy), record.snapshot.scale
    if trigger.signal == WISH:
        return _wish(trigger, record)
    seen = record.decision.signals.get(trigger.signal, NOT_LOOKED_AT)
    if isinstance(seen, NoReading):
        if scale == 0 and trigger.signal in INSIDE:
            return 0.0
        return _unread(trigger, f"{trigger.signal} is not known: {seen.why}")
    if seen.share_ratio < 1.0 and seen.value < per_replica * scale:
        part = f"{seen.share_ratio:.0%} of the replicas told of {trigger.signal}"
        return _unread(trigger, f"{part}: too few to go below {scale} replicas")
    return min(seen.value, MOST)


def active(trigger: Trigger, record: Record) -> bool | NoAnswer:
    """Whether the service has work. False only where it is proven that it has none."""
    asked = value(trigger, record)
    if isinstance(asked, NoAnswer) and asked.because is Because.UNFIT:
        return asked
    if any(isinstance(seen, Reading) and seen.value > 0 for seen in _activity(record)):
        return True  # D6: whatever is held, waits or runs is activity
    unproven = next(_unproven(record), None)
    if trigger.signal != WISH and isinstance(asked, NoAnswer):
        return asked
    if trigger.signal == WISH or trigger.signal in RATIOS:
        # Caches stay warm and GPUs never quite still: what they say is no work by itself, and one
        # quiet moment between two requests is no rest.
        at_rest = record.decision.state in AT_REST
    else:
        at_rest = asked == 0
    if at_rest and unproven is not None:
        return _unread(trigger, f"nothing proves that it is idle: {unproven}")
    return not at_rest


def _wish(trigger: Trigger, record: Record) -> float | NoAnswer:
    if record.policy.paused:
        return NoAnswer(
            Because.UNFIT,
            f"{trigger.service} stands still: it is paused, or something else scales it as well; "
            f"for KEDA to scale it set tidegate.dev/dry-run to true and remove tidegate.dev/paused",
        )
    return float(record.decision.decided)


def _unread(trigger: Trigger, why: str) -> NoAnswer:
    return NoAnswer(Because.UNREAD, f"{trigger.service}: {why}")


def _activity(record: Record) -> Iterator[Reading | NoReading | None]:
    for measure in (Measure.HELD, Measure.IN_FLIGHT, Measure.WAITING):
        yield record.snapshot.measures.get(measure)


def _unproven(record: Record) -> Iterator[str]:
    """What stands against the proof that nothing is held, waits or runs."""
    measures = record.snapshot.measures
    for measure in (Measure.HELD, Measure.IN_FLIGHT, Measure.WAITING):
        seen = measures.get(measure)
        if isinstance(seen, NoReading):
            yield f"{measure}: {seen.why}"
        elif seen is not None and seen.share_ratio < 1.0:
            yield f"{measure}: {seen.share_ratio:.0%} of the replicas told"
        elif seen is None and measure is not Measure.WAITING:
            yield f"{measure}: no source reports it"
