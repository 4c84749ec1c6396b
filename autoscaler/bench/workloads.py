# SPDX-License-Identifier: Apache-2.0
"""What is sent and what is answered, byte by byte. Only values: no clock, no socket.

Four workloads, each a POST answered with 200:

- `small_json`: 200 bytes of JSON there, 150 bytes of JSON back; what a request costs.
- `small_json_varied`: the same with another request id in every head, there and back; what a
  request costs a proxy that profits from heads that repeat, when they do not.
- `mib_body`: 1 MiB there and 1 MiB back in the same request; what a byte costs.
- `sse`: a small JSON there, 200 events of 100 bytes back, chunked, each written by itself; what a
  token costs. For latency the events are paced and each carries the time it was written at.
"""

import re
from dataclasses import dataclass, replace

MIB = 1024 * 1024
EVENTS_PER_STREAM = 200
EVENT_BYTES = 100
EVENT_PAUSE_S = 0.001
HEADS = 4096
STAMP_DIGITS = 20
STAMP = re.compile(rb'"written_ns":"(\d{%d})"' % STAMP_DIGITS)
END_OF_CHUNKS = b"0\r\n\r\n"
PACED_QUERY = b"?paced"


def event(number: int, *, written_ns: int) -> bytes:
    """One server-sent event, `EVENT_BYTES` long; `written_ns` on the system's monotonic clock."""
    start = b'data: {"event":"%03d","written_ns":"%0*d","text":"' % (
        number,
        STAMP_DIGITS,
        written_ns,
    )
    end = b'"}\n\n'
    return start + b"t" * (EVENT_BYTES - len(start) - len(end)) + end


def chunk(body: bytes) -> bytes:
    """`body` as one chunk of a chunked message."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def without_chunks(body: bytes) -> bytes | None:
    """The content of a chunked body, or None where it is not one, whole and ended."""
    parts: list[bytes] = []
    at = 0
    while True:
        line_end = body.find(b"\r\n", at)
        if line_end < 0 or not re.fullmatch(rb"[0-9a-fA-F]+", body[at:line_end]):
            return None
        size = int(body[at:line_end], 16)
        start, end = line_end + 2, line_end + 2 + size
        if body[end : end + 2] != b"\r\n":
            return None
        if size == 0:
            return b"".join(parts) if end + 2 == len(body) else None
        parts.append(body[start:end])
        at = end + 2


def unstamped(events: bytes) -> bytes:
    """The same events with zeros for the times, so that they can be compared."""
    return STAMP.sub(b'"written_ns":"%0*d"' % (STAMP_DIGITS, 0), events)


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request. `path` and `latency_path` differ where latency needs another answer.

    `varied`: no two heads that follow each other are the same.
    `latency_connections`: how many connections the latency phase uses, one request at a time each.
    `events`: how many events an answer has; 0 means one body of a length that is told beforehand.
    """

    name: str
    what: str
    path: bytes
    latency_path: bytes
    request_body: bytes
    answer_body: bytes
    varied: bool = False
    latency_connections: int = 1
    events: int = 0

    @property
    def bytes_per_request(self) -> int:
        """Body bytes that pass the proxy for one request, both ways together."""
        return len(self.request_body) + len(self.answer_body)

    def requests(self, port: int, *, for_latency: bool) -> list[bytes]:
        """The whole requests as they are sent to `port` of this machine, one after the other."""
        return [
            self._request(port, self.latency_path if for_latency else self.path, extra=extra)
            for extra in self._extras
        ]

    @property
    def answers(self) -> list[bytes]:
        """The whole answers as the backend writes them; for events, what comes before the first."""
        body = b"" if self.events else self.answer_body
        return [self._answer_head(extra) + body for extra in self._extras]

    @property
    def _extras(self) -> list[bytes]:
        """What is added to each head, one after the other and then again from the first."""
        if not self.varied:
            return [b""]
        return [b"X-Request-Id: %032x\r\n" % number for number in range(HEADS)]

    def _request(self, port: int, path: bytes, *, extra: bytes) -> bytes:
        return (
            b"POST %b HTTP/1.1\r\n"
            b"Host: 127.0.0.1:%d\r\n"
            b"User-Agent: tidegate-bench\r\n"
            b"Accept: */*\r\n"
            b"Content-Type: application/json\r\n"
            b"%bContent-Length: %d\r\n\r\n%b"
        ) % (
            path,
            port,
            extra,
            len(self.request_body),
            self.request_body,
        )

    def _answer_head(self, extra: bytes) -> bytes:
        if self.events:
            return (
                b"HTTP/1.1 200 OK\r\n"
                b"Content-Type: text/event-stream\r\n"
                b"Cache-Control: no-cache\r\n"
                b"%bTransfer-Encoding: chunked\r\n\r\n"
            ) % extra
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
        ) % (extra, len(self.answer_body))


def _json_of(size: int, opening: bytes) -> bytes:
    """A JSON object of exactly `size` bytes that begins with `opening`."""
    start = opening + b',"padding":"'
    return start + b"p" * (size - len(start) - 2) + b'"}'


_INFER = b"/v2/models/bench/infer"
_CHAT = b"/v1/chat/completions"
_TENSOR = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[0.5,1.5,2.5,3.5]}]'
_OUTPUT = b'{"model_name":"bench","outputs":[{"name":"y","shape":[1,1],"data":[4.0]}]'

SMALL_JSON = Workload(
    name="small_json",
    what="200 B of JSON there, 150 B back",
    path=_INFER,
    latency_path=_INFER,
    request_body=_json_of(200, _TENSOR),
    answer_body=_json_of(150, _OUTPUT),
)
SMALL_JSON_VARIED = replace(
    SMALL_JSON,
    name="small_json_varied",
    what="the same with another request id in every head",
    varied=True,
)
MIB_BODY = Workload(
    name="mib_body",
    what="1 MiB there and 1 MiB back",
    path=_INFER,
    latency_path=_INFER,
    request_body=_json_of(MIB, _TENSOR),
    answer_body=_json_of(MIB, _OUTPUT),
)
SSE = Workload(
    name="sse",
    what=f"{EVENTS_PER_STREAM} events of {EVENT_BYTES} B, each written by itself",
    path=_CHAT,
    latency_path=_CHAT + PACED_QUERY,
    request_body=_json_of(200, b'{"model":"bench","stream":true,"max_tokens":200'),
    answer_body=b"".join(event(n, written_ns=0) for n in range(EVENTS_PER_STREAM)),
    latency_connections=4,
    events=EVENTS_PER_STREAM,
)
WORKLOADS = {w.name: w for w in (SMALL_JSON, SMALL_JSON_VARIED, MIB_BODY, SSE)}
