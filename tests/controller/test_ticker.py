# SPDX-License-Identifier: Apache-2.0
"""Ticks come when they are due and when there is news, on the event loop's own thread."""

import asyncio
from collections.abc import Collection
from typing import cast

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from autoscaler.app.ticking import Ticker
from autoscaler.core.signals import ServiceId
from autoscaler.loop import ControlLoop
from tests.builders import A_SERVICE


class CountedTicks:
    """Instead of a loop: what each tick was about, and a tick that fails when told to."""

    def __init__(self) -> None:
        self.ticks: asyncio.Queue[Collection[ServiceId] | None] = asyncio.Queue()
        self.fails = False

    async def tick(self, only: Collection[ServiceId] | None = None) -> tuple[()]:
        self.ticks.put_nowait(only)
        if self.fails:
            raise ValueError("a defect")
        return ()


async def test_the_scheduler_ticks_on_the_thread_of_the_loop() -> None:
    """A debugging event loop refuses to be touched from another thread; so it proves it."""
    asyncio.get_running_loop().set_debug(True)
    counted = CountedTicks()
    ticker = Ticker(cast(ControlLoop, counted))
    ticking = asyncio.create_task(ticker.run())
    scheduler = AsyncIOScheduler()
    scheduler.add_job(ticker.tick_due, "interval", seconds=0.01)
    scheduler.start()
    try:
        async with asyncio.timeout(10):
            assert [await counted.ticks.get() for _ in range(3)] == [None] * 3
    finally:
        scheduler.shutdown(wait=False)
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


class Times:
    """Which ticks were timed."""

    def __init__(self) -> None:
        self.took_s: asyncio.Queue[tuple[bool, float]] = asyncio.Queue()

    def took(self, seconds: float, *, cpu_s: float, all_services: bool) -> None:
        self.took_s.put_nowait((all_services, seconds if cpu_s >= 0 else -1.0))


async def test_ticks_over_everything_are_timed_apart_from_those_with_news() -> None:
    """A failed tick took its time as well."""
    counted, times = CountedTicks(), Times()
    counted.fails = True
    ticker = Ticker(cast(ControlLoop, counted), timekeeper=times)
    ticking = asyncio.create_task(ticker.run())
    try:
        async with asyncio.timeout(10):
            ticker.tick_all()
            all_services, seconds = await times.took_s.get()
            assert all_services
            assert 0 <= seconds < 10
            ticker.tick_soon(A_SERVICE)
            assert not (await times.took_s.get())[0]
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


async def test_a_tick_that_fails_stops_none_that_follows() -> None:
    """News of one service ticks that one, also right after a failure."""
    counted = CountedTicks()
    counted.fails = True
    ticker = Ticker(cast(ControlLoop, counted))
    ticking = asyncio.create_task(ticker.run())
    try:
        async with asyncio.timeout(10):
            for _ in range(2):
                ticker.tick_soon(A_SERVICE)
                assert await counted.ticks.get() == frozenset({A_SERVICE})
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
