# SPDX-License-Identifier: Apache-2.0
"""One port on which clients are taken in; why it is not open is a value, never an exception."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from autoscaler.activator.proxy import Client

BACKLOG: Final = 65535  # the kernel cuts it to net.core.somaxconn


class Listener:
    """A port to listen on, once `listen` was called. `problem`: why it does not."""

    def __init__(
        self, host: str, port: int, *, make_client: Callable[[], Client], shares_port: bool
    ) -> None:
        self.host = host
        self.problem = ""
        self._wanted = port
        self._make_client = make_client
        self._shares_port = shares_port
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port it listens on; 0 if it does not."""
        return self._port if self._server is not None else 0

    async def listen(self) -> None:
        """Listen, if that is not so already; `problem` says why not."""
        if self._server is not None:
            return
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shares_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((self.host, self._wanted))
            sock.setblocking(False)
            server = await asyncio.get_running_loop().create_server(
                self._make_client, sock=sock, backlog=BACKLOG
            )
        except OSError as error:
            sock.close()
            self.problem = f"{self.host}:{self._wanted}: {error.strerror or error}"
            return
        self.problem = ""
        self._server = server
        self._port = int(sock.getsockname()[1])

    def close(self) -> None:
        """Take nobody in any more; who is in stays."""
        if self._server is not None:
            self._server.close()
            self._server = None
