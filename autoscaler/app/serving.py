# SPDX-License-Identifier: Apache-2.0
"""Serves the controller's API from within its event loop, on a socket that is bound beforehand."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from autoscaler.errors import BadInput
from autoscaler.settings import Address


class ApiServer:
    """The status API on its own socket, within the controller's event loop."""

    def __init__(self, address: Address, app: FastAPI) -> None:
        self._socket = bound(address, "controller.api")
        self._server = _QuietServer(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        host, port = self._socket.getsockname()[:2]
        return Address(host, port)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="api")

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _QuietServer(uvicorn.Server):
    """A server that leaves the process's signals to the controller."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound(address: Address, key: str) -> socket.socket:
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = infos[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
    except (OSError, ValueError) as trouble:  # ValueError: what no host can be called
        why = (trouble.strerror if isinstance(trouble, OSError) else "") or trouble
        raise BadInput(
            f"{key}: cannot listen on {address} ({why}); "
            f"stop what listens there or name another address"
        ) from None
    return listening
