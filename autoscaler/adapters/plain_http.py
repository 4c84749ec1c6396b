# SPDX-License-Identifier: Apache-2.0
"""One GET over plain HTTP, for probes and scrapes: a limit in time and one in size for all of it.

No proxy, redirection or TLS. Nothing but plain text is asked for; what comes in gzip all the same
is read within the same limit in size. `get` keeps no connection: a replica may serve one at a time;
`Kept` does, for what is asked again and again. Neither raises; a failure is a value that says why.
(Under uvloop, `httpx` 0.28 raises an `AttributeError` when the peer resets a new connection.)
"""

import asyncio
import threading
import zlib
from dataclasses import dataclass, field
from typing import Final, cast

import httptools

READ_BYTES: Final = 256 * 1024

_GZIP: Final = 16 + zlib.MAX_WBITS
# A TLS server that is spoken to in plain text says so in a record of this type.
_TLS_ALERT: Final = b"\x15\x03"
_SPEAKS_TLS: Final = "it speaks TLS, and metrics are read over plain HTTP only"
_ENDED: Final = "the connection ended before an answer"
_SILENT: Final = f"{_ENDED}; so does a port that speaks TLS, and only plain HTTP is spoken here"


@dataclass(frozen=True, slots=True)
class At:
    """Where a replica answers; `path` begins with `/`.

    `processes`: how many listen there, of which one answers.
    """

    host: str
    port: int
    path: str
    processes: int = 1

    def __str__(self) -> str:
        return f"http://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came. `whole` is false when a part of the body is missing; `cut` then says why.

    `kind`: its content type; `location`: where a redirection leads.
    """

    status: int
    body: bytes
    whole: bool
    cut: str = ""
    kind: str = ""
    location: str = ""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    why: str


async def get(at: At, *, timeout_s: float, max_bytes: int) -> Answer | NoAnswer:
    kept = Kept(at)
    try:
        return await kept.get(timeout_s=timeout_s, max_bytes=max_bytes, close=True)
    finally:
        kept.close()


class Kept:
    """A connection that stays open between GETs, for as long as the other side likes that too."""

    def __init__(self, at: At) -> None:
        self.at = at
        self._link: _Link | None = None

    @property
    def open(self) -> bool:
        return self._link is not None

    async def get(
        self, *, timeout_s: float, max_bytes: int, close: bool = False
    ) -> Answer | NoAnswer:
        """`close`: tell the other side that this is the last."""
        answer: Answer | NoAnswer
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._get(_request(self.at, close=close), max_bytes)
        except TimeoutError:
            answer = NoAnswer(f"was not answered within {timeout_s:g}s")
        except ConnectionRefusedError:
            answer = NoAnswer("failed: nothing listens there")
        except (OSError, ValueError) as error:  # ValueError: a path or host that cannot be written
            answer = NoAnswer(f"failed: {error}")
        if close or isinstance(answer, NoAnswer) or not (self._link and self._link.idle):
            self.close()
        return answer

    def close(self) -> None:
        if self._link is not None:
            self._link.transport.abort()
            self._link = None

    async def _get(self, request: bytes, max_bytes: int) -> Answer | NoAnswer:
        if self._link is not None:
            answer = await self._link.ask(request, max_bytes)
            if isinstance(answer, Answer):
                return answer
            # The other side may have closed it meanwhile: that says nothing about it.
            self.close()
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_connection(_Link, self.at.host, self.at.port)
        return await self._link.ask(request, max_bytes)


def _request(at: At, *, close: bool) -> bytes:
    if any(letter <= " " for letter in at.path):
        raise ValueError(f"a path with a blank in it: {at.path!r}")
    lines = (
        f"GET {at.path} HTTP/1.1",
        f"Host: {at.authority}",
        "Accept: text/plain;version=0.0.4, */*;q=0.5",
        "Accept-Encoding: identity",
        *(("Connection: close",) if close else ()),
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


@dataclass(slots=True)
class _Message:
    """One answer as httptools reads it."""

    head: dict[bytes, bytes] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    seen_bytes: int = 0
    headed: bool = False
    ended: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.ended = True

    @property
    def framed(self) -> bool:
        """Whether the head says where the body ends."""
        return b"content-length" in self.head or b"transfer-encoding" in self.head

    def word(self, name: bytes) -> str:
        return self.head.get(name, b"").decode("latin-1")


class _Room(threading.local):
    """Where bytes arrive: what was read is parsed before anything else can be read."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_room = _Room()


