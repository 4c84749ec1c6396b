# SPDX-License-Identifier: Apache-2.0
"""Clients of a service in the lab, half of them on kept-alive connections. They count every answer.

No client tries anything twice: a request is answered with 200 or it is lost.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

PATIENCE_S = 60.0


@dataclass(slots=True)
class Tally:
    """What became of the requests. `lost`: what happened -> how often."""

    sent: int = 0
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.sent + other.sent,
            self.answered + other.answered,
            self.lost + other.lost,
            max(self.slowest_s, other.slowest_s),
        )


class Clients:
    """`count` clients at once; the first half keep their connections, also between storms."""

    def __init__(self, url: str, body: Any, *, count: int, headers: dict[str, str] | None = None):
        self._url = url
        self._body = body
        self._count = count
        self._headers = headers or {}
        self.sent = 0  # by all clients, so far
        half = count // 2
        forever = httpx.Limits(max_connections=half, max_keepalive_connections=half)
        never = httpx.Limits(max_connections=count - half, max_keepalive_connections=0)
        self._keeping = httpx.AsyncClient(limits=forever, timeout=PATIENCE_S)
        self._fresh = httpx.AsyncClient(limits=never, timeout=PATIENCE_S)

    async def __aenter__(self) -> "Clients":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._keeping.aclose()
        await self._fresh.aclose()

    async def storm(self, *, each: int = 1, pause_s: float = 0.0) -> Tally:
        """Every client sends `each` requests, one after the other."""
        return await self._all(lambda sent: sent < each, pause_s)

    async def until(self, done: Callable[[], bool], *, pause_s: float = 0.0) -> Tally:
        """Every client goes on sending until `done`."""
        return await self._all(lambda sent: not done(), pause_s)

    async def _all(self, goes_on: Callable[[int], bool], pause_s: float) -> Tally:
        tallies = await asyncio.gather(
            *(self._one(number, goes_on, pause_s) for number in range(self._count))
        )
        total = Tally()
        for tally in tallies:
            total = total + tally
        return total

    async def _one(self, number: int, goes_on: Callable[[int], bool], pause_s: float) -> Tally:
        client = self._keeping if number % 2 else self._fresh
        tally = Tally()
        while goes_on(tally.sent):
            began_s = time.monotonic()
            tally.sent += 1
            self.sent += 1
            try:
                answer = await client.post(self._url, json=self._body, headers=self._headers)
            except httpx.HTTPError as error:
                tally.lost[repr(error)] += 1
            else:
                if answer.status_code == httpx.codes.OK:
                    tally.answered += 1
                else:
                    tally.lost[f"{answer.status_code} {answer.text[:200]}"] += 1
            tally.slowest_s = max(tally.slowest_s, time.monotonic() - began_s)
            if pause_s:
                await asyncio.sleep(pause_s)
        return tally
