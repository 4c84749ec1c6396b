# SPDX-License-Identifier: Apache-2.0
"""The server behind the proxies: a process that answers one workload as cheaply as it can.

`python -m autoscaler.bench.backend WORKLOAD` prints the port that it listens on and ends when its
standard input does. A request that is not byte for byte what the client sent is answered with 400.
"""

import asyncio
import gc
import itertools
import sys
import time
from collections.abc import Callable

import uvloop

from autoscaler.bench.messages import CountedMessages
from autoscaler.bench.parent import parent_ended, tell
from autoscaler.bench.workloads import (
    END_OF_CHUNKS,
    EVENT_PAUSE_S,
    PACED_QUERY,
    WORKLOADS,
    Workload,
    chunk,
    event,
)

_FIRST_LINE_BYTES = 128


class OneBody(CountedMessages):
    """Answers each request with the next of the workload's answers, which is a whole one."""

    def __init__(self, workload: Workload, next_answer: Callable[[], bytes]) -> None:
        super().__init__(begins=b"POST ", body=workload.request_body)
        self._next_answer = next_answer

    def message_arrived(self) -> None:
        self.transport.write(self._next_answer())

    def message_refused(self, why: str) -> None:
        _answer_400(self.transport, why)


class Events(CountedMessages):
    """Answers each request with the workload's events, one write a turn of the event loop."""

    def __init__(
        self,
        workload: Workload,
        next_answer: Callable[[], bytes],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(begins=b"POST ", body=workload.request_body)
        self._next_head = next_answer
        self._chunks = [chunk(event(n, written_ns=0)) for n in range(workload.events)]
        self._loop = loop
        self._next = 0
        self._paced = False
        self._first_line = b""

    def buffer_updated(self, nbytes: int) -> None:
        if not self._first_line:
            self._first_line = bytes(self.get_buffer(-1)[: min(nbytes, _FIRST_LINE_BYTES)])
        super().buffer_updated(nbytes)

    def message_arrived(self) -> None:
        self._paced = PACED_QUERY in self._first_line.split(b"\r\n", 1)[0]
        self._first_line = b""
        self._next = 0
        self.transport.write(self._next_head())
        self._write_next()

    def _write_next(self) -> None:
        if self.transport.is_closing():
            return
        number = self._next
        if number == len(self._chunks):
            self.transport.write(END_OF_CHUNKS)
            return
        self._next = number + 1
        if self._paced:
            self.transport.write(chunk(event(number, written_ns=time.monotonic_ns())))
            self._loop.call_later(EVENT_PAUSE_S, self._write_next)
        else:
            self.transport.write(self._chunks[number])
            self._loop.call_soon(self._write_next)

    def message_refused(self, why: str) -> None:
        _answer_400(self.transport, why)


def _answer_400(transport: asyncio.Transport, why: str) -> None:
    body = why.encode()
    transport.write(
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    transport.close()


def connections(workload: Workload) -> Callable[[], CountedMessages]:
    """What makes a server's connections; they take turns in the workload's answers."""
    loop = asyncio.get_running_loop()
    next_answer = itertools.cycle(workload.answers).__next__
    if workload.events:
        return lambda: Events(workload, next_answer, loop)
    return lambda: OneBody(workload, next_answer)


async def serve(workload: Workload) -> None:
    """Serve `workload` on a port that the kernel chose, printed as the first line of stdout."""
    loop = asyncio.get_running_loop()

    server = await loop.create_server(connections(workload), "127.0.0.1", 0, backlog=1024)
    tell(server.sockets[0].getsockname()[1])
    await parent_ended()
    server.close()


if __name__ == "__main__":
    gc.disable()
    uvloop.run(serve(WORKLOADS[sys.argv[1]]))
