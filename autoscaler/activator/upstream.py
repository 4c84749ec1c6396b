# SPDX-License-Identifier: Apache-2.0
"""The replica's end of an exchange: connections to one endpoint, and one answer at a time on each.

An answer is read only as far as it takes to find its end; its bytes go to the client as they came.
Bytes that nobody asked for, or that follow the end of an answer, end the connection: they could be
taken for the answer to the next request.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from autoscaler.activator.wire import (
    HEAD_END,
    MAX_HEAD_BYTES,
    UNSENT_BYTES,
    Chunks,
    ResponseHead,
    WireError,
    parse_response,
    response_like,
    without_chunking,
)

if TYPE_CHECKING:
    from autoscaler.activator.proxy import Client

CONNECT_TIMEOUT_S: Final = 3.0
# Servers close idle connections; the shortest common patience is 5 s (uvicorn). A request sent just
# then is lost, so a connection that was idle for longer than this is not used any more.
IDLE_S: Final = 4.0
# Where struct tcp_info (linux/tcp.h) has tcpi_bytes_acked: all that the peer's kernel has taken in,
# and one for the opening of the connection.
_BYTES_ACKED: Final = 120


class _Awaits(Enum):
    """What the next bytes from the replica are."""

    HEAD = "the head of an answer"
    LENGTH = "a body of known length"
    CHUNKS = "a chunked body"
    CLOSE = "a body that ends with the connection"
    RAW = "bytes that are not looked at"


_HEAD, _LENGTH, _CHUNKS = _Awaits.HEAD, _Awaits.LENGTH, _Awaits.CHUNKS
_CLOSE, _RAW = _Awaits.CLOSE, _Awaits.RAW


class Upstream(asyncio.Protocol):
    """One connection to an endpoint. `client` is whom it serves; None while it is idle."""

    __slots__ = (
        "_awaits",
        "_chunks",
        "_inside",
        "_keep",
        "_left",
        "_memo",
        "_partial",
        "_reading_paused",
        "_request_at_bytes",
        "_untouched",
        "_written_bytes",
        "begun",
        "client",
        "idle_since_s",
        "pool",
        "reused",
        "transport",
        "writing_paused",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.client: Client | None = None
        self.reused = False
        self.begun = False  # a byte of the present answer has come
        self.writing_paused = False
        self.idle_since_s = 0.0
        self._awaits = _HEAD
        self._keep = True
        self._left = 0
        self._chunks: Chunks | None = None
        self._inside: list[bytes] | None = None  # payload of chunks, for a client that knows none
        self._memo: ResponseHead | None = None
        self._partial = b""
        self._untouched = False
        self._written_bytes = 0  # since the connection began
        self._request_at_bytes = 0  # of these, how many were for earlier requests
        self._reading_paused = False

    @property
    def framed(self) -> bool:
        """Whether the present answer would show its reader that its end is missing."""
        return self._awaits is _LENGTH or (self._awaits is _CHUNKS and self._inside is None)

    # What the client's end calls

    def send(self, client: Client, out: bytes) -> None:
        """Begin an exchange: `out` is the request's head and what there is of its body."""
        self.client = client
        self.begun = False
        self._request_at_bytes = self._written_bytes
        self._written_bytes += len(out)
        self.transport.write(out)

    def send_more(self, part: bytes) -> None:
        """Further body of the present request."""
        self._written_bytes += len(part)
        self.transport.write(part)

    def splice(self, client: Client, out: bytes) -> None:
        """From now on pass bytes both ways without looking at them."""
        self._awaits = _RAW
        self.begun = True
        self.client = client
        self.transport.write(out)

    def pause_reading(self) -> None:
        """The client takes the answer more slowly than it comes."""
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client takes more again."""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def abandon(self) -> None:
        """The client went away: cut the connection, which tells the replica to stop working."""
        self.client = None
        self.transport.abort()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        self.transport.set_write_buffer_limits(*UNSENT_BYTES)
        self.pool.connections.add(self)

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None:  # nobody asked for this
            self.transport.abort()
            return
        awaits = self._awaits
        if awaits is _HEAD:
            self.begun = True
            memo = self._memo
            if memo is not None and not self._partial and data.startswith(memo.raw):
                raw = memo.raw
                # The common case on one screen: a known head, a whole body, a client that gets the
                # bytes as they are. A head that is the same to the byte means the same.
                if memo.length == len(data) - len(raw) and client.plain:
                    if memo.forward is raw:
                        client.transport.write(data)
                    else:
                        client.transport.write(memo.forward + data[len(raw) :])
                    self._finish(memo.keep_alive)
                else:
                    self._begin(client, memo, data, len(raw))
            else:
                self._read_heads(client, data)
        elif awaits is _LENGTH:
            size = len(data)
            if size < self._left:
                self._left -= size
                client.transport.write(data)
            else:
                client.transport.write(data if size == self._left else data[: self._left])
                self._finish(self._keep and size == self._left)
        elif awaits is _CHUNKS:
            self._pass_chunks(client, data)
        else:
            client.transport.write(data)

    def eof_received(self) -> bool:
        client = self.client
        if client is not None and self._awaits is _CLOSE:
            self._finish(False)
        elif client is not None:
            # The peer's last segment acknowledges all that had come in when it closed. What it has
            # not acknowledged met a closed socket, and no process has read it.
            info: bytes = self.transport.get_extra_info("socket").getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8
            )
            if len(info) == _BYTES_ACKED + 8:
                acked = int.from_bytes(info[_BYTES_ACKED:], sys.byteorder) - 1
                self._untouched = acked <= self._request_at_bytes
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.forget(self)
        client, self.client = self.client, None
        if client is not None:
            client.upstream_lost(self, untouched=self._untouched)

    def pause_writing(self) -> None:
        self.writing_paused = True
        if self.client is not None:
            self.client.upstream_full()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self.client is not None:
            self.client.upstream_drained()

    # Reading an answer

    def _read_heads(self, client: Client, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        while True:
            end = data.find(HEAD_END) + len(HEAD_END)
            if end < len(HEAD_END) or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES:
                    self._give_up(client, "the replica's answer has too large a head")
                self._partial = data
                return
            raw = data[:end]
            head = None if self._memo is None else response_like(self._memo, raw)
            if head is None:
                try:
                    head = parse_response(raw)
                except WireError as error:
                    self._give_up(client, error.why)
                    return
            if head.status >= 200:
                break
            if head.switches:
                self._switch(client, head, data)
                return
            # 100 was asked for by nobody: the activator answers `Expect` itself. 102 and 103 go on.
            if head.status != 100 and not client.head.version_10:
                client.transport.write(head.forward)
            data = data[end:]
            if not data:
                return
        self._memo = head
        self._begin(client, head, data, end)

    def _switch(self, client: Client, head: ResponseHead, data: bytes) -> None:
        if not client.head.upgrades:
            self._give_up(client, "the replica switched protocols, which nobody had asked for")
            return
        self._awaits = _RAW
        client.transport.write(data)
        client.switched(self)

    def _begin(self, client: Client, head: ResponseHead, data: bytes, end: int) -> None:
        """Pass on the head, changed for this client, with what there is of the body."""
        bodyless = client.head.method == "HEAD" or head.status in (204, 304)
        unchunk = head.chunked and client.head.version_10
        lasts_until_close = (head.length is None and not head.chunked) or unchunk
        self._keep = head.keep_alive
        forward = without_chunking(head) if unchunk else head.forward
        if not client.plain or (lasts_until_close and not bodyless):
            forward = client.decorate(forward, close=lasts_until_close and not bodyless)
        size = len(data) - end
        if bodyless:
            client.transport.write(forward)
            self._finish(self._keep and not size)
        elif head.chunked:
            self._awaits = _CHUNKS
            self._chunks = Chunks()
            self._inside = [] if unchunk else None
            self._pass_chunks(client, data, head=forward, end_of_head=end)
        else:
            # A head that goes on as it came is not taken off the body and put on again.
            whole = data if forward is head.raw else forward + data[end:]
            if head.length is None:
                self._awaits = _CLOSE
                client.transport.write(whole)
            elif size < head.length:
                self._awaits = _LENGTH
                self._left = head.length - size
                client.transport.write(whole)
            else:
                client.transport.write(whole[: len(whole) - (size - head.length)])
                self._finish(self._keep and size == head.length)

    def _pass_chunks(
        self, client: Client, data: bytes, *, head: bytes = b"", end_of_head: int = 0
    ) -> None:
        chunks = self._chunks
        if chunks is None:
            raise RuntimeError("chunks are passed on only after a head that announced them")
        try:
            end = chunks.feed(data, end_of_head, into=self._inside)
        except WireError:
            client.broke_off()
            return
        if self._inside is not None:
            out = head + b"".join(self._inside)
            self._inside.clear()
        elif end_of_head:
            out = head + data[end_of_head:end]
        else:
            out = data if end == len(data) else data[:end]
        if out:
            client.transport.write(out)
        if chunks.done:
            self._finish(self._keep and end == len(data))

    def _finish(self, reusable: bool) -> None:
        """The answer is complete: hand the connection back, then tell the client's end."""
        client, self.client = self.client, None
        if client is None:
            raise RuntimeError("an answer ended that nobody had asked for")
        self._awaits = _HEAD
        self._chunks = self._inside = None
        if reusable and client.body_done:
            self.pool.put(self)
        else:
            self.transport.close()
        client.answered()

    def _give_up(self, client: Client, why: str) -> None:
        """The answer cannot be passed on, and nothing of it has been."""
        self.client = None
        self.transport.abort()
        client.failed(why)


