# SPDX-License-Identifier: Apache-2.0
"""One activator process: a desk per service, and what is known of them.

The data path outlives the controller: while the channel is down (`link.py`) every desk goes on with
its last route.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from autoscaler.activator.desk import Departures, Desk, Shared
from autoscaler.activator.discovery import Discovery
from autoscaler.activator.finding import Finder
from autoscaler.activator.link import PUSH_S, Controller, Link
from autoscaler.activator.listener import Listener
from autoscaler.activator.lobby import Lobby
from autoscaler.channel import Hello, Listening, Report, Routes
from autoscaler.core.routes import Demand, Route

PUSH_ALL_S: Final = 1.0  # everything is told this often, changed or not
TICK_S: Final = 1.0
# A connection that was accepted but not yet read when draining begins still gets its answer:
# nothing is closed before this long has passed without anything to do.
QUIET_S: Final = 0.25
# A service whose endpoints cannot be found out is no reason to withhold all the others for longer.
FINDING_S: Final = 10.0
_RESERVED_DESCRIPTORS: Final = 64

log = structlog.get_logger("activator")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one activator process runs.

    `linger_s`: for how long it goes on taking in clients when told to stop, until those who send
    them here have heard of it; `grace_s`: how long finishing may take from then on. `bind`: the
    address to listen on, whatever the routes say. `pod` and `bearer` (the file of the token that
    vouches for it) say who it is, where a platform knows its processes by such.
    """

    process: int = 0
    of: int = 1
    linger_s: float = 0.0
    grace_s: float = 30.0
    bind: str | None = None
    pod: str = ""
    bearer: Path | None = None


