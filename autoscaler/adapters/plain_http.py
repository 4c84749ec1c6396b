# SPDX-License-Identifier: Apache-2.0
"""One GET over plain HTTP, for probes and scrapes: a limit in time and one in size for all of it.

No proxy, redirection, compression or kept connection: a replica may serve one connection at a time.
Does not raise; a failure is a value that says why. (Under uvloop, `httpx` 0.28 raises an
`AttributeError` when the peer resets a connection that was just made.)
"""

import asyncio
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
    try:
        async with asyncio.timeout(timeout_s):
            reads, writes = await asyncio.open_connection(at.host, at.port)
            try:
                writes.write(_request(at))
                return await _answer(reads, max_bytes)
            finally:
                writes.close()
    except TimeoutError:
        return NoAnswer(f"was not answered within {timeout_s:g}s")
    except ConnectionRefusedError:
        return NoAnswer("failed: nothing listens there")
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        return NoAnswer(f"failed: what came is not HTTP ({error})")
    except (OSError, ValueError) as error:  # ValueError: a path or host that cannot be written
        return NoAnswer(f"failed: {error}")


def _request(at: At) -> bytes:
    lines = (
        f"GET {at.path} HTTP/1.1",
        f"Host: {at.host}:{at.port}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


class _Reader:
    """What httptools calls while it reads."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.headed = False
        self.framed = False  # whether the head says where the body ends
        self.ended = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.framed |= name.lower() in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.ended = True


async def _answer(reads: asyncio.StreamReader, max_bytes: int) -> Answer | NoAnswer:
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
        return NoAnswer("failed: the connection ended before an answer")
    # A body without a length ends with the connection, which cannot be told from one that broke.
    whole = reader.ended or (seen_bytes <= max_bytes and not reader.framed)
    return Answer(parser.get_status_code(), bytes(reader.body), whole)
