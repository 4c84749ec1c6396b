# SPDX-License-Identifier: Apache-2.0
"""Asks every ready pod for its metrics, beside the ticks: a slow pod delays nobody's decision.

A tick reads what was heard last and how old it is. A pod that does not answer is asked less and
less often, but what it said before grows old all the same: absence is not the last value (rule D1).
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from autoscaler.adapters.engines import Page, scrape
from autoscaler.adapters.plain_http import At
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.ports import Clock

EVERY_S: Final = 1.0
STALE_S: Final = 3.0  # a page older than this says nothing about now
AT_ONCE: Final = 64
# A pod that fails is asked again after twice as long, up to these: one that was heard before, and
# one that never said anything we know, such as a server without metrics.
LONGEST_S: Final = 8.0
LONGEST_NEVER_HEARD_S: Final = 60.0

Places = Mapping[ServiceId, Mapping[str, At | None]]  # None: no place is known


@dataclass(slots=True)
class _Pod:
    """One pod's pages. Only `Scrapes` changes it."""

    at: At
    due_s: float
    page: Page | None = None
    heard_at_s: float = 0.0
    why: str = "not asked yet"
    wait_s: float = EVERY_S
    asking: bool = False


class Scrapes:
    """What each pod said last. `places` is asked for all services before each round."""

    def __init__(self, places: Callable[[], Places], *, clock: Clock) -> None:
        self._places = places
        self._clock = clock
        self._pods: dict[tuple[ServiceId, str], _Pod] = {}
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._chance = random.Random()  # noqa: S311  it only spreads load

    def page(self, service: ServiceId, pod: str) -> Page | NoReading:
        """The pod's page if it is fresh, else why there is none."""
        known = self._pods.get((service, pod))
        if known is None:
            return NoReading(f"{pod} was not asked yet")
        if known.page is None:
            return NoReading(f"{pod}: {known.why}")
        age_s = self._clock.now_s() - known.heard_at_s
        if age_s > STALE_S:
            return NoReading(f"{pod} has said nothing for {age_s:.1f} s: {known.why}")
        return known.page

    async def run(self) -> None:
        """Ask whoever is due, until cancelled."""
        async with asyncio.TaskGroup() as asking:
            while True:
                self._follow()
                now_s = self._clock.now_s()
                for pod in self._pods.values():
                    if pod.due_s <= now_s and not pod.asking:
                        pod.asking = True
                        asking.create_task(self._ask(pod))
                await asyncio.sleep(EVERY_S / 4)

    def _follow(self) -> None:
        """Take in new pods, each at a moment of its own, and forget those that are gone."""
        now_s = self._clock.now_s()
        there = {
            (service, pod): at
            for service, pods in self._places().items()
            for pod, at in pods.items()
            if at is not None
        }
        for key in self._pods.keys() - there.keys():
            del self._pods[key]
        for key, at in there.items():
            known = self._pods.get(key)
            if known is None or known.at != at:
                self._pods[key] = _Pod(at, due_s=now_s)

    async def _ask(self, pod: _Pod) -> None:
        async with self._asking:
            page = await scrape(pod.at)
        now_s = self._clock.now_s()
        if isinstance(page, Page):
            pod.page, pod.heard_at_s, pod.why = page, now_s, "it stopped answering"
            pod.wait_s = EVERY_S
        else:
            pod.why = page.why
            longest_s = LONGEST_S if pod.page is not None else LONGEST_NEVER_HEARD_S
            pod.wait_s = min(pod.wait_s * 2, longest_s)
        pod.due_s = now_s + pod.wait_s * self._chance.uniform(0.9, 1.1)
        pod.asking = False
