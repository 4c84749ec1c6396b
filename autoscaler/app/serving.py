# SPDX-License-Identifier: Apache-2.0
"""Serves the controller's API and KEDA's external scaler from within the controller's event loop.

A place that is taken is found out before anything has begun.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import grpc
import uvicorn
from fastapi import FastAPI

from autoscaler.api.keda.scaler import ExternalScaler, handlers
from autoscaler.errors import BadInput
from autoscaler.settings import Address

KEDA_LISTEN: Final = "keda.listen"
KEDA_GRACE_S: Final = 1.0  # a call is answered within milliseconds, and streams end by themselves
KEDA_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two controllers on one port would each get some of the calls
    ("grpc.max_receive_message_length", 64 * 1024),  # a trigger's metadata is a few lines
    ("grpc.keepalive_time_ms", 60_000),  # a stream whose client is gone without a word ends
)


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


class KedaServer:
    """The external scaler, where KEDA finds it; stopping it ends streams without an error."""

    def __init__(self, address: Address, scaler: ExternalScaler) -> None:
        bound(address, KEDA_LISTEN).close()
        self.address = address
        self._scaler = scaler
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        server = grpc.aio.server(options=KEDA_OPTIONS)
        server.add_generic_rpc_handlers((handlers(self._scaler),))
        try:
            port = server.add_insecure_port(str(self.address))
        except RuntimeError as trouble:
            raise BadInput(
                f"{KEDA_LISTEN}: cannot listen on {self.address} ({trouble}); "
                f"stop what listens there or name another address"
            ) from None
        self.address = Address(self.address.host, port)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        self._scaler.close()
        if self._server is not None:
            await self._server.stop(KEDA_GRACE_S)


class _QuietServer(uvicorn.Server):
    """A server that leaves the process's signals to the controller."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound(address: Address, key: str) -> socket.socket:
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = infos[0]
        with contextlib.ExitStack() as unless_bound:
            listening = unless_bound.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            unless_bound.pop_all()
    except (OSError, ValueError) as trouble:  # ValueError: what no host can be called
        why = (trouble.strerror if isinstance(trouble, OSError) else "") or trouble
        raise BadInput(
            f"{key}: cannot listen on {address} ({why}); "
            f"stop what listens there or name another address"
        ) from None
    return listening
