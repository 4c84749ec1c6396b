# SPDX-License-Identifier: Apache-2.0
"""Only this file reads bodies and says which HTTP status an error becomes."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, TypeVar

import orjson

from serving.errors import (
    BadRequest,
    BodyTooLarge,
    InferenceFailed,
    NotFound,
    RetryLater,
    WorkerError,
    WrongVerb,
)

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

JSON = "application/json"
CLIENT_LEFT = 499  # counted, never sent
_DISCARD_S = (
    2.0  # how long a body over the limit is read on, so that its sender gets to read the 413
)
_STATUS: tuple[tuple[type[WorkerError], int], ...] = (
    (BadRequest, 400),
    (NotFound, 404),
    (WrongVerb, 405),
    (BodyTooLarge, 413),
    (InferenceFailed, 500),
    (RetryLater, 503),
)


class ClientLeft(Exception):
    """The client closed its connection before its answer was there. Not an error of anybody's."""


@dataclass(slots=True)
class Request:
    """One HTTP request with its body read and unpacked. Header names are lower case."""

    path: str
    headers: Mapping[bytes, bytes]
    body: bytes
    receive: Receive

    async def wait_for(self, answer: asyncio.Future[T]) -> T:
        """The result of `answer`, which is cancelled when the client leaves. Raises ClientLeft."""
        if answer.done():
            return answer.result()
        # With the body read, the next message can only be the client's leaving.
        leaving = asyncio.ensure_future(self.receive())
        leaving.add_done_callback(lambda _: answer.cancel())
        try:
            return await answer
        except asyncio.CancelledError:
            if leaving.done() and not leaving.cancelled():
                raise ClientLeft from None
            raise
        finally:
            leaving.cancel()


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())


def json_answer(value: object, *, status: int = 200) -> Answer:
    """`value` as JSON; numpy arrays are lists, NaN and infinities are null."""
    return Answer(status, to_json(value))


def to_json(value: object) -> bytes:
    """See `json_answer`."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def error_answer(error: WorkerError) -> Answer:
    """`{"error": ...}` under the status of the error's kind."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, RetryLater):
        headers = ((b"retry-after", str(ceil(error.after_s)).encode()),)
    elif isinstance(error, WrongVerb):
        headers = ((b"allow", ", ".join(error.allowed).encode()),)
    elif isinstance(error, BodyTooLarge):
        headers = ((b"connection", b"close"),)
    return Answer(status, to_json({"error": str(error)}), headers=headers)


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole body, unpacked. Raises BodyTooLarge, BadRequest, ClientLeft."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit_bytes:
        if b"expect" not in headers:
            await _discard(receive)
        raise _too_large(limit_bytes)
    packed = await _read(receive, limit_bytes=limit_bytes)
    encoding = headers.get(b"content-encoding", b"identity").strip().lower().decode("latin-1")
    if encoding in ("", "identity"):
        return packed
    return unpack(packed, encoding, limit_bytes=limit_bytes)


async def _read(receive: Receive, *, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > limit_bytes:
            parts.clear()
            if more:
                await _discard(receive)
            raise _too_large(limit_bytes)
        if not more:
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _discard(receive: Receive) -> None:
    """Read on without keeping: closing on a client that sends would reset the 413 away."""
    try:
        async with asyncio.timeout(_DISCARD_S):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
    except TimeoutError:
        return  # a slow or endless sender has had its chance


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit_bytes} bytes; send less, or raise the worker's --max-body"
    )


def unpack(packed: bytes, encoding: str, *, limit_bytes: int) -> bytes:
    """Undo `gzip` or `deflate`, never holding more than the limit.

    Raises BadRequest, BodyTooLarge.
    """
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"Content-Encoding {encoding!r} is not understood; gzip and deflate are")
    # 32 + 15: a gzip or zlib head. "deflate" without the zlib head that HTTP asks for is also
    # about.
    bare = encoding == "deflate" and packed[:1] and (packed[0] & 0x0F) != 8
    decoder = zlib.decompressobj(-15 if bare else 32 + 15)
    try:
        plain = decoder.decompress(packed, limit_bytes + 1)
    except zlib.error as e:
        raise BadRequest(f"the body is not {encoding} as its Content-Encoding says: {e}") from e
    if len(plain) > limit_bytes:
        raise _too_large(limit_bytes)
    if not decoder.eof:
        raise BadRequest(f"the {encoding} body ends in the middle")
    return plain
