# SPDX-License-Identifier: Apache-2.0
"""Keeps the endpoints of every route with a backend as they are now: found, probed, dealt.

What is not ready by the platform's word is asked here whether it can serve: often while somebody
waits for it, else seldom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final

import structlog

from autoscaler.activator.discovery import Discovery, Service, endpoints_of
from autoscaler.activator.probing import Probe, Standing, passes, probe_of
from autoscaler.core.found import Found
from autoscaler.core.routes import Route

EVERY_S: Final = 0.2  # while a request waits there
SELDOM_S: Final = 1.0
AT_ONCE: Final = 200  # probes under way; more wait for the next round

log = structlog.get_logger("activator")

_Asked = tuple[str, Found]  # route, endpoint


@dataclass(slots=True)
class _Candidate:
    """An endpoint that is being asked."""

    probe: Probe
    standing: Standing = field(default_factory=Standing)
    asked_at_s: float = float("-inf")
    under_way: bool = False


class Finder:
    """Fills routes with endpoints. `on_change(names)` tells whose have changed.

    `waits(name)` says whether a request is held for a route.
    """

    def __init__(self, discovery: Discovery, *, waits: Callable[[str], bool]) -> None:
        self.on_change: Callable[[set[str]], None] = lambda names: None
        self._discovery = discovery
        self._waits = waits
        self._routes: dict[str, Route] = {}
        self._by_service: dict[Service, set[str]] = {}
        self._activators = 1
        self._candidates: dict[_Asked, _Candidate] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        discovery.on_change = self._seen

    @property
    def complete(self) -> bool:
        """Whether it is known of every route what there is to find."""
        return all(
            route.backend is None or self._discovery.found(route.backend) is not None
            for route in self._routes.values()
        )

    def follow(self, routes: Mapping[str, Route], *, activators: int) -> None:
        """Find endpoints for these routes from now on; `activators` share what is not dealt."""
        self._routes = {name: route for name, route in routes.items() if route.backend}
        self._activators = activators
        self._by_service = {}
        for name, route in self._routes.items():
            if route.backend is not None:
                service = (route.backend.namespace, route.backend.service)
                self._by_service.setdefault(service, set()).add(name)
        self._discovery.follow([r.backend for r in self._routes.values() if r.backend is not None])
        self._choose_candidates(self._routes.keys())

    def fill(self, route: Route) -> Route:
        """The route with the endpoints that may be used now."""
        if route.backend is None:
            return route
        found = self._discovery.found(route.backend)
        passing = {
            each
            for each in found or ()
            if (candidate := self._candidates.get((route.service, each)))
            and candidate.standing.passes
        }
        endpoints = endpoints_of(route, found, passing=passing, activators=self._activators)
        return replace(route, endpoints=endpoints)

    async def run(self) -> None:
        """Ask who is to be asked, round after round; never returns."""
        try:
            while True:
                self._news.clear()
                self._ask_round(monotonic())
                try:
                    async with asyncio.timeout(EVERY_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._asking:
                task.cancel()

    def _seen(self, service: Service) -> None:
        names = self._by_service.get(service)
        if names:
            self._choose_candidates(names)
            self.on_change(names)

    # Candidates

    def _choose_candidates(self, names: Collection[str]) -> None:
        """Who is not ready and can be asked; whoever stays one keeps what was learned."""
        wanted = {asked: probe for name in names for asked, probe in self._unready(name)}
        for asked in [a for a in self._candidates if a[0] in names or a[0] not in self._routes]:
            if asked not in wanted:
                del self._candidates[asked]
        for asked, probe in wanted.items():
            known = self._candidates.get(asked)
            if known is None or known.probe != probe:
                self._candidates[asked] = _Candidate(probe)
                self._news.set()

    def _unready(self, name: str) -> Iterator[tuple[_Asked, Probe]]:
        backend = self._routes[name].backend
        if backend is None:
            return
        for each in self._discovery.found(backend) or ():
            probe = probe_of(backend.probe, each)
            if probe is not None and not each.ready and not each.terminating:
                yield (name, each), probe

    def _ask_round(self, now_s: float) -> None:
        for asked, candidate in self._candidates.items():
            if len(self._asking) >= AT_ONCE:
                return
            pace_s = EVERY_S if self._waits(asked[0]) else SELDOM_S
            # A round may come a little early; who is skipped by that would wait a whole one more.
            if not candidate.under_way and now_s - candidate.asked_at_s >= pace_s * 0.9:
                candidate.under_way = True
                candidate.asked_at_s = now_s
                task = asyncio.create_task(self._ask(asked, candidate))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask(self, asked: _Asked, candidate: _Candidate) -> None:
        name, found = asked
        before = candidate.standing
        candidate.standing = before.after(await passes(candidate.probe, found.host))
        candidate.under_way = False
        changed = candidate.standing.passes is not before.passes
        if changed and self._candidates.get(asked) is candidate:
            log.info(
                "endpoint answers" if candidate.standing.passes else "endpoint stopped answering",
                service=name,
                endpoint=found.id,
            )
            self.on_change({name})
