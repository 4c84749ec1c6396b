# SPDX-License-Identifier: Apache-2.0
"""The controller's end of the channel to its activators: routes go out, demand comes in.

Only this file knows that there are several activator processes; the loop sees one. Levels (held, in
flight) are summed over those that speak now. Totals also keep what ended processes had counted, so
they never fall. Silence is not zero: without a word for `STALE_S` there is no reading, and while
only some of the processes speak the reading says for what share it stands.

On one machine the channel is a Unix socket that only its owner can open. Over TCP anybody may
connect: there each hello has to be vouched for before anything else is heard or told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from autoscaler.channel import (
    MAX_LINE_BYTES,
    ChannelError,
    Hello,
    Lines,
    Listening,
    Report,
    decode_report,
    encode_routes,
)
from autoscaler.core.routes import Demand, Endpoint, Route
from autoscaler.core.shares import Claim, shares
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, ServiceId, reading
from autoscaler.errors import GiveUp
from autoscaler.ports import SourceHealth
from autoscaler.tcp import notice_loss

STALE_S: Final = 3.0  # an activator speaks at least once a second
MAX_UNSENT_BYTES: Final = 4 * 1024 * 1024  # an activator this far behind gets the next table later
# Until a peer on TCP has been vouched for: how long that may take, and how much it may say.
HELLO_S: Final = 10.0
HELLO_BYTES: Final = 64 * 1024

log = structlog.get_logger("activators")

_Slot = tuple[str, str]  # service, endpoint


@dataclass(slots=True, eq=False)
class _Process:
    """One activator process: what it said, what it was told."""

    hello: Hello
    writer: asyncio.StreamWriter | None
    heard_at_s: float | None = None
    leaving: bool = False
    acknowledged: int = 0
    version: int = 0
    unsent: bool = True
    demand: dict[str, Demand] = field(default_factory=dict)
    waits_s: Mapping[str, float] = field(default_factory=dict)
    listening: dict[str, Listening] = field(default_factory=dict)
    told: dict[str, Route] = field(default_factory=dict)
    told_at: dict[str, int] = field(default_factory=dict)  # version that brought the present port
    # The last version in which an endpoint took new requests; kept until a later one is followed.
    open_in: dict[_Slot, int] = field(default_factory=dict)
    granted: dict[_Slot, int] = field(default_factory=dict)
    # Slots taken from it that it may still use, and the version it must acknowledge to be done.
    taken: dict[_Slot, tuple[int, int]] = field(default_factory=dict)

    def holds(self, route: Route) -> bool:
        """Whether it has said that it follows the route and listens on its port."""
        port = self.listening.get(route.service, Listening(route.service, 0)).port
        followed = self.acknowledged >= self.told_at.get(route.service, 1 << 62)
        return followed and bool(port) and port == (route.port or port)

    def in_flight(self, slot: _Slot) -> int:
        demand = self.demand.get(slot[0])
        return 0 if demand is None else demand.in_flight_by_endpoint.get(slot[1], 0)

    def may_send(self, slot: _Slot) -> bool:
        """Whether new requests may still go there; see `ActivatorHub.may_send`."""
        if not self.acknowledged:  # what it follows now was not told by us
            return True
        if self.open_in.get(slot, -1) >= self.acknowledged:
            return True
        route = self.told.get(slot[0])
        if route is None or route.backend is None:
            return False
        return not _drains(self.told, slot)

    def claim(self, slot: _Slot) -> Claim:
        granted, in_flight = self.granted.get(slot, 0), self.in_flight(slot)
        before, version = self.taken.get(slot, (0, 0))
        if version <= self.acknowledged:
            self.taken.pop(slot, None)
            before = 0
        demand = self.demand.get(slot[0])
        return Claim(
            granted=granted,
            committed=max(granted, in_flight, before),
            in_flight=in_flight,
            held=0 if demand is None else demand.held,
            waits_s=self.waits_s.get(slot[0], 0.0),
        )


async def _trust(hello: Hello) -> str | None:
    """Who can open a socket that is its owner's alone is that owner."""
    return None


