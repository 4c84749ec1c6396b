# SPDX-License-Identifier: Apache-2.0
"""What our processes share to be spoken to by HTTP: a socket, a server, a body."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

import uvicorn

from scheduler_extender.errors import BadInput

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BACKLOG: Final = 1024
TEXT: Final = b"text/plain; charset=utf-8"


class Server(uvicorn.Server):
    """Leaves the process's signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound(host: str, port: int, *, option: str = "--listen") -> socket.socket:
    """A socket that is listened on from now; raises `BadInput` where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        raise BadInput(
            f"{option} {host}:{port}: cannot listen there ({error.strerror or error}); choose "
            "another, port 0 takes a free one"
        ) from error
    return taken


async def whole_body(receive: Receive, *, most_bytes: int) -> bytes | None:
    """None where it is longer; it is read to its end all the same, so that an answer is heard."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size <= most_bytes:
            parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts) if size <= most_bytes else None


async def reply(send: Send, *, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