class _Link(asyncio.BufferedProtocol):
    """One connection, over which one GET goes at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.idle = True  # it may be asked again
        self._max_bytes = 0
        self._answered: asyncio.Future[Answer | NoAnswer] | None = None

    async def ask(self, request: bytes, max_bytes: int) -> Answer | NoAnswer:
        if self.transport.is_closing():
            return NoAnswer(f"failed: {_ENDED}")
        self.idle = False
        self._max_bytes = max_bytes
        self._message = _Message()
        self._parser = httptools.HttpResponseParser(self._message)
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def get_buffer(self, sizehint: int) -> memoryview:
        return _room.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._answered is None or self._answered.done():
            self.idle = False  # nothing was asked
            self.transport.abort()
            return
        message = self._message
        first = not message.seen_bytes
        message.seen_bytes += nbytes
        arrived = _room.view[:nbytes]
        try:
            self._parser.feed_data(arrived)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            tls = first and bytes(arrived[:2]) == _TLS_ALERT
            why = _SPEAKS_TLS if tls else f"what came is not HTTP ({error})"
            self._end(NoAnswer(f"failed: {why}"))
            return
        if message.seen_bytes > self._max_bytes:
            self._end(self._answer(f"more than {self._max_bytes} bytes came"))
        elif message.ended:
            keeps = b"close" not in message.head.get(b"connection", b"").lower()
            self.idle = keeps and self._parser.get_http_version() == "1.1"
            self._end(self._answer(""))

    def eof_received(self) -> None:
        self._ended("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended("" if exc is None else f"{exc}")

    def _ended(self, why: str) -> None:
        self.idle = False
        if self._answered is None or self._answered.done():
            return
        if not self._message.headed:
            why = why or (_ENDED if self._message.seen_bytes else _SILENT)
            self._end(NoAnswer(f"failed: {why}"))
            return
        # A body without a length ends with the connection, which cannot be told from one that
        # broke.
        self._end(self._answer("the connection broke off" if self._message.framed else ""))

    def _answer(self, cut: str) -> Answer | NoAnswer:
        message = self._message
        if not message.headed:
            return NoAnswer(f"failed: {cut} before the head of an answer ended")
        body = b"".join(message.parts)
        encoding = message.word(b"content-encoding").strip().lower()
        if encoding in ("gzip", "x-gzip"):
            body, trouble = _inflated(body, self._max_bytes)
            cut = cut or trouble
        elif encoding not in ("", "identity"):
            cut = cut or f"it is encoded as {encoding[:20]}, which was not asked for"
        return Answer(
            self._parser.get_status_code(),
            body,
            whole=not cut,
            cut=cut,
            kind=message.word(b"content-type"),
            location=message.word(b"location"),
        )

    def _end(self, answer: Answer | NoAnswer) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)


def _inflated(body: bytes, max_bytes: int) -> tuple[bytes, str]:
    """A body in gzip, no longer than asked for, and why a part of it is missing."""
    reads = zlib.decompressobj(_GZIP)
    try:
        inflated = reads.decompress(body, max_bytes + 1)
    except zlib.error as error:
        return b"", f"it is not the gzip that it says it is ({error})"
    if len(inflated) > max_bytes:
        return b"", f"more than {max_bytes} bytes came out of its gzip"
    return inflated, "" if reads.eof else "its gzip broke off"
