# SPDX-License-Identifier: Apache-2.0
"""Bytes in, bytes out, and the end: the ASGI application, and its life from load to drain.

A plain ASGI callable: a framework would cost each start 60 ms and each request its layers.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from serving.errors import ModelNotLoaded, WorkerError
from serving.log import capture_libraries, event
from serving.protocols.http import (
    CLIENT_LEFT,
    Answer,
    ClientLeft,
    Receive,
    Request,
    error_answer,
    read_body,
    to_json,
)
from serving.protocols.routes import Found, find
from serving.server import Connection, Server
from serving.settings import Settings
from serving.worker import Worker

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

KEEP_ALIVE_S = 75  # longer than the 60 s of common proxies: the side that sends must close first
_FAILED_LOAD_S = 1.0  # for requests to the models that did load


class App:
    """The ASGI application of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        answer = await self._answer(scope, receive)
        if answer is not None:
            await self._send(answer, send)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive) -> Answer | None:
        """None: the client left, there is nobody to answer."""
        path = scope["path"]
        try:
            found = find(scope["method"], path)
            if found.route.infers:
                return await self._infer(found, scope, receive)
            return await self._run(found, scope, receive)
        except WorkerError as e:
            return error_answer(e)
        except ClientLeft:
            return None
        except Exception as e:  # noqa: BLE001 - the one edge of the process: a defect is not the client's
            event("error", path=path, error=f"{type(e).__name__}: {e}")
            text = f"the worker failed on {path}: {type(e).__name__}; its log has more"
            return Answer(500, to_json({"error": text}))

    async def _run(self, found: Found, scope: MutableMapping[str, Any], receive: Receive) -> Answer:
        headers = dict(scope["headers"])
        limit_bytes = self._worker.settings.max_body_bytes
        body = await read_body(headers, receive, limit_bytes=limit_bytes)
        request = Request(scope["path"], headers, body, receive)
        return await found.route.handler(self._worker, request, *found.names)

    async def _infer(
        self, found: Found, scope: MutableMapping[str, Any], receive: Receive
    ) -> Answer:
        """Run a request that counts: as in flight, by its status and by its time."""
        worker, name = self._worker, found.names[0]
        protocol = found.route.path[:2]
        counts = worker.telemetry.models.get(name)
        started_s = time.perf_counter()
        code = 500
        if counts is not None:
            counts.arrive(started_s)
        try:
            answer = await self._run(found, scope, receive)
            code = answer.status
            return answer
        except WorkerError as e:
            answer = error_answer(e)
            code = answer.status
            return answer
        except ClientLeft:
            code = CLIENT_LEFT
            raise
        finally:
            ended_s = time.perf_counter()
            if counts is None:
                worker.telemetry.strays[protocol, code] += 1
            else:
                counts.leave(ended_s)
                counts.requests[protocol, code] += 1
                counts.request_s.observe(ended_s - started_s)
                if code == 200:
                    counts.answered_s += ended_s - started_s

    async def _send(self, answer: Answer, send: Send) -> None:
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(answer.body)).encode()),
            *answer.headers,
        ]
        if self._worker.draining and (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


class _Life:
    """From listening to leaving. `status` is what the process ends with.

    On SIGTERM: 1. not ready any more, and every answer says `Connection: close`; 2. whoever comes
    is served for the linger, since routes still lead here; 3. `Server.shutdown`.
    """

    def __init__(self, worker: Worker, server: Server) -> None:
        self.status = 0
        self.orderly = (
            True  # False: a thread may still be at work, the process must not wait for it
        )
        self._worker = worker
        self._server = server
        self._leaving: asyncio.Task[None] | None = None

    async def run(self, bound: socket.socket) -> None:
        """Listen, load, serve until a signal, linger, drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if self._worker.settings.listen_late and not await self._load():
            self._worker.close()
            return
        loading = asyncio.ensure_future(self._listening(bound))
        await self._server.serve(sockets=[bound])
        if self._server.unanswered:
            self.status, self.orderly = 1, False
        if self._leaving is not None:
            event("leaving", cut_off=self._server.unanswered)
        if not loading.done():
            loading.cancel()
            self.orderly = False
        self._worker.close()

    async def _listening(self, bound: socket.socket) -> None:
        """Say that the port is open, and load what is not loaded yet."""
        await self._server.listening.wait()
        host, port = bound.getsockname()[:2]
        event("listening", host=host, port=port, pid=os.getpid())
        if not self._worker.settings.listen_late and not await self._load():
            self._server.leave(within_s=_FAILED_LOAD_S)

    async def _load(self) -> bool:
        """Load all models; false if one cannot be, and the process is to end."""
        try:
            await self._worker.load_all()
        except ModelNotLoaded as e:
            sys.stderr.write(f"tidegate worker: {e}\n")
            self.status = 1
            return False
        event("ready", models=self._worker.names, since_process_start_s=_age_s())
        return True

    def _on_signal(self, number: int) -> None:
        if self._leaving is not None:
            os._exit(128 + number)
        linger_s = self._linger_s(number)
        self._worker.draining = True
        name = signal.Signals(number).name
        event("draining", signal=name, in_flight=self._worker.in_flight, linger_s=linger_s)
        self._leaving = asyncio.ensure_future(self._leave(linger_s))

    def _linger_s(self, number: int) -> float:
        """How long newcomers are still welcome.

        All of it, also when none comes: routes lag by the clock, and where a request comes every
        two seconds, one second of silence does not say that they have changed. None where no route
        leads here yet, and none on Ctrl-C: a terminal has no routes.
        """
        settings = self._worker.settings
        if number != signal.SIGTERM or not self._worker.ready:
            return 0.0
        return min(settings.linger_s, settings.drain_grace_s)

    async def _leave(self, linger_s: float) -> None:
        await asyncio.sleep(linger_s)
        self._server.leave(within_s=self._worker.settings.drain_grace_s - linger_s)


def run(settings: Settings, bound: socket.socket) -> int:
    """Serve until a signal; the exit status.

    `bound`: a socket that is bound and does not listen yet.
    """
    capture_libraries()
    worker = Worker(settings)
    config = uvicorn.Config(
        App(worker),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    life = _Life(worker, Server(config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life.run(bound))
        if not life.orderly:
            os._exit(life.status)
    return life.status


def _age_s() -> float | None:
    """Seconds since the process began; None where there is no /proc."""
    stat, uptime = Path("/proc/self/stat"), Path("/proc/uptime")
    if not stat.exists():
        return None
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    up_s = float(uptime.read_text().split()[0])
    return round(up_s - ticks / os.sysconf("SC_CLK_TCK"), 2)
