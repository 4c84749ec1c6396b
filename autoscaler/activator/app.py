# SPDX-License-Identifier: Apache-2.0
"""One activator process: a desk per service, and the channel to the controller.

The data path outlives the controller: while the channel is down every desk goes on with its last
route, and the process tries again and again to reach the controller.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from autoscaler.activator.desk import Departures, Desk, Shared
from autoscaler.channel import (
    ChannelError,
    Hello,
    Lines,
    Listening,
    Report,
    Routes,
    decode_routes,
    encode_hello,
    encode_report,
)
from autoscaler.core.routes import Demand

PUSH_S: Final = 0.1  # demand that changed is told this often ...
PUSH_ALL_S: Final = 1.0  # ... and everything this often, changed or not
RECONNECT_S: Final = 0.05  # the first try after a loss, doubled with each failure ...
RECONNECT_MAX_S: Final = 1.0  # ... up to this
ALONE_S: Final = 3.0  # without a controller for so long, see `Desk._seat`
TICK_S: Final = 1.0
# A connection that was accepted but not yet read when draining begins still gets its answer:
# nothing is closed before this long has passed without anything to do.
QUIET_S: Final = 0.25
_RESERVED_DESCRIPTORS: Final = 64

log = structlog.get_logger("activator")


def raise_descriptor_limit() -> int:
    """Let this process open as many descriptors as it may; returns how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """How one activator process runs. `grace_s`: how long finishing may take when told to stop."""

    channel: Path
    process: int = 0
    of: int = 1
    grace_s: float = 30.0


class Activator:
    """Serves what the controller routes to it, until `stop` is called and all is answered."""

    def __init__(self, settings: Settings, *, descriptors: int) -> None:
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
        )
        self._desks: dict[str, Desk] = {}
        self._leaving: list[Desk] = []  # no longer routed; their last requests are in flight
        self._version = 0
        self._told: dict[str, Demand] = {}
        self._told_all_at_s = 0.0
        self._waking: set[str] = set()
        self._push = asyncio.Event()
        self._hello = Hello(settings.process, settings.of, os.getpid(), secrets.token_hex(8))

    @property
    def desks(self) -> Mapping[str, Desk]:
        """The services that are served here, by name."""
        return self._desks

    def stop(self) -> None:
        """Finish: take no new connections, answer what is here, then let `run` return."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        channel = asyncio.create_task(self._keep_channel())
        ticking = asyncio.create_task(self._tick())
        try:
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait((stopping, channel, ticking), return_when=asyncio.FIRST_COMPLETED)
            for task in (channel, ticking):
                if task.done():
                    task.result()  # neither ends by itself: this raises what ended it
            await self._drain()
        finally:
            stopping.cancel()
            channel.cancel()
            ticking.cancel()
            await asyncio.gather(stopping, channel, ticking, return_exceptions=True)
            for desk in (*self._desks.values(), *self._leaving):
                desk.close()
            self._departures.close()

    # The channel

    async def _keep_channel(self) -> None:
        wait_s = RECONNECT_S
        lost_at_s: float | None = None
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._settings.channel)
            except OSError as error:
                if lost_at_s is None:
                    lost_at_s = monotonic()
                    log.warning(
                        "controller out of reach; serving with the last routes",
                        channel=str(self._settings.channel),
                        why=str(error),
                    )
                if monotonic() - lost_at_s >= ALONE_S:
                    self._set_alone(True)
                await asyncio.sleep(wait_s)
                wait_s = min(RECONNECT_MAX_S, wait_s * 2)
                continue
            log.info("channel open", channel=str(self._settings.channel))
            wait_s, lost_at_s = RECONNECT_S, None
            why = await self._converse(reader, writer)
            log.warning("channel closed; serving with the last routes", why=why)
            lost_at_s = monotonic()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Listen and report until the connection ends; why it did."""
        self._told.clear()
        self._version = 0  # the numbers are the connection's: what is followed now has none in it
        self._push.set()
        writer.write(encode_hello(self._hello))
        reporting = asyncio.create_task(self._report(writer))
        listening = asyncio.create_task(self._obey(reader))
        try:
            done, _ = await asyncio.wait(
                (reporting, listening), return_when=asyncio.FIRST_COMPLETED
            )
            return done.pop().result()
        finally:
            reporting.cancel()
            listening.cancel()
            await asyncio.gather(reporting, listening, return_exceptions=True)
            writer.close()

    async def _obey(self, reader: asyncio.StreamReader) -> str:
        lines = Lines()
        try:
            while data := await reader.read(1 << 16):
                received = lines.feed(data)
                if received:  # each replaces the one before
                    await self._follow(decode_routes(received[-1]))
        except ChannelError as error:
            log.error("the controller said something unintelligible", why=str(error))
            return str(error)
        except OSError as error:
            return str(error)
        return "the controller closed it"

    async def _report(self, writer: asyncio.StreamWriter) -> str:
        try:
            while True:
                report = self._take_report()
                if report is not None:
                    writer.write(encode_report(report))
                    await writer.drain()
                try:
                    async with asyncio.timeout(PUSH_S):
                        await self._push.wait()
                except TimeoutError:
                    continue
        except OSError as error:
            return str(error)

    def _take_report(self) -> Report | None:
        """What has to be told now; None: nothing has changed, and it is not time yet to say all."""
        now_s = monotonic()
        urgent = self._push.is_set()
        self._push.clear()
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
        )

    def _request_waits(self, desk: Desk, cold: bool) -> None:
        if cold:
            self._waking.add(desk.route.service)
        self._push.set()

    # The routes

    async def _follow(self, table: Routes) -> None:
        self._set_alone(False)
        wanted = {route.service: route for route in table.routes}
        for name in list(self._desks):
            old = self._desks[name].route
            new = wanted.get(name)
            if new is None or (new.host, new.port) != (old.host, old.port):
                self._leave(name)
        for name, route in wanted.items():
            desk = self._desks.get(name)
            if desk is not None:
                desk.follow(route)
            else:
                self._desks[name] = Desk(self._shared, route)
        self._version = table.version
        await self._listen()
        self._push.set()

    def _leave(self, name: str) -> None:
        desk = self._desks.pop(name)
        self._told.pop(name, None)
        desk.dismiss()
        self._leaving.append(desk)
        log.info("service left", service=name)

    def _set_alone(self, alone: bool) -> None:
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
                self._push.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = monotonic()
            for desk in (*self._desks.values(), *self._leaving):
                desk.tick(now_s)
            for desk in [desk for desk in self._leaving if not desk.clients]:
                desk.close()
                self._leaving.remove(desk)
            await self._listen()  # a port that was taken may have come free

    # The end

    async def _drain(self) -> None:
        """Close the ports; answer what is held, in flight, and still coming on open lines."""
        log.info("draining", grace_s=self._settings.grace_s)
        end_s = monotonic() + self._settings.grace_s
        await asyncio.sleep(0)  # what waits in the accept queue gets in before the ports close
        self._shared.draining = True
        desks = (*self._desks.values(), *self._leaving)
        for desk in desks:
            desk.drain()
        self._push.set()
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
