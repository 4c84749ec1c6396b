# SPDX-License-Identifier: Apache-2.0
"""One GET over plain HTTP, for probes and scrapes: a limit in time and one in size for all of it.

No proxy, redirection or compression. `get` keeps no connection: a replica may serve one at a time;
`Kept` does, for what is asked again and again. Neither raises; a failure is a value that says why.
(Under uvloop, `httpx` 0.28 raises an `AttributeError` when the peer resets a new connection.)
"""

import asyncio
import contextlib
from dataclasses import dataclass

import httptools

READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class At:
    """Where a replica answers; `path` begins with `/`."""

    host: str
    port: int
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    """`whole` is false when the body was longer than asked for, or the connection broke off."""

    status: int
    body: bytes
    whole: bool


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
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def open(self) -> bool:
        return self._streams is not None

    async def get(
        self, *, timeout_s: float, max_bytes: int, close: bool = False
    ) -> Answer | NoAnswer:
        """`close`: tell the other side that this is the last."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._streams is not None:
                    # The other side may have closed it meanwhile: that says nothing about it.
                    with contextlib.suppress(OSError):
                        answer = await self._ask(max_bytes, close=close)
                        if isinstance(answer, Answer):
                            return answer
                    self.close()
                self._streams = await asyncio.open_connection(self.at.host, self.at.port)
                return await self._ask(max_bytes, close=close)
        except TimeoutError:
            why = f"was not answered within {timeout_s:g}s"
        except ConnectionRefusedError:
            why = "failed: nothing listens there"
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            why = f"failed: what came is not HTTP ({error})"
        except (OSError, ValueError) as error:  # ValueError: a path or host that cannot be written
            why = f"failed: {error}"
        self.close()
        return NoAnswer(why)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, max_bytes: int, *, close: bool) -> Answer | NoAnswer:
        if self._streams is None:
            return NoAnswer("failed: there is no connection")
        reads, writes = self._streams
        writes.write(_request(self.at, close=close))
        answer, again = await _answer(reads, max_bytes)
        if close or not again:
            self.close()
        return answer


def _request(at: At, *, close: bool) -> bytes:
    lines = (
        f"GET {at.path} HTTP/1.1",
        f"Host: {at.host}:{at.port}",
        "Accept: */*",
        "Accept-Encoding: identity",
        *(("Connection: close",) if close else ()),
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class _Reader:
    """What httptools calls while it reads."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.headed = False
        self.framed = False  # whether the head says where the body ends
        self.ended = False
        self.closes = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.framed |= name in {b"content-length", b"transfer-encoding"}
        self.closes |= name == b"connection" and b"close" in value.lower()

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.ended = True


async def _answer(reads: asyncio.StreamReader, max_bytes: int) -> tuple[Answer | NoAnswer, bool]:
    """What came, and whether the connection can be used again."""
    reader = _Reader()
    parser = httptools.HttpResponseParser(reader)
    seen_bytes = 0
    while not reader.ended and seen_bytes <= max_bytes:
        part = await reads.read(READ_BYTES)
        if not part:
            break
        seen_bytes += len(part)
        parser.feed_data(part)
    if not reader.headed:
        return NoAnswer("failed: the connection ended before an answer"), False
    # A body without a length ends with the connection, which cannot be told from one that broke.
    whole = reader.ended or (seen_bytes <= max_bytes and not reader.framed)
    again = reader.ended and not reader.closes and parser.get_http_version() == "1.1"
    return Answer(parser.get_status_code(), bytes(reader.body), whole), again
