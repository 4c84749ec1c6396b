# SPDX-License-Identifier: Apache-2.0
"""Stands between a source and a real Prometheus, hands queries on, and spoils the answers."""

import http.client
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """`more`: what follows the body; `length`: what the header says, None: the body's."""

    status: int
    body: bytes
    more: Iterable[bytes] = ()
    length: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    path: str
    headers: Mapping[str, str]
    form: Mapping[str, str]


Spoil = Callable[[Answer], Answer]


def untouched(answer: Answer) -> Answer:
    return answer


class Between:
    """`spoil` is what becomes of every answer; `asked` all that was asked.

    `port`: Prometheus' own; None: there is none behind it.
    """

    def __init__(self, port: int | None, *, tls: ssl.SSLContext | None = None) -> None:
        self.spoil: Spoil = untouched
        self.asked: list[Asked] = []
        self._goes_to = port
        between = self

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                form = {name: texts[0] for name, texts in parse_qs(body.decode()).items()}
                between.asked.append(Asked(self.path, dict(self.headers), form))
                answer = between.spoil(between._answer(self.path, body))
                self.send_response(answer.status)
                length = len(answer.body) if answer.length is None else answer.length
                self.send_header("Content-Length", str(length))
                for name, text in answer.headers.items():
                    self.send_header(name, text)
                self.end_headers()
                try:
                    self.wfile.write(answer.body)
                    for piece in answer.more:
                        self.wfile.write(piece)
                except OSError:
                    self.close_connection = True  # the source has heard enough

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="between")
        self._thread.start()

    def _answer(self, path: str, body: bytes) -> Answer:
        """Prometheus' own, of whatever comes behind a prefix."""
        if self._goes_to is None:
            return Answer(HTTPStatus.NOT_FOUND, b"")
        there = http.client.HTTPConnection("127.0.0.1", self._goes_to, timeout=30)
        try:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            there.request("POST", path[path.index("/api/") :], body, form)
            answer = there.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            there.close()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def saying(status: int, body: str, **headers: str) -> Spoil:
    """Something else altogether."""
    return lambda _: Answer(status, body.encode(), headers=headers)


def with_more(**more: Any) -> Spoil:
    """Prometheus' answer with more keys, as Thanos and others add them."""
    return lambda answer: Answer(answer.status, orjson.dumps({**orjson.loads(answer.body), **more}))


def cut_off(answer: Answer) -> Answer:
    """The connection is expected to bring more than it ever does."""
    return Answer(answer.status, answer.body[:-20], length=len(answer.body) - 20)


def by_clock(off_s: float) -> Spoil:
    """As if its clock, and so that of all its samples, were off."""

    def moved(row: dict[str, Any]) -> dict[str, Any]:
        at_s, value = row["value"]
        if str(row["metric"].get("tidegate_part", "")).endswith("@"):
            value = str(float(value) + off_s)
        return {**row, "value": [at_s + off_s, value]}

    def spoil(answer: Answer) -> Answer:
        document = orjson.loads(answer.body)
        rows = [moved(row) for row in document["data"]["result"]]
        return Answer(200, orjson.dumps({**document, "data": {**document["data"], "result": rows}}))

    return spoil


def after(hung: threading.Event) -> Spoil:
    """Not before somebody sets the event, or half a minute has passed."""

    def spoil(answer: Answer) -> Answer:
        hung.wait(30)
        return answer

    return spoil
