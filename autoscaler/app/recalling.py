# SPDX-License-Identifier: Apache-2.0
"""Once, after the first look: asks whoever remembers what was wanted before this process began.

It runs beside the ticks. Whether it succeeds changes only how long nothing falls (rule D4).
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

from autoscaler.core.recall import needed, window_s
from autoscaler.core.signals import ServiceId, Signal
from autoscaler.errors import GiveUp, RetryLater
from autoscaler.loop import ControlLoop
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)

LONGEST_S: Final = 3600.0
STEPS: Final = 60  # in the longest window
SHORTEST_STEP_S: Final = 5.0
PAUSES_S: Final = (2.0, 5.0, 10.0)


class Remembers(Protocol):
    """Whoever knows the past of signals: service -> (seconds ago, value), oldest first."""

    async def history(
        self, services: Collection[ServiceId], signal: Signal, *, window_s: float, step_s: float
    ) -> Mapping[ServiceId, list[tuple[float, float]]]: ...


async def recall(
    loop: ControlLoop, source: Remembers, clock: Clock, *, pauses_s: Sequence[float] = PAUSES_S
) -> None:
    """Refill the windows of all services that were decided on so far; does not raise.

    Where nobody answers it is tried again after each of `pauses_s`.
    """
    try:
        for pause_s in pauses_s:
            with suppress(RetryLater):
                await _recall(loop, source, clock)
                return
            await asyncio.sleep(pause_s)
        await _recall(loop, source, clock)
    except (RetryLater, GiveUp) as trouble:
        log.warning("the past is not known; nothing falls for a window", why=str(trouble))


async def _recall(loop: ControlLoop, source: Remembers, clock: Clock) -> None:
    wanted: dict[ServiceId, frozenset[Signal]] = {}
    longest_s = 0.0
    for service, records in loop.records.items():
        memory, policy = loop.remembers(service), records[-1].policy
        signals = needed(policy)
        if memory is not None and signals is not None:
            wanted[service] = signals
            longest_s = max(longest_s, window_s(policy, memory))
    longest_s = min(longest_s, LONGEST_S)
    step_s = max(longest_s / STEPS, SHORTEST_STEP_S)
    now_s = clock.now_s()
    past: dict[ServiceId, dict[Signal, list[tuple[float, float]]]] = {s: {} for s in wanted}
    for signal in sorted(frozenset().union(*wanted.values())):
        services = [service for service, signals in wanted.items() if signal in signals]
        told = await source.history(
            services, signal, window_s=longest_s + 2 * step_s, step_s=step_s
        )
        for service, values in told.items():
            # On a grid, so that the moments of several signals meet.
            past[service][signal] = [
                (now_s - round(age_s / step_s) * step_s, value) for age_s, value in values
            ]
    for service, of in past.items():
        loop.recall(service, of, gap_s=2.5 * step_s)
    if past:
        log.info("the past was read", services=len(past), window_s=longest_s)