def lives_here(hello: Hello) -> bool:
    """Whether the activator's process still exists, where it runs on the controller's machine."""
    try:
        os.kill(hello.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ActivatorHub:
    """Hands routes to every activator that connects, and adds up what they know.

    `on_wake(service)` is called the moment an activator says that a service's first request has
    begun to wait with no endpoint to go to, and `on_follow()` when what `holders` says may have
    changed. `now_s` is the loop's clock. `authenticate` vouches
    for a hello: None, or why it is refused. `lives` says whether an activator whose connection
    was lost may still be serving: as long as it may, what it was lent stays reserved.
    """

    def __init__(
        self,
        *,
        now_s: Callable[[], float] = monotonic,
        authenticate: Callable[[Hello], Awaitable[str | None]] = _trust,
        lives: Callable[[Hello], bool] = lives_here,
    ) -> None:
        self.on_wake: Callable[[str], None] = lambda service: None
        self.on_follow: Callable[[], None] = lambda: None
        self._now_s = now_s
        self._authenticate = authenticate
        self._lives = lives
        self._routes: dict[str, Route] = {}
        self._processes: dict[str, _Process] = {}  # by token; those that went away are in _ended
        self._gone: dict[str, _Process] = {}  # connection lost; totals count, slots maybe in use
        self._base: dict[str, Demand] = {}  # totals of those that will never speak again
        self._published = False  # before the first table, silence: an empty one ends services
        self._expected = 1
        self._expected_by_hello = True
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._started_at_s = 0.0
        self._conversations: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, where: Path | tuple[str, int]) -> None:
        """Listen for activators on a Unix socket or a TCP address. Raises `GiveUp` if it cannot."""
        self._started_at_s = self._now_s()
        if isinstance(where, Path):
            await self._start_on_machine(where)
            return
        host, port = where
        try:
            self._server = await asyncio.start_server(self._accept, host, port)
        except OSError as error:
            raise GiveUp(
                f"listening for activators on {host}:{port} failed: {error.strerror or error}; "
                "stop what listens there or name another address"
            ) from error

    async def _start_on_machine(self, path: Path) -> None:
        _make_room(path)
        try:
            self._server = await asyncio.start_unix_server(self._accept, path)
        except OSError as error:
            raise GiveUp(
                f"listening for activators on {path} failed: {error.strerror or error}; "
                "choose a directory that exists, is writable and has a short name"
            ) from error
        _make_private(path)
        self._path = path

    @property
    def port(self) -> int:
        """The TCP port it listens on; 0 if it listens on none."""
        if self._server is None or self._path is not None:
            return 0
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the channel. Activators go on with the routes they have."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._conversations.values():
            writer.close()
        await asyncio.gather(*self._conversations)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    # What the controller says and asks

    def publish(self, routes: Mapping[str, Route]) -> None:
        """Replace the route table; every activator is told at once if anything changed."""
        if routes == self._routes and self._published:
            return
        self._published = True
        self._routes = dict(routes)
        self._base = {name: total for name, total in self._base.items() if name in routes}
        self._deal(self._routes)
        for process in self._processes.values():
            process.unsent = True
        self._send_all()

    def expect(self, activators: int) -> None:
        """How many activators there should be, where that is not theirs to say."""
        self._expected_by_hello = False
        if activators == self._expected:
            return
        self._expected = activators
        self._deal(self._routes)
        for process in self._processes.values():
            process.unsent = True
        self._send_all()

    def demand(self, service: str) -> Demand | NoReading:
        """What all activators know of a service together; see the module for what silence means."""
        if not self._processes:
            return NoReading("no activator is connected")
        speaking = self._speaking()
        if not speaking:
            spoken = [p.heard_at_s for p in self._processes.values() if p.heard_at_s is not None]
            if not spoken:
                return NoReading("no activator has spoken yet")
            return NoReading(f"no activator has spoken for {self._now_s() - max(spoken):.1f} s")
        known = [p.demand[service] for p in speaking if service in p.demand]
        if not known:
            return NoReading(f"no activator has reported on {service} yet")
        totals = [p.demand[service] for p in self._silent() if service in p.demand]
        if service in self._base:
            totals.append(self._base[service])
        return _sum(service, known, totals)

    def share_ratio(self) -> float:
        """The part (0-1) of the expected activator processes that speak now."""
        return min(1.0, len(self._speaking()) / max(1, self._expected))

    def may_send(self, service: str, endpoint: str) -> bool:
        """Whether an activator may still follow a table in which the endpoint takes new requests.

        What it said of its requests before it follows a later table proves nothing about them.
        An activator that finds endpoints by itself sends to all but those it was told to drain.
        """
        self._bury()  # a process that has ended sends nothing any more
        everyone = (*self._processes.values(), *self._gone.values())
        return any(p.may_send((service, endpoint)) for p in everyone)

    def heard_at_s(self) -> float | None:
        """When the activator that has been silent longest, of those that speak, last spoke."""
        return min((p.heard_at_s or 0.0 for p in self._speaking()), default=None)

    def held_by(self, service: str) -> bool:
        """Whether an activator is proven to receive what is sent to the service's port."""
        return bool(self.holders(service))

    def holders(self, service: str) -> list[Hello]:
        """The activators proven to receive what is sent to the service's port, and here to stay."""
        route = self._routes.get(service)
        if route is None:
            return []
        return [p.hello for p in self._speaking() if not p.leaving and p.holds(route)]

    def ports(self, service: str) -> list[Listening]:
        """Where each connected activator listens for a service, and if not, why not."""
        return [p.listening[service] for p in self._processes.values() if service in p.listening]

    # One activator's connection

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._conversations[task] = writer
        task.add_done_callback(self._conversations.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process: _Process | None = None
        lines = Lines(limit_bytes=HELLO_BYTES)
        why = "it closed the channel"
        try:
            notice_loss(writer.get_extra_info("socket"))
            hello, heard = await self._meet(reader, lines)
            if hello is None:
                return
            process = self._greet(hello, writer)
            lines.limit_bytes = MAX_LINE_BYTES
            while True:
                for line in heard:
                    said = decode_report(line)
                    if isinstance(said, Hello):
                        raise ChannelError("a second hello")
                    self._hear(process, said)
                if not (data := await reader.read(1 << 16)):
                    return
                heard = lines.feed(data)
        except ChannelError as error:
            why = str(error)
            log.error("an activator said something unintelligible", why=why)
        except OSError as error:
            why = error.strerror or str(error)
        finally:
            writer.close()
            if process is not None:
                self._lose(process, writer, why)

    async def _meet(
        self, reader: asyncio.StreamReader, lines: Lines
    ) -> tuple[Hello | None, list[bytes]]:
        """Who has connected, and the lines that came with its hello; None: nobody to be served."""
        why: str | None = f"nothing was heard and vouched for within {HELLO_S:g} s"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HELLO_S):
                while not (heard := lines.feed(data := await reader.read(1 << 16))):
                    if not data:
                        return None, []
                hello = decode_report(heard[0])
                if not isinstance(hello, Hello):
                    raise ChannelError("a report before a hello")
                why = await self._authenticate(hello)
                if why is None:
                    return hello, heard[1:]
        log.error("a connection to the activators' channel was refused", why=why)
        return None, []

    def _greet(self, hello: Hello, writer: asyncio.StreamWriter) -> _Process:
        self._bury_predecessors(hello)
        old = self._processes.pop(hello.token, None) or self._gone.pop(hello.token, None)
        if old is not None:  # the same process, over a new connection
            if old.writer is not None:
                old.writer.close()
            process = replace(
                old, hello=hello, writer=writer, heard_at_s=None, unsent=True, listening={}
            )
            # It may still follow an older table than the one it was sent last.
            process.acknowledged = 0
        else:
            process = _Process(hello, writer)
        self._processes[hello.token] = process
        if self._expected_by_hello:
            self._expected = hello.of
        log.info(
            "activator connected",
            pod=hello.pod,
            process=hello.process,
            of=self._expected,
            pid=hello.pid,
        )
        return process

    def _hear(self, process: _Process, report: Report) -> None:
        first = process.heard_at_s is None
        followed = (process.acknowledged, process.leaving, process.listening)
        process.heard_at_s = self._now_s()
        process.acknowledged = report.version
        for demand in report.demand:
            before = process.demand.get(demand.service)
            if before is not None and demand.requests_total < before.requests_total:
                self._keep_totals({demand.service: before})  # it started that service anew
            process.demand[demand.service] = demand
        process.waits_s = report.waits_s
        process.leaving = report.leaving
        process.listening = {each.service: each for each in report.listening}
        if first or followed != (process.acknowledged, process.leaving, process.listening):
            self.on_follow()
        self._deal(self._routes if first else {d.service for d in report.demand})
        self._send_all()
        for service in report.waking:
            if service in self._routes:
                self.on_wake(service)

    def _lose(self, process: _Process, writer: asyncio.StreamWriter, why: str) -> None:
        if process.writer is not writer:
            return  # it has come back over another connection already
        process.writer = None
        if self._processes.get(process.hello.token) is process:
            del self._processes[process.hello.token]
            self._gone[process.hello.token] = process
            hello = process.hello
            log.warning("activator lost", pod=hello.pod, process=hello.process, why=why)
            self.on_follow()

    def _keep_totals(self, demands: Mapping[str, Demand]) -> None:
        for service, demand in demands.items():
            totals = [self._base[service]] if service in self._base else []
            self._base[service] = _sum(service, [], [*totals, demand])

    # Slots

    def _deal(self, services: Collection[str]) -> None:
        """Share the limited slots of these services' replicas among the processes."""
        self._bury()
        processes = sorted(self._processes.values(), key=lambda p: (p.hello.process, p.hello.pod))
        processes = [p for p in processes if p.heard_at_s is not None]
        if not processes:
            return
        for service in services:
            route = self._routes.get(service)
            for turn, endpoint in enumerate(route.endpoints if route else ()):
                if endpoint.slots is not None:
                    self._deal_one((service, endpoint.id), endpoint.slots, processes, turn)

    def _deal_one(self, slot: _Slot, slots: int, processes: list[_Process], turn: int) -> None:
        available = slots - sum(p.claim(slot).committed for p in self._gone.values())
        settling = self._now_s() - self._started_at_s < STALE_S
        if settling and len(processes) < self._expected:
            # The controller has just started: the others still use what they were told before.
            available = min(available, slots * len(processes) // self._expected)
        claims = [process.claim(slot) for process in processes]
        for process, claim, granted in zip(
            processes, claims, shares(max(0, available), claims, turn=turn), strict=True
        ):
            if granted == process.granted.get(slot):
                continue
            if granted < claim.granted:
                process.taken[slot] = (claim.committed, process.version + 1)
            process.granted[slot] = granted
            process.unsent = True

    def _bury(self) -> None:
        """Forget processes that have ended, but for what they had counted."""
        for token, process in list(self._gone.items()):
            if not self._lives(process.hello):
                del self._gone[token]
                self._keep_counts(process)

    def _bury_predecessors(self, hello: Hello) -> None:
        """In a pod runs one activator at a time: whoever spoke for this pod before has ended."""
        if not hello.pod:
            return
        for known in (self._processes, self._gone):
            for token, process in list(known.items()):
                if process.hello.pod == hello.pod and token != hello.token:
                    del known[token]
                    self._keep_counts(process)
                    if process.writer is not None:
                        process.writer.close()

    def _keep_counts(self, process: _Process) -> None:
        self._keep_totals({s: d for s, d in process.demand.items() if s in self._routes})

    # Telling them

    def _send_all(self) -> None:
        if not self._published:
            return
        for process in self._processes.values():
            if process.unsent and process.heard_at_s is not None:
                self._send(process)

    def _send(self, process: _Process) -> None:
        writer = process.writer
        if writer is None or writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            return  # it is behind; the next report it makes tries again
        process.unsent = False
        process.version += 1
        table = {name: self._for(process, route) for name, route in self._routes.items()}
        for name, route in table.items():
            before = process.told.get(name)
            if before is None or (before.host, before.port) != (route.host, route.port):
                process.told_at[name] = process.version
        for name in process.told.keys() - table.keys():
            process.told_at.pop(name, None)
            process.demand.pop(name, None)
        self._note_open(process, table)
        process.told = table
        live = {(r.service, e.id) for r in self._routes.values() for e in r.endpoints}
        process.granted = {slot: n for slot, n in process.granted.items() if slot in live}
        process.taken = {slot: n for slot, n in process.taken.items() if slot in live}
        writer.write(
            encode_routes(process.version, table.values(), activators=max(1, self._expected))
        )

    def _note_open(self, process: _Process, table: Mapping[str, Route]) -> None:
        """Note where this process may send new requests from this version on."""
        before = process.open_in
        process.open_in = {slot: v for slot, v in before.items() if v >= process.acknowledged}
        for route in table.values():
            for endpoint in route.endpoints:
                slot = (route.service, endpoint.id)
                if not endpoint.draining:
                    process.open_in[slot] = process.version
                elif route.backend is not None and not _drains(process.told, slot):
                    # It may have found this one by itself, under whichever table went before.
                    process.open_in[slot] = process.version - 1

    def _for(self, process: _Process, route: Route) -> Route:
        """The route as this process is to see it: with its own share of every replica's slots."""
        if all(endpoint.slots is None for endpoint in route.endpoints):
            return route
        endpoints = tuple(
            e if e.slots is None else self._share(process, route.service, e)
            for e in route.endpoints
        )
        return replace(route, endpoints=endpoints)

    def _share(self, process: _Process, service: str, endpoint: Endpoint) -> Endpoint:
        return replace(endpoint, slots=process.granted.get((service, endpoint.id), 0))

    # Who speaks

    def _speaking(self) -> list[_Process]:
        oldest_s = self._now_s() - STALE_S
        return [
            p
            for p in self._processes.values()
            if p.heard_at_s is not None and p.heard_at_s >= oldest_s
        ]

    def _silent(self) -> list[_Process]:
        speaking = self._speaking()
        return [
            p
            for p in (*self._processes.values(), *self._gone.values())
            if not any(p is other for other in speaking)
        ]


class ActivatorSignalSource:
    """What the activators measure, as a `SignalSource`. `key` names a service as its route does."""

    name = "activator"

    def __init__(
        self,
        hub: ActivatorHub,
        *,
        key: Callable[[ServiceId], str] = str,
        now_s: Callable[[], float] = monotonic,
    ) -> None:
        """`now_s`: the hub's clock."""
        self._hub = hub
        self._now_s = now_s
        self._key = key
        self._asked = self._failed = 0

    def health(self) -> SourceHealth:
        heard_at_s, ratio = self._hub.heard_at_s(), self._hub.share_ratio()
        why = None if ratio >= 1.0 else f"{ratio:.0%} of the activator processes speak"
        age_s = None if heard_at_s is None else self._now_s() - heard_at_s
        return SourceHealth(self.name, why, age_s, self._asked, self._failed)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        self._asked += 1
        self._failed += self._hub.share_ratio() < 1.0
        return {
            service: self._measures(self._hub.demand(self._key(service))) for service in services
        }

    def _measures(self, demand: Demand | NoReading) -> Measures:
        at_s = self._hub.heard_at_s()
        if isinstance(demand, NoReading) or at_s is None:
            why = demand if isinstance(demand, NoReading) else NoReading("no activator speaks")
            return dict.fromkeys(_MEASURED, why)
        share_ratio = self._hub.share_ratio()

        def seen(value: float) -> Reading | NoReading:
            return reading(value, at_s=at_s, source=self.name, share_ratio=share_ratio)

        return {measure: seen(take(demand)) for measure, take in _MEASURED.items()}


# What requests for generated text were estimated to cost; only activators see it coming.
IN_TOKENS: Final[Mapping[Measure, Callable[[Demand], float]]] = {
    Measure.HELD_PROMPT_TOKENS: lambda demand: demand.held_prompt_tokens,
    Measure.HELD_OUTPUT_TOKENS: lambda demand: demand.held_output_tokens,
    Measure.HELD_OPEN_ENDED: lambda demand: demand.held_open_ended,
    Measure.PROMPT_TOKENS_ARRIVED_TOTAL: lambda demand: demand.prompt_tokens_total,
    Measure.OUTPUT_TOKENS_ASKED_TOTAL: lambda demand: demand.output_tokens_asked_total,
    Measure.OPEN_ENDED_TOTAL: lambda demand: demand.open_ended_total,
}
_MEASURED: Final[Mapping[Measure, Callable[[Demand], float]]] = {
    Measure.HELD: lambda demand: demand.held,
    Measure.IN_FLIGHT: lambda demand: demand.in_flight,
    Measure.REQUESTS_TOTAL: lambda demand: demand.requests_total,
    Measure.REQUEST_SECONDS_TOTAL: lambda demand: demand.request_seconds_total,
    Measure.HELD_SECONDS_TOTAL: lambda demand: demand.held_seconds_total,
    **IN_TOKENS,
}


def _sum(service: str, levels: Collection[Demand], totals: Collection[Demand]) -> Demand:
    """One demand out of several; of those in `totals` only the totals count."""
    everyone = (*levels, *totals)
    by_endpoint: dict[str, int] = {}
    for demand in levels:
        for endpoint, count in demand.in_flight_by_endpoint.items():
            by_endpoint[endpoint] = by_endpoint.get(endpoint, 0) + count
    sums = {name: sum(getattr(d, name) for d in levels) for name in _LEVELS}
    sums |= {name: sum(getattr(d, name) for d in everyone) for name in _TOTALS}
    return Demand(service, in_flight_by_endpoint=by_endpoint, **sums)


_SUMMED: Final = tuple(
    each.name for each in fields(Demand) if each.name not in ("service", "in_flight_by_endpoint")
)
_TOTALS: Final = tuple(name for name in _SUMMED if name.endswith("_total"))
_LEVELS: Final = tuple(name for name in _SUMMED if name not in _TOTALS)


def _drains(told: Mapping[str, Route], slot: _Slot) -> bool:
    route = told.get(slot[0])
    return route is not None and any(e.id == slot[1] and e.draining for e in route.endpoints)


def _make_private(path: Path) -> None:
    path.chmod(0o600)


def _make_room(path: Path) -> None:
    """Remove a socket that nobody listens on any more. Raises `GiveUp` if somebody does."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise GiveUp(f"{path} is in the way of the activators' channel; remove or rename it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink(missing_ok=True)
                return
        raise GiveUp(f"another controller listens on {path}; stop it or choose another path")
