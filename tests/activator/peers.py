# SPDX-License-Identifier: Apache-2.0
"""Replicas and clients made of plain sockets, so that every byte is the test's own."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, cast

from autoscaler.activator.desk import Departures, Desk, Shared
from autoscaler.core.routes import Demand, Endpoint, Route

PATIENCE_S = 10.0  # how long a test waits for what must happen; it never decides an outcome


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for a condition, with a bound."""
    end_s = monotonic() + PATIENCE_S
    while not condition():
        if monotonic() > end_s:
            raise AssertionError(f"{what} did not come about within {PATIENCE_S:g} s")
        await asyncio.sleep(0.005)


@dataclass
class Message:
    """A request or response as it came over the wire."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    raw: bytes = b""

    def get(self, name: str) -> str | None:
        values = [v for n, v in self.headers if n.lower() == name.lower()]
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    @property
    def target(self) -> str:
        return self.start.split()[1]


class Line:
    """One connection, read as HTTP/1.1 without help from what is tested."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self.writer.write(data)

    async def head(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        headers = [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)]
        return Message(start, headers, raw=raw)

    async def message(self, *, to_head: bool = False) -> Message:
        """A whole message; a response without a length lasts until the close."""
        message = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            response = message.start.startswith("HTTP/")
            if to_head or (response and message.status in (204, 304)):
                return message
            if message.get("transfer-encoding") == "chunked":
                message.body = await self.chunks()
            elif (length := message.get("content-length")) is not None:
                message.body = await self.reader.readexactly(int(length))
            elif response:
                message.body = await self.reader.read()
        return message

    async def chunks(self) -> bytes:
        body = b""
        while True:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size == 0:
                while await self.reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return body
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Everything until the other side closes; a reset counts as a close."""
        data = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while part := await self.reader.read(1 << 16):
                    data += part
        return data

    async def closed(self) -> None:
        assert await self.rest() == b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a reset, whatever is still on its way."""
        if not self._transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        self._transport.resume_reading()

    @property
    def _transport(self) -> asyncio.Transport:
        return cast(asyncio.Transport, self.writer.transport)


Answer = Callable[[Message, Line], Awaitable[bool | None]]


def ok(body: bytes = b"ok", *, headers: str = "") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (
        len(body),
        headers.encode(),
        body,
    )


async def say_ok(request: Message, line: Line) -> None:
    line.send(ok(request.body or b"ok"))


@dataclass(eq=False)
class Replica:
    """A server for tests: `answer` writes the response; if it returns False the connection ends."""

    answer: Answer = say_ok
    id: str = "r1"
    port: int = 0
    reads_bodies: bool = True
    requests: list[Message] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    ended: int = 0  # connections that the other side has ended
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=1 << 24
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def endpoint(self, slots: int | None = None, *, draining: bool = False) -> Endpoint:
        return Endpoint(self.id, "127.0.0.1", self.port, slots=slots, draining=draining)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        self.lines.append(line)
        task = asyncio.get_running_loop().create_task(self._serve(line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, line: Line) -> None:
        try:
            while True:
                raw = await line.reader.readuntil(b"\r\n\r\n")
                start, *lines = raw.decode("latin-1").split("\r\n")[:-2]
                headers = [(n, v.strip()) for n, _, v in (each.partition(":") for each in lines)]
                request = Message(start, headers, raw=raw)
                self.requests.append(request)
                if self.reads_bodies and request.get("transfer-encoding") == "chunked":
                    request.body = await line.chunks()
                elif self.reads_bodies and (length := request.get("content-length")):
                    request.body = await line.reader.readexactly(int(length))
                if await self.answer(request, line) is False:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended += 1
        finally:
            line.close()

    async def stop(self) -> None:
        """Refuse connections from now on, and end those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for line in self.lines:
            line.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Front:
    """One service's desk in this process, and what is told of it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.waits: list[bool] = []
        self.departures = Departures(loop)
        self.shared = Shared(
            loop=loop,
            max_clients=20_000,
            on_wait=lambda desk, cold: self.waits.append(cold),
            departures=self.departures,
        )
        self.desk = Desk(self.shared, Route("m", "127.0.0.1", 0, why="nobody came for 60 s"))

    async def start(self) -> None:
        await self.desk.listen()
        assert not self.desk.problem

    @property
    def port(self) -> int:
        return self.desk.port

    def follow(self, *endpoints: Endpoint, **changes: Any) -> None:
        self.desk.follow(replace(self.desk.route, endpoints=endpoints, **changes))

    def demand(self) -> Demand:
        return self.desk.demand(monotonic())

    async def holds(self, count: int) -> None:
        await until(lambda: self.desk.holding.held == count, f"holding {count}")

    async def flies(self, count: int) -> None:
        await until(lambda: self.desk.holding.in_flight == count, f"{count} in flight")

    async def close(self) -> None:
        self.desk.close()
        await until(lambda: not self.desk.clients, "closing all clients")
        self.departures.close()


class Peers:
    """Makes replicas and clients, and ends them all."""

    def __init__(self) -> None:
        self._replicas: list[Replica] = []
        self._lines: list[Line] = []

    async def replica(self, answer: Answer = say_ok, *, id: str = "r1", port: int = 0) -> Replica:  # noqa: A002
        replica = Replica(answer, id=id, port=port)
        await replica.start()
        self._replicas.append(replica)
        return replica

    async def client(self, front: Front, data: bytes = b"") -> Line:
        return await self.connect(front.port, data)

    async def connect(self, port: int, data: bytes = b"") -> Line:
        line = Line(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))
        self._lines.append(line)
        if data:
            line.send(data)
        return line

    async def close(self) -> None:
        for line in self._lines:
            line.reset()
        for replica in self._replicas:
            await replica.stop()
        await asyncio.sleep(0.01)  # the event loop gets round to closing what was just ended


def get(path: str = "/x", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: m\r\n{headers}\r\n".encode()


def post(body: bytes, path: str = "/v1/models/m:predict", headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: m\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body
