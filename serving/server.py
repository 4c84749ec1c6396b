# SPDX-License-Identifier: Apache-2.0
"""Only this file knows how uvicorn keeps its connections. Its way of ending is replaced.

uvicorn resets connections that it has not accepted yet and closes idle ones at once, whatever may
be on its way on them.
"""

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.listener import close_to_newcomers

_FIRST_WORD_S = 1.0  # how long one who has connected and said nothing yet may take to speak
_LOOK_S = 0.02  # how often an ending server looks whether it is done


class Connection(HttpToolsProtocol):
    """A client's connection that can tell whether closing it costs a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Also note when."""
        super().connection_made(transport)  # type: ignore[arg-type]  # a socket's, so a Transport
        self._made_s = self.loop.time()
        self._heard = self._in_head = False

    def on_message_begin(self) -> None:
        """The first bytes of a request."""
        self._heard = self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """From here on the cycle knows how far the request is."""
        self._in_head = False
        super().on_headers_complete()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, is half here, waits unread, or is to be expected."""
        if self.transport.is_closing():
            return False
        if not self._heard:
            return self._unread or self.loop.time() - self._made_s < _FIRST_WORD_S
        return self._in_head or not self.cycle.response_complete or self._unread

    @property
    def _unread(self) -> bool:
        """Whether the kernel holds bytes that the event loop has not come to read."""
        looking = select.poll()
        looking.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(looking.poll(0))


class Server(uvicorn.Server):
    """uvicorn that ends when told to `leave`, and without losing what reached it before."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._leave_by_s = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also say that the socket listens."""
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever calls `leave`."""
        yield

    @property
    def unanswered(self) -> int:
        """Requests of any kind that are being answered."""
        return len(self.server_state.tasks)

    def leave(self, *, within_s: float) -> None:
        """Take no more clients, answer those that are here, and end; after `within_s` anyhow."""
        self._leave_by_s = asyncio.get_running_loop().time() + within_s
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """First the listener closes, then requests finish, and idle connections close last.

        Until then a request on one of those is answered. One that was sent in the very moment of
        closing gets none: HTTP/1.1 has no way to tell an idle client beforehand.
        """
        for bound in sockets or ():
            await close_to_newcomers(bound)
        for server in self.servers:
            server.close()
        for bound in sockets or ():
            bound.close()
        now_s = asyncio.get_running_loop().time
        while (self.server_state.connections or self.unanswered) and now_s() < self._leave_by_s:
            self._close_if_all_are_idle()
            await asyncio.sleep(_LOOK_S)

    def _close_if_all_are_idle(self) -> None:
        connections = [c for c in self.server_state.connections if isinstance(c, Connection)]
        if any(connection.busy for connection in connections):
            return
        for connection in connections:
            if not connection.busy:  # looked at again, as close to closing as can be
                connection.transport.close()
