# SPDX-License-Identifier: Apache-2.0
"""When the loop ticks: once a period over everything, and at once over a service that has news."""

import asyncio
import time
from collections.abc import Collection
from typing import Protocol

import structlog

from autoscaler.core.signals import ServiceId
from autoscaler.loop import ControlLoop

log = structlog.get_logger(__name__)


class MonotonicClock:
    """Seconds of this machine that never go back."""

    def now_s(self) -> float:
        return time.monotonic()


class Timekeeper(Protocol):
    """Is told how long each tick took, and how much CPU time."""

    def took(self, seconds: float, *, cpu_s: float, all_services: bool) -> None: ...


class Ticker:
    """Runs one tick at a time: over everything when told so, and over a service that has news."""

    def __init__(self, loop: ControlLoop, *, timekeeper: Timekeeper | None = None) -> None:
        self._loop = loop
        self._timekeeper = timekeeper
        self._all = False
        self._services: set[ServiceId] = set()
        self._news = asyncio.Event()

    def tick_all(self) -> None:
        self._all = True
        self._news.set()

    async def tick_due(self) -> None:
        """`tick_all` for a scheduler, which runs what is no coroutine on threads of its own."""
        self.tick_all()

    def tick_soon(self, service: ServiceId) -> None:
        self._services.add(service)
        self._news.set()

    async def run(self) -> None:
        """Tick until cancelled. A tick that fails changes nothing; the next one sees anew."""
        while True:
            await self._news.wait()
            self._news.clear()
            only = None if self._all else frozenset(self._services)
            self._all, self._services = False, set()
            await self.tick(only)

    async def tick(self, only: Collection[ServiceId] | None = None) -> None:
        """Tick once, now."""
        began_s, cpu_began_s = time.perf_counter(), time.thread_time()
        try:
            await self._loop.tick(only)
        except Exception:
            # The one edge of this process: an error in one tick must not stop the next.
            log.exception("the tick failed; nothing changes until the next")
        if self._timekeeper is not None:
            self._timekeeper.took(
                time.perf_counter() - began_s,
                cpu_s=time.thread_time() - cpu_began_s,
                all_services=only is None,
            )