class Activator:
    """Serves what the controller routes to it, until `stop` is called and all is answered."""

    def __init__(
        self,
        settings: Settings,
        *,
        controller: Controller,
        descriptors: int,
        discovery: Discovery | None = None,
    ) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._departures = Departures(loop)
        self._shared = Shared(
            loop=loop,
            # Each client may need a second descriptor, for the replica it is sent to.
            max_clients=max(1, (descriptors - _RESERVED_DESCRIPTORS) // 2),
            on_wait=self._request_waits,
            departures=self._departures,
            shares_ports=settings.of > 1,
            name=settings.pod or str(os.getpid()),
        )
        self._desks: dict[str, Desk] = {}
        self._lobbies: dict[tuple[str, int], Lobby] = {}
        self._leaving: list[Desk] = []  # no longer routed; their last requests are in flight
        self._version = 0
        self._told: dict[str, Demand] = {}
        self._told_all_at_s = 0.0
        self._waking: set[str] = set()
        self._token = secrets.token_hex(8)
        self.push = asyncio.Event()
        self.link = Link(controller, self)
        self._finder: Finder | None = None
        if discovery is not None:
            self._finder = Finder(discovery, waits=self._somebody_waits)
            self._finder.on_change = self._refill
        self._routes: dict[str, Route] = {}  # as they were told
        self._routed_at_s: float | None = None
        self._complete = False

    @property
    def desks(self) -> Mapping[str, Desk]:
        """The services that are served here, by name."""
        return self._desks

    @property
    def clients(self) -> int:
        """Connections of clients that are open."""
        return self._shared.clients

    def unready_because(self) -> str:
        """Why requests had better not be sent here yet, or any more; empty: they may be."""
        if self._stop.is_set():
            return "it has been told to stop"
        if self._routed_at_s is None:
            return "no controller has told it any routes yet"
        if self._complete or monotonic() - self._routed_at_s >= FINDING_S:
            return ""
        self._complete = self._finder is None or self._finder.complete
        return "" if self._complete else "the endpoints of its routes are being found"

    def stop(self) -> None:
        """Finish: take no new connections, answer what is here, then let `run` return."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        jobs = [self.link.run(), self._tick()]
        if self._finder is not None:
            jobs.append(self._finder.run())
        tasks = [asyncio.create_task(job) for job in jobs]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((stopping, *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # none ends by itself: this raises what ended it
            await self._drain()
        finally:
            stopping.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            for desk in self._all_desks():
                desk.close()
            for lobby in self._lobbies.values():
                lobby.listener.close()
            self._departures.close()

    # What the channel asks and says

    def hello(self) -> Hello:
        """Who speaks. The token is read anew each time: it expires, and is replaced in time."""
        settings = self._settings
        bearer = "" if settings.bearer is None else settings.bearer.read_text().strip()
        return Hello(settings.process, settings.of, os.getpid(), self._token, settings.pod, bearer)

    def begin(self) -> None:
        """A conversation begins: its numbers are its own, and nothing has been told in it."""
        self._told.clear()
        self._version = 0

    def report(self) -> Report | None:
        """What has to be told now; None: nothing has changed, and it is not time yet to say all."""
        now_s = monotonic()
        urgent = self.push.is_set()
        self.push.clear()
        everything = urgent or now_s - self._told_all_at_s >= PUSH_ALL_S
        if everything:
            self._told_all_at_s = now_s
        changed = []
        for name, desk in self._desks.items():
            demand = desk.demand(now_s)
            if everything or demand != self._told.get(name):
                self._told[name] = demand
                changed.append(demand)
        if not changed and not everything:
            return None
        waking, self._waking = self._waking, set()
        waits_s = {}
        for name, desk in self._desks.items():
            oldest_s = desk.holding.oldest_held_at_s()
            if oldest_s is not None:
                waits_s[name] = now_s - oldest_s
        return Report(
            version=self._version,
            demand=tuple(changed),
            listening=tuple(
                Listening(name, desk.port, desk.problem) for name, desk in self._desks.items()
            ),
            waking=tuple(sorted(waking)),
            waits_s=waits_s,
            leaving=self._stop.is_set(),
        )

    def _request_waits(self, desk: Desk, cold: bool) -> None:
        if cold:
            desk.cold_starts += 1
            self._waking.add(desk.route.service)
        self.push.set()

    # The routes

    async def follow(self, table: Routes) -> None:
        """Take over the controller's routes."""
        self.set_alone(False)
        wanted = {route.service: self._bound(route) for route in table.routes}
        self._routes = wanted
        if self._finder is not None:
            self._finder.follow(wanted, activators=table.activators)
        for name in list(self._desks):
            new = wanted.get(name)
            if new is None or _entrance(new) != _entrance(self._desks[name].route):
                self._leave(name)
        for name, told in wanted.items():
            route = self._filled(told)
            desk = self._desks.get(name)
            if desk is not None:
                desk.follow(route)
            else:
                self._desks[name] = Desk(self._shared, route, self._shared_listener(route))
        self._seat_lobbies()
        self._version = table.version
        if self._routed_at_s is None:
            self._routed_at_s = monotonic()
        await self._listen()
        self.push.set()

    def _filled(self, route: Route) -> Route:
        return route if self._finder is None else self._finder.fill(route)

    def _refill(self, names: set[str]) -> None:
        """The endpoints of these have changed."""
        for name in names & self._desks.keys() & self._routes.keys():
            self._desks[name].follow(self._filled(self._routes[name]))

    def _somebody_waits(self, name: str) -> bool:
        desk = self._desks.get(name)
        return desk is not None and desk.holding.held > 0

    def _bound(self, route: Route) -> Route:
        bind = self._settings.bind
        return route if bind is None else replace(route, host=bind)

    def _shared_listener(self, route: Route) -> Listener | None:
        if not route.hosts:
            return None
        at = (route.host, route.port)
        lobby = self._lobbies.get(at)
        if lobby is None:
            lobby = self._lobbies[at] = Lobby(self._shared, *at)
        return lobby.listener

    def _seat_lobbies(self) -> None:
        for at, lobby in list(self._lobbies.items()):
            desks = [
                desk
                for desk in self._desks.values()
                if desk.route.hosts and (desk.route.host, desk.route.port) == at
            ]
            lobby.seat(desks)
            if not desks:
                lobby.desk.dismiss()
                lobby.listener.close()
                self._leaving.append(lobby.desk)
                del self._lobbies[at]

    def _leave(self, name: str) -> None:
        desk = self._desks.pop(name)
        self._told.pop(name, None)
        desk.dismiss()
        self._leaving.append(desk)
        log.info("service left", service=name)

    def set_alone(self, alone: bool) -> None:
        """No controller has been reached for a while; or one has spoken again."""
        for desk in self._desks.values():
            desk.set_alone(alone)

    async def _listen(self) -> None:
        if self._shared.draining:
            return
        for name, desk in list(self._desks.items()):
            before = (desk.port, desk.problem)
            await desk.listen()
            if (desk.port, desk.problem) != before:
                if desk.problem:
                    log.error("cannot listen", service=name, why=desk.problem)
                else:
                    log.info("listening", service=name, host=desk.route.host, port=desk.port)
                self.push.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = monotonic()
            for desk in self._all_desks():
                desk.tick(now_s)
            for desk in [desk for desk in self._leaving if not desk.clients]:
                desk.close()
                self._leaving.remove(desk)
            await self._listen()  # a port that was taken may have come free

    # The end

    def _all_desks(self) -> list[Desk]:
        lobbies = (lobby.desk for lobby in self._lobbies.values())
        return [*self._desks.values(), *self._leaving, *lobbies]

    async def _drain(self) -> None:
        """Close the ports; answer what is held, in flight, and still coming on open lines.

        Before that, while clients may still be sent here, all are served as ever, but told to go
        elsewhere with their next request.
        """
        settings = self._settings
        log.info("draining", linger_s=settings.linger_s, grace_s=settings.grace_s)
        self._shared.draining = True
        if settings.linger_s:
            for desk in self._all_desks():
                desk.part()
            self.push.set()
            await asyncio.sleep(settings.linger_s)
        end_s = monotonic() + settings.grace_s
        await asyncio.sleep(0)  # what waits in the accept queue gets in before the ports close
        for lobby in self._lobbies.values():
            lobby.listener.close()
        desks = self._all_desks()
        for desk in desks:
            desk.drain()
        self.push.set()
        arrived, quiet_since_s = -1, monotonic()
        while (now_s := monotonic()) < end_s:
            now_arrived = sum(desk.holding.arrived for desk in desks)
            if now_arrived != arrived or any(desk.busy for desk in desks):
                arrived, quiet_since_s = now_arrived, now_s
            elif now_s - quiet_since_s >= QUIET_S:
                break
            await asyncio.sleep(0.02)
        left = sum(desk.holding.held + desk.holding.in_flight for desk in desks)
        log.info("drained", unanswered=left)
        await asyncio.sleep(PUSH_S if left == 0 else 0)  # the last totals reach the controller


def _entrance(route: Route) -> tuple[str, int, bool]:
    """What a desk cannot change while it is open: where its clients come in."""
    return (route.host, route.port, bool(route.hosts))
