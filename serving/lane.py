# SPDX-License-Identifier: Apache-2.0
"""A model's way from request to answer: door, queue, batch, thread, answer.

Everything but `run_batch` happens on the event loop's thread; what to do is decided by `core/`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from serving.core.admission import Pace, refusal
from serving.core.batching import Send, Waiting, join, key_of, next_batch, rows_of, split
from serving.core.tensors import Tensors
from serving.engines import Engine
from serving.errors import BadRequest, InferenceFailed, Overloaded, WorkerError
from serving.settings import Settings
from serving.telemetry import ModelCounts


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """One request in the queue, and where its answer goes."""

    inputs: Tensors
    outputs: tuple[str, ...]
    waiting: Waiting
    answer: asyncio.Future[Tensors]


@dataclass(frozen=True, slots=True)
class Ran:
    """What one batch came to: an answer or an error for each request, in order.

    `by_row`: whether the model still looks as if it worked row by row.
    """

    answers: tuple[Tensors | WorkerError, ...]
    by_row: bool = True


class Lane:
    """The queue of one model and the slots in which its batches run."""

    def __init__(
        self, name: str, engine: Engine, *, settings: Settings, pool: Executor, counts: ModelCounts
    ) -> None:
        self.engine = engine
        self._name = name
        self._settings = settings
        self._pool = pool
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._clock = time.perf_counter  # uvloop's own clock counts whole milliseconds
        self._queue: deque[Pending] = deque()
        self._running = 0
        self._pace = Pace()
        self._by_row = engine.by_row
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, inputs: Tensors, outputs: tuple[str, ...]) -> asyncio.Future[Tensors]:
        """Queue a request. Cancelling the future takes it out of the queue again.

        Raises Overloaded when the queue is full, BadRequest when the inputs have no common rows.
        """
        waiting = self._as_waiting(inputs)
        refused = refusal(
            queued=len(self._queue),
            limit=self._settings.max_queue_size,
            slots=self._settings.concurrency,
            pace=self._pace,
        )
        if refused is not None:
            self._counts.failed["REJECTED"] += 1
            raise Overloaded(
                f"model {self._name!r} is overloaded: {refused.why}; retry after"
                f" {refused.retry_after_s} s",
                after_s=refused.retry_after_s,
            )
        pending = Pending(inputs, outputs, waiting, self._loop.create_future())
        pending.answer.add_done_callback(partial(self._forget, pending))
        self._queue.append(pending)
        self._pump()
        return pending.answer

    def _as_waiting(self, inputs: Tensors) -> Waiting:
        now_s = self._clock()
        if not self._by_row:
            return Waiting(1, None, now_s)
        rows = rows_of(inputs)
        if isinstance(rows, str):
            raise BadRequest(f"model {self._name!r}: {rows}")
        return Waiting(rows, key_of(inputs), now_s)

    def _forget(self, pending: Pending, answer: asyncio.Future[Tensors]) -> None:
        if answer.cancelled() and pending in self._queue:
            self._queue.remove(pending)
            self._counts.failed["CANCELED"] += 1
            self._pump()

    def _pump(self) -> None:
        """Start every batch that may start now; otherwise set the timer for the next look."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and self._running < self._settings.concurrency:
            decision = next_batch(
                (p.waiting for p in self._queue),
                now_s=self._clock(),
                max_rows=self._settings.max_batch_size,
                max_delay_s=self._settings.max_queue_delay_s,
            )
            if not isinstance(decision, Send):
                self._timer = self._loop.call_later(decision.for_s, self._pump)
                break
            self._start([self._queue.popleft() for _ in range(decision.count)])
        self._counts.queued = len(self._queue)

    def _start(self, batch: list[Pending]) -> None:
        now_s = self._clock()
        for pending in batch:
            self._counts.queue_s.observe(now_s - pending.waiting.since_s)
        self._running += 1
        work = [(p.inputs, p.outputs, p.waiting.rows) for p in batch]
        ran = self._loop.run_in_executor(self._pool, run_batch, self.engine, work)
        ran.add_done_callback(partial(self._finish, batch, now_s))

    def _finish(self, batch: list[Pending], started_s: float, ran: asyncio.Future[Ran]) -> None:
        took_s = self._clock() - started_s
        self._running -= 1
        self._pace = self._pace.after(took_s, requests=len(batch))
        self._counts.inference_s.observe(took_s)
        self._counts.batch_rows.observe(sum(p.waiting.rows for p in batch))
        self._counts.executions += 1
        for pending, answer in zip(batch, self._answers(batch, ran), strict=True):
            self._settle(pending, answer)
        self._pump()

    def _answers(
        self, batch: list[Pending], ran: asyncio.Future[Ran]
    ) -> Sequence[Tensors | WorkerError]:
        if ran.cancelled():
            return [InferenceFailed(f"model {self._name!r}: the worker is ending")] * len(batch)
        error = ran.exception()
        if error is not None:  # of a type that the engine did not foresee
            text = f"model {self._name!r} failed: {type(error).__name__}: {error}"
            return [InferenceFailed(text)] * len(batch)
        result = ran.result()
        self._by_row = self._by_row and result.by_row
        return result.answers

    def _settle(self, pending: Pending, answer: Tensors | WorkerError) -> None:
        if isinstance(answer, WorkerError):
            self._counts.failed["OTHER" if isinstance(answer, BadRequest) else "BACKEND"] += 1
        else:
            self._counts.succeeded += 1
            self._counts.inferences += pending.waiting.rows
        if pending.answer.done():  # its client left while the batch ran
            return
        if isinstance(answer, WorkerError):
            pending.answer.set_exception(answer)
        else:
            pending.answer.set_result(answer)


def run_batch(engine: Engine, work: Sequence[tuple[Tensors, tuple[str, ...], int]]) -> Ran:
    """Run requests (inputs, outputs wanted, rows) as one batch, on a thread of the pool.

    When the batch as a whole fails, or its answer cannot be told apart, each request runs alone:
    one client's bad rows are not another's error.
    """
    if len(work) == 1:
        return Ran((_run_alone(engine, *work[0][:2]),))
    wanted = tuple(dict.fromkeys(name for _, outputs, _ in work for name in outputs))
    by_row = True
    try:
        outputs = engine.infer(join([inputs for inputs, _, _ in work]), wanted)
        parts = split(outputs, [rows for _, _, rows in work])
        if parts is not None:
            picked = (
                {n: part[n] for n in names} for part, (_, names, _) in zip(parts, work, strict=True)
            )
            return Ran(tuple(picked))
        by_row = False
    except WorkerError:
        by_row = True  # told again, to whom it belongs, by the runs below
    return Ran(tuple(_run_alone(engine, i, o) for i, o, _ in work), by_row=by_row)


def _run_alone(engine: Engine, inputs: Tensors, outputs: tuple[str, ...]) -> Tensors | WorkerError:
    try:
        return engine.infer(inputs, outputs)
    except WorkerError as e:
        return e
