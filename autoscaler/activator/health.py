# SPDX-License-Identifier: Apache-2.0
"""What the platform asks the process itself: is it alive, may clients be sent here, what it counts.

A port of its own, so that no service's traffic can be taken for it. As small as can be: whoever
asks gets one answer, and the connection ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from autoscaler.activator.app import Activator
from autoscaler.activator.metrics import ActivatorCollector
from autoscaler.errors import BadInput

HEAD_TIMEOUT_S: Final = 5.0
MAX_HEAD_BYTES: Final = 16 * 1024


@asynccontextmanager
async def health_of(activator: Activator, host: str, port: int) -> AsyncIterator[HealthServer]:
    """Answer for an activator, for as long as the context lasts."""
    metrics = CollectorRegistry()
    metrics.register(ActivatorCollector(activator))
    server = HealthServer(unready_because=activator.unready_because, metrics=metrics)
    await server.start(host, port)
    try:
        yield server
    finally:
        server.stop()


class HealthServer:
    """Answers `/healthz`, `/readyz` and `/metrics`. `unready_because`: empty if it is ready."""

    def __init__(self, *, unready_because: Callable[[], str], metrics: CollectorRegistry) -> None:
        self._unready_because = unready_because
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises `BadInput` where that cannot be."""
        try:
            self._server = await asyncio.start_server(
                self._answer, host, port, limit=MAX_HEAD_BYTES
            )
        except OSError as error:
            raise BadInput(
                f"--health-port: cannot listen on {host}:{port} ({error.strerror or error}); "
                "stop what listens there or name another port"
            ) from None
        self.port = int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # whoever asked has gone, or asked nothing: there is nobody to tell
        finally:
            writer.close()

    def _response(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        status, kind, body = self._say(path)
        if method not in (b"GET", b"HEAD"):
            status, kind, body = HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET is spoken here"
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return lines.encode("ascii") + (b"" if method == b"HEAD" else body)

    def _say(self, path: bytes) -> tuple[HTTPStatus, str, bytes]:
        if path == b"/healthz":
            return HTTPStatus.OK, "text/plain", b"ok\n"
        if path == b"/readyz":
            why = self._unready_because()
            if why:
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"not ready: {why}\n".encode()
            return HTTPStatus.OK, "text/plain", b"ok\n"
        if path == b"/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._metrics)
        return HTTPStatus.NOT_FOUND, "text/plain", b"/healthz, /readyz and /metrics are here\n"
