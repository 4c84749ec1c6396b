# SPDX-License-Identifier: Apache-2.0
"""Pods are told to stop while clients still come: what a worker owes them, seen from their side."""

import asyncio
import errno
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import pytest

from serving.listener import close_to_newcomers
from tests.serving.processes import WAIT_S, RunningWorker, events, ready_worker, tensor, until

PATH = "/v2/models/work/infer"
BODY = orjson.dumps({"inputs": [tensor("times", "INT64", [1])]})
REQUEST = f"POST {PATH} HTTP/1.1\r\nHost: w\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
PAUSE_S = 0.005  # of a client between two requests


@contextmanager
def _worker(models: Path, log: Path, *, linger_s: float) -> Iterator[RunningWorker]:
    flags = ("--model", f"work={models / 'work.onnx'}", "--linger-s", str(linger_s))
    with ready_worker(log, *flags) as worker:
        yield worker


def _sent(connection: socket.socket) -> None:
    connection.sendall(REQUEST)


def _answer(connection: socket.socket) -> tuple[int, str | None]:
    """The status of the next answer, and what it says of the connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status, response.getheader("connection")


def _connected(worker: RunningWorker) -> socket.socket:
    return socket.create_connection(("127.0.0.1", worker.port), timeout=WAIT_S)


def _listens(worker: RunningWorker) -> bool:
    """Told by who else may listen there: connecting would itself be a client that is waited for."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", worker.port))
        except OSError as e:
            return e.errno == errno.EADDRINUSE
    return False


@dataclass
class Storm:
    """Clients that prefer one worker and go to the other when refused. `lost`: what a user sees."""

    ports: tuple[int, int]
    answers: dict[int, int] = field(default_factory=dict)
    said_close: int = 0
    lost: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, *, keeps_alive: bool) -> None:
        """Send until it is over, on one connection for as long as that may be kept."""
        connection: http.client.HTTPConnection | None = None
        while not self.over.wait(PAUSE_S):
            try:
                connection = connection or self._connect()
                connection.request("POST", PATH, BODY)
                response = connection.getresponse()
                response.read()
            except OSError as e:
                self._lose(connection, repr(e))
                connection = None
                continue
            self._count(connection.port, response)
            if response.will_close or not keeps_alive:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        first, second = (http.client.HTTPConnection("127.0.0.1", p, WAIT_S) for p in self.ports)
        try:
            first.connect()
        except ConnectionRefusedError:
            second.connect()
            return second
        return first

    def _count(self, port: int, response: http.client.HTTPResponse) -> None:
        with self._lock:
            self.answers[port] = self.answers.get(port, 0) + 1
            self.said_close += response.will_close
            if response.status != 200:
                self.lost.append(f"status {response.status}")

    def _lose(self, connection: http.client.HTTPConnection | None, why: str) -> None:
        with self._lock:
            self.lost.append(why)
        if connection is not None:
            connection.close()


@pytest.mark.parametrize("linger_s", [0.0, 0.5])
def test_a_storm_of_clients_loses_nothing_when_one_of_two_workers_is_told_to_stop(
    models: Path, tmp_path: Path, linger_s: float
) -> None:
    with (
        _worker(models, tmp_path / "a", linger_s=linger_s) as a,
        _worker(models, tmp_path / "b", linger_s=linger_s) as b,
        ThreadPoolExecutor(10) as clients,
    ):
        storm = Storm((a.port, b.port))
        # Without a linger an idle client may be cut off while it sends: then only fresh ones.
        kinds = [False] * 5 + [linger_s > 0] * 5
        ends = [clients.submit(storm.client, keeps_alive=kind) for kind in kinds]
        try:
            until("the first worker has the traffic", lambda: storm.answers.get(a.port, 0) > 200)
            a.signal()
            assert a.status() == 0
            before = storm.answers.get(b.port, 0)
            until("the other has it now", lambda: storm.answers.get(b.port, 0) > before + 100)
        finally:
            storm.over.set()
        assert [end.result() for end in ends] == [None] * len(ends)
        assert storm.lost == []
        assert storm.said_close >= 5


