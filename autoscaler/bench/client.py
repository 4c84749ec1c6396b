# SPDX-License-Identifier: Apache-2.0
"""The load: a process that sends one workload over keep-alive connections and times the answers.

`python -m autoscaler.bench.client` reads one `Phase` a line from standard input and answers each
with one `Seen`, both as JSON; it ends with its input. Each connection sends its next request when
the answer to the last has arrived whole. Errors are counted by kind; a connection that saw one is
closed and not opened again.
"""

import asyncio
import gc
import itertools
import json
import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import uvloop

from autoscaler.bench.cores import cores_busy_s
from autoscaler.bench.messages import HEAD_END, CountedMessages, field
from autoscaler.bench.parent import next_line, tell
from autoscaler.bench.phases import Phase, Seen
from autoscaler.bench.workloads import (
    END_OF_CHUNKS,
    STAMP,
    WORKLOADS,
    Workload,
    unstamped,
    without_chunks,
)

_LONGEST_ANSWER_S = 30.0
_OK = b"HTTP/1.1 200 "


def quantile(ordered: Sequence[float], ratio: float) -> float | None:
    """The smallest value that at least `ratio` of the values do not exceed; None for no values."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(ratio * len(ordered)) - 1)]


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have used, in nanosecond steps.

    Source: clock_getcpuclockid(3): the clock's id is the complement of the pid, shifted by three,
    with the two bits of the scheduler's clock.
    """
    return time.clock_gettime((~pid << 3) | 2)


class Load:
    """What the connections of one phase share."""

    def __init__(self, workload: Workload, phase: Phase) -> None:
        self.workload = workload
        requests = workload.requests(phase.port, for_latency=phase.for_latency)
        self.next_request = itertools.cycle(requests).__next__
        self.paced = bool(workload.events) and phase.for_latency
        self.counting = False
        self.stopping = False
        self.open = 0
        self.latencies_s = array("d")
        self.event_delays_s = array("d")
        self.first_s = array("d")
        self.errors: Counter[str] = Counter()
        self.all_closed = asyncio.Event()

    def closed(self) -> None:
        self.open -= 1
        if self.open == 0:
            self.all_closed.set()


class Asking(CountedMessages):
    """One connection that asks and asks again; answers have one body of a known length."""

    def __init__(self, load: Load) -> None:
        super().__init__(begins=_OK, body=load.workload.answer_body)
        self._load = load
        self._sent_at_s = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._load.open += 1
        self._ask(time.perf_counter())

    def _ask(self, now_s: float) -> None:
        self._sent_at_s = now_s
        self._waiting = True
        self.transport.write(self._load.next_request())

    def message_arrived(self) -> None:
        now_s = time.perf_counter()
        load = self._load
        if load.counting:
            load.latencies_s.append(now_s - self._sent_at_s)
        if load.stopping:
            self._waiting = False
            self.transport.close()
        else:
            self._ask(now_s)

    def message_refused(self, why: str) -> None:
        self._load.errors[why] += 1
        self._waiting = False
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._load.errors[f"cut: {exc or 'closed before the answer was whole'}"] += 1
        self._load.closed()


class Listening(Asking):
    """One connection that asks for streams of events."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._tail = b""
        self._unread = b""
        self._bytes = 0
        self._stream: list[bytes] | None = []
        self._streams = 0

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self.get_buffer(-1)[:nbytes])
        load = self._load
        if self._bytes == 0:
            if not data.startswith(_OK):
                self.message_refused(f"answered {data[:40]!r}")
                return
            if load.counting:
                load.first_s.append(time.perf_counter() - self._sent_at_s)
        self._bytes += nbytes
        if load.paced and load.counting:
            self._time_events(data)
        if self._stream is not None:
            self._stream.append(data)
        self._tail = (self._tail + data)[-len(END_OF_CHUNKS) :]
        if self._tail == END_OF_CHUNKS:
            self._ended()

    def _time_events(self, data: bytes) -> None:
        """Note how long ago the backend wrote each event that has now arrived."""
        now_ns = time.monotonic_ns()
        data = self._unread + data
        read = 0
        for stamp in STAMP.finditer(data):
            self._load.event_delays_s.append((now_ns - int(stamp[1])) / 1e9)
            read = stamp.end()
        self._unread = data[read:]

    def _ended(self) -> None:
        wrong = None
        if self._bytes < len(self._load.workload.answer_body):
            wrong = "a stream that lacks events"
        elif self._stream is not None:
            wrong = _wrong_stream(b"".join(self._stream), self._load.workload)
        self._bytes = 0
        self._tail = self._unread = b""
        self._streams += 1
        self._stream = [] if self._streams % 16 == 0 else None
        if wrong:
            self.message_refused(wrong)
        else:
            self.message_arrived()


def _wrong_stream(message: bytes, workload: Workload) -> str | None:
    """Compare one whole stream with what it must be; the times that events carry may differ."""
    head, _, body = message.partition(HEAD_END)
    if field(head, b"transfer-encoding") != b"chunked":
        return "a stream that is not chunked"
    events = without_chunks(body)
    if events is None:
        return "a stream with broken chunks"
    return None if unstamped(events) == workload.answer_body else "a stream with other events"


async def measure(phase: Phase) -> Seen:
    """Run one phase: connect, warm up, count for the window, let the last answers arrive."""
    loop = asyncio.get_running_loop()
    load = Load(WORKLOADS[phase.workload], phase)
    connection = Listening if load.workload.events else Asking
    for _ in range(phase.connections):
        await loop.create_connection(lambda: connection(load), "127.0.0.1", phase.port)
    await _wait_for_close(load, phase.warm_s)

    cpu_before = {name: cpu_seconds(pid) for name, pid in phase.cpu_of.items()}
    cores_before = cores_busy_s()
    started_s = time.perf_counter()
    load.counting = True
    await _wait_for_close(load, phase.duration_s)
    load.counting = False
    seconds = time.perf_counter() - started_s
    cpu_s = {n: cpu_seconds(pid) - cpu_before[n] for n, pid in phase.cpu_of.items()}
    cores_now = cores_busy_s()

    load.stopping = True
    if not await _wait_for_close(load, _LONGEST_ANSWER_S):
        load.errors[f"no whole answer within {_LONGEST_ANSWER_S:g} s"] += load.open
    ordered = sorted(load.event_delays_s if load.paced else load.latencies_s)
    return Seen(
        seconds=seconds,
        requests=len(load.latencies_s),
        p50_s=quantile(ordered, 0.50),
        p99_s=quantile(ordered, 0.99),
        first_p50_s=quantile(sorted(load.first_s), 0.50) if load.paced else None,
        paced_events=len(load.event_delays_s),
        cpu_s=cpu_s,
        core_s=tuple(cores_now[core] - cores_before[core] for core in phase.cores),
        errors=dict(load.errors),
    )


async def _wait_for_close(load: Load, longest_s: float) -> bool:
    """Wait until every connection is closed, at most so long; whether they are."""
    try:
        await asyncio.wait_for(load.all_closed.wait(), longest_s)
    except TimeoutError:
        return False
    return True


async def _answer_phases() -> None:
    while line := await next_line():
        tell(json.dumps(asdict(await measure(Phase(**json.loads(line))))))


if __name__ == "__main__":
    gc.disable()
    uvloop.run(_answer_phases())