class Pool:
    """The connections to one endpoint, those in use and those that wait for a next request."""

    def __init__(
        self,
        endpoint: str,
        host: str,
        port: int,
        *,
        reached: Callable[[str], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.endpoint = endpoint
        self.host = host
        self.port = port
        self.connections: set[Upstream] = set()
        self._reached = reached
        self._loop = loop
        self._idle: list[Upstream] = []  # the last one used comes first, so that a few stay warm
        self._open = True
        self._attempts: set[asyncio.Task[None]] = set()

    def take(self, now_s: float) -> Upstream | None:
        """An idle connection that is fit for a next request, if there is one."""
        idle = self._idle
        while idle:
            upstream = idle.pop()
            if not upstream.transport.is_closing():
                if now_s - upstream.idle_since_s < IDLE_S:
                    upstream.reused = True
                    return upstream
                upstream.transport.close()
        return None

    def put(self, upstream: Upstream) -> None:
        """An exchange ended well: keep the connection, unless this endpoint is to be left."""
        if self._open and not upstream.transport.is_closing():
            upstream.idle_since_s = monotonic()
            upstream.resume_reading()  # a slow client may have paused it at the very end
            self._idle.append(upstream)
        else:
            upstream.transport.close()

    def connect(self, client: Client, attempt: int) -> None:
        """Open a new connection for `client`: `connected` or `unreachable` is called on it."""
        task = self._loop.create_task(self._connect(client, attempt))
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    async def _connect(self, client: Client, attempt: int) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, upstream = await self._loop.create_connection(
                    lambda: Upstream(self), self.host, self.port
                )
        except (OSError, TimeoutError) as error:
            client.unreachable(attempt, str(error) or "no answer to a connection attempt")
            return
        if upstream.transport.is_closing():  # it was accepted and closed before anything was sent
            client.unreachable(attempt, "it closed the connection at once")
            return
        self._reached(self.endpoint)
        if not client.connected(attempt, upstream):
            self.put(upstream)  # the client is gone; another may want it

    def forget(self, upstream: Upstream) -> None:
        """The connection has ended."""
        self.connections.discard(upstream)
        if upstream.client is None and upstream in self._idle:
            self._idle.remove(upstream)

    def close_stale(self, now_s: float) -> None:
        """Close what has been idle for too long; the longest idle ones are in front."""
        while self._idle and now_s - self._idle[0].idle_since_s >= IDLE_S:
            self._idle.pop(0).transport.close()

    def reopen(self) -> None:
        """Keep connections again: the endpoint is not to be left after all."""
        self._open = True

    def close(self) -> None:
        """Take no more requests: idle connections close now, the others when their answer ends."""
        self._open = False
        while self._idle:
            self._idle.pop().transport.close()