def test_a_lingering_worker_says_everywhere_that_it_is_not_ready_and_serves_who_still_comes(
    models: Path, tmp_path: Path
) -> None:
    with _worker(models, tmp_path / "log", linger_s=2.0) as worker:
        with _connected(worker) as kept:
            _sent(kept)
            assert _answer(kept) == (200, None)
            worker.signal()
            until("the worker drains", lambda: "draining" in worker.log)
            for path in ("/v2/health/ready", "/v2/models/work/ready", "/v1/models/work"):
                response = httpx.get(f"http://{worker.address}{path}")
                assert (response.status_code, response.json()["ready"]) == (503, False)
            index = httpx.post(f"http://{worker.address}/v2/repository/index").json()
            assert index[0]["state"] == "UNLOADING"
            with _connected(worker) as fresh:
                _sent(fresh)
                assert _answer(fresh) == (200, "close")
                assert fresh.recv(1) == b""
            _sent(kept)
            assert _answer(kept) == (200, "close")
        assert not worker.ended
        assert worker.status() == 0
        assert events(worker.log)[-2:] == ["draining", "leaving"]


def test_idle_connections_are_closed_last_and_are_answered_until_then(
    models: Path, tmp_path: Path
) -> None:
    with _worker(models, tmp_path / "log", linger_s=0) as worker:
        with _connected(worker) as idle, _connected(worker) as quiet, _connected(worker) as busy:
            for connection in (idle, quiet):
                _sent(connection)
                assert _answer(connection) == (200, None)
            busy.sendall(REQUEST[:-1])
            worker.signal()
            until("nobody new is taken in", lambda: not _listens(worker))
            _sent(idle)
            assert _answer(idle) == (200, "close")
            quiet.setblocking(False)
            with pytest.raises(BlockingIOError):
                quiet.recv(1)
            quiet.settimeout(WAIT_S)
            busy.sendall(REQUEST[-1:])
            assert _answer(busy) == (200, "close")
            assert quiet.recv(1) == b""
        assert worker.status() == 0


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(0, id="nothing"),
        pytest.param(30, id="half its headers"),
        pytest.param(-1, id="all but a byte"),
    ],
)
def test_who_has_connected_and_said_little_is_waited_for(
    models: Path, tmp_path: Path, said: int
) -> None:
    with _worker(models, tmp_path / "log", linger_s=0) as worker:
        with _connected(worker) as slow:
            slow.sendall(REQUEST[:said])
            worker.signal()
            until("nobody new is taken in", lambda: not _listens(worker))
            slow.sendall(REQUEST[said:])
            assert _answer(slow) == (200, "close")
        assert worker.status() == 0


def test_a_client_that_connects_and_never_speaks_does_not_keep_the_worker(
    models: Path, tmp_path: Path
) -> None:
    with _worker(models, tmp_path / "log", linger_s=0) as worker, _connected(worker) as silent:
        worker.signal()
        assert worker.status() == 0
        assert silent.recv(1) == b""


async def test_closing_a_listener_accepts_who_waits_and_keeps_out_who_comes_then() -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        server = await asyncio.start_server(accept, sock=listening)
        waiting = [socket.create_connection(address) for _ in range(20)]
        closing = asyncio.ensure_future(close_to_newcomers(listening))
        await asyncio.sleep(0)
        with socket.socket() as late:
            late.setblocking(False)
            assert late.connect_ex(address) == errno.EINPROGRESS
            await closing
            server.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.get_running_loop().sock_connect(late, address)
    assert len(accepted) == 20
    for writer in accepted:
        writer.close()
        await writer.wait_closed()
    for client in waiting:
        assert client.recv(1) == b""  # closed in order: a reset would raise
        client.close()
