# SPDX-License-Identifier: Apache-2.0
"""The image `lab/echo`: an HTTP/1.1 server that says who answered.

It starts in a moment and leaves well: after SIGTERM it is not ready, still answers everything with
`Connection: close`, and goes once nothing came for a while; with --leave-at-once it closes its port
and answers what it has, as most servers do. `/ready` is its readiness; any other
path answers 200 and a JSON object, but `/metrics`, which tells in our worker's words how busy it
is, or in those of KServe's Python server what began and what ended. With --predictor_host (as
KServe passes it to a transformer) POSTs are forwarded there. Unknown arguments are ignored, as
KServe may add some.
"""

import argparse
import asyncio
import http.client
import json
import os
import signal
import socket
import time
from typing import cast

import httptools

METRICS = {
    "tidegate": """\
# TYPE tidegate_worker_requests_in_flight gauge
tidegate_worker_requests_in_flight {state.busy}
# TYPE tidegate_worker_queue_depth gauge
tidegate_worker_queue_depth 0
# TYPE tidegate_worker_requests_arrived counter
tidegate_worker_requests_arrived_total {state.arrived}
# TYPE tidegate_worker_request_seconds counter
tidegate_worker_request_seconds_total {state.request_s}
""",
    "kserve": """\
# TYPE process_cpu_seconds counter
process_cpu_seconds_total {state.cpu_s}
# TYPE request_preprocess_seconds histogram
request_preprocess_seconds_count{{model_name="echo"}} {state.arrived}
# TYPE request_predict_seconds histogram
request_predict_seconds_count{{model_name="echo"}} {state.ended}
""",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default=os.environ.get("POD_IP", "127.0.0.1"))
    parser.add_argument("--port", "--http_port", type=int, default=8080)
    parser.add_argument("--second-port", type=int, help="answers there as well")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds every answer takes")
    parser.add_argument("--ready-after", type=float, default=0.0, help="seconds until it is ready")
    parser.add_argument("--drain-quiet", type=float, default=1.5, help="seconds after the last one")
    parser.add_argument("--leave-at-once", action="store_true", help="close the port on SIGTERM")
    parser.add_argument("--predictor_host", default="", help="HOST[:PORT] that POSTs go to")
    parser.add_argument("--metrics", choices=METRICS, default="tidegate", help="in whose words")
    parser.add_argument("--exit-after", type=float, help="end with --exit-code after seconds")
    parser.add_argument("--exit-code", type=int, default=1)
    return parser.parse_known_args()[0]


class State:
    """What all connections share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.ready_at_s = asyncio.get_running_loop().time() + args.ready_after
        self.leaving = False
        self.answered = 0
        self.arrived = 0
        self.busy = 0
        self.request_s = 0.0
        self.in_flight = 0
        self.heard_at_s = asyncio.get_running_loop().time()

    async def quiet(self, for_s: float) -> None:
        """Wait until nothing is in flight and nothing came for so long."""
        now_s = asyncio.get_running_loop().time
        while True:
            left_s = for_s if self.in_flight else self.heard_at_s + for_s - now_s()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)

    @property
    def ended(self) -> int:
        return self.arrived - self.busy

    @property
    def cpu_s(self) -> float:
        return time.process_time()

    @property
    def ready(self) -> bool:
        return not self.leaving and asyncio.get_running_loop().time() >= self.ready_at_s


class Connection(asyncio.Protocol):
    """Requests of one connection, answered in order."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", bytearray()
        self._turn: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        keep = self._parser.should_keep_alive()
        answer = self._answer(method, self._url.decode(), bytes(self._body), keep, self._turn)
        self._turn = asyncio.create_task(answer)

    async def _answer(
        self, method: str, path: str, body: bytes, keep: bool, before: "asyncio.Task[None] | None"
    ) -> None:
        state = self._state
        state.in_flight += 1
        try:
            if before is not None:
                await before
            kind = "application/json"
            if path == "/metrics":
                status, content, kind = 200, self._metrics(), "text/plain"
            else:
                status, said = await self._said(method, path, body)
                content = json.dumps(said).encode()
            keep = keep and not state.leaving
            self._transport.write(
                f"HTTP/1.1 {status} {http.client.responses.get(status, '')}\r\n"
                f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
                f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
                + content
            )
            if not keep:
                self._transport.close()
        finally:
            state.in_flight -= 1

    def _metrics(self) -> bytes:
        return METRICS[self._state.args.metrics].format(state=self._state).encode()

    async def _said(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        state = self._state
        if path == "/ready":
            return await self._readiness()
        if path.startswith("/.well-known/"):  # a model server counts only what a model is asked
            return 404, {"path": path}
        began_s = state.heard_at_s = asyncio.get_running_loop().time()
        state.arrived += 1
        state.busy += 1
        try:
            return await self._say(method, path, body)
        finally:
            state.busy -= 1
            state.request_s += asyncio.get_running_loop().time() - began_s

    async def _readiness(self) -> tuple[int, object]:
        ready = self._state.ready
        return (200 if ready else 503), {"ready": ready}

    async def _say(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        args, state = self._state.args, self._state
        if args.delay:
            await asyncio.sleep(args.delay)
        if args.predictor_host and method == "POST":
            status, said = await asyncio.to_thread(forward, args.predictor_host, path, body)
            return status, {"transformed_by": socket.gethostname(), "predictor": said}
        state.answered += 1
        return 200, {"pod": socket.gethostname(), "path": path, "answered": state.answered}


def forward(host: str, path: str, body: bytes) -> tuple[int, object]:
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return answer.status, json.loads(said) if is_json else said.decode(errors="replace")
    except OSError as error:
        return 502, f"{host}: {error}"
    finally:
        connection.close()


async def serve(args: argparse.Namespace) -> int:
    state = State(args)
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, leave.set)
    ports = [args.port] if args.second_port is None else [args.port, args.second_port]
    servers = [await loop.create_server(lambda: Connection(state), args.host, p) for p in ports]
    try:
        await asyncio.wait_for(leave.wait(), args.exit_after)
    except TimeoutError:
        return int(args.exit_code)
    state.leaving = True
    state.heard_at_s = asyncio.get_running_loop().time()
    if not args.leave_at_once:
        await state.quiet(args.drain_quiet)
    for server in servers:
        server.close()
    await state.quiet(0.0)
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(serve(arguments())))
