# SPDX-License-Identifier: Apache-2.0
"""What the worker counts. Plain numbers, changed by the event loop's thread alone, so without
locks.

`exposition.py` turns them into the text of /metrics.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Histogram:
    """Counts by upper bound (inclusive), with the sum of what was seen."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, how many are at or below it), as the exposition format wants them."""
        labels = [*(f"{b:g}" for b in self.bounds), "+Inf"]
        running = 0
        out = []
        for label, count in zip(labels, self.counts, strict=True):
            running += count
            out.append((label, float(running)))
        return out


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _rows() -> Histogram:
    return Histogram(ROWS)


@dataclass(slots=True)
class ModelCounts:
    """Everything counted for one model. `load_s` and `loaded_bytes` are None until it is loaded.

    `in_flight` and `arrived` change by `arrive` and `leave` alone, which keep `request_seconds`.
    `answered_s`: the part of `request_s` that was spent on requests answered well.
    """

    in_flight: int = 0
    arrived: int = 0
    queued: int = 0
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    request_s: Histogram = field(default_factory=_seconds)
    queue_s: Histogram = field(default_factory=_seconds)
    inference_s: Histogram = field(default_factory=_seconds)
    batch_rows: Histogram = field(default_factory=_rows)
    succeeded: int = 0
    answered_s: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    inferences: int = 0
    executions: int = 0
    load_s: float | None = None
    loaded_bytes: int | None = None
    # The integral of `in_flight` over time, up to `_counted_at_s`.
    _past_request_s: float = field(default=0.0, init=False)
    _counted_at_s: float = field(default=0.0, init=False)

    def arrive(self, now_s: float) -> None:
        """One more request is inside. `now_s` never goes back from call to call."""
        self._count_up_to(now_s)
        self.in_flight += 1
        self.arrived += 1

    def leave(self, now_s: float) -> None:
        """One of those inside is gone, answered or not."""
        self._count_up_to(now_s)
        self.in_flight -= 1

    def request_seconds(self, now_s: float) -> float:
        """The integral of `in_flight` over time, up to now: also of requests that still run."""
        return self._past_request_s + self.in_flight * (now_s - self._counted_at_s)

    def _count_up_to(self, now_s: float) -> None:
        self._past_request_s = self.request_seconds(now_s)
        self._counted_at_s = now_s


@dataclass(slots=True)
class Telemetry:
    """All counts of the process.

    `strays`: requests for models that do not exist, by protocol and code.
    """

    models: dict[str, ModelCounts] = field(default_factory=dict)
    strays: Counter[tuple[str, int]] = field(default_factory=Counter)
