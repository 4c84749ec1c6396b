# SPDX-License-Identifier: Apache-2.0
"""What was seen over the last seconds: rates with counter resets, means, sliding extremes.

All of them are values: `seen` returns a new window, questions take `now_s`. Old samples are let go
as new ones come, so a window's size follows from its span and the tick, never from its age.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

# A rate over less than this says more about two ticks that came close together than about demand.
SHORTEST_RATE_S = 1.0


@dataclass(frozen=True, slots=True)
class CounterWindow:
    """A growing total over the last `span_s`; a total that shrinks has started anew from 0.

    `samples`: (at_s, sum of all increases so far), oldest first; one sample at or before the left
    edge of the window is kept, so that the edge can be interpolated.
    Samples must come at least twice per `span_s`, or there is never a rate.
    """

    span_s: float
    samples: tuple[tuple[float, float], ...] = ()
    raw: float = 0.0

    def seen(self, total: float, at_s: float) -> "CounterWindow":
        """Add a sample. A time that stands still or goes back replaces the newest sample."""
        if not self.samples:
            return CounterWindow(self.span_s, ((at_s, 0.0),), total)
        newest_s, summed = self.samples[-1]
        increase = total - self.raw if total >= self.raw else total
        if at_s - newest_s > self.span_s:
            # After a gap nobody knows when the increase came: one sample, and so no rate yet.
            samples: tuple[tuple[float, float], ...] = ((at_s, summed + increase),)
        elif at_s <= newest_s:
            samples = (*self.samples[:-1], (newest_s, summed + increase))
        else:
            samples = (*_since(self.samples, at_s - self.span_s), (at_s, summed + increase))
        return CounterWindow(self.span_s, samples, total)

    def value(self, now_s: float) -> float | None:
        """Increase per second over the window that ends with the newest sample; None: not known.

        Not known: fewer than two samples, or a newest sample older than the window.
        """
        if len(self.samples) < 2 or now_s - self.samples[-1][0] > self.span_s:
            return None
        newest_s, newest = self.samples[-1]
        left_s = max(self.samples[0][0], newest_s - self.span_s)
        elapsed_s = max(newest_s - left_s, SHORTEST_RATE_S)
        return (newest - _interpolated(self.samples, left_s)) / elapsed_s


@dataclass(frozen=True, slots=True)
class LevelWindow:
    """A level that was sampled, over the last `span_s`."""

    span_s: float
    samples: tuple[tuple[float, float], ...] = ()

    def seen(self, level: float, at_s: float) -> "LevelWindow":
        kept = tuple(sample for sample in self.samples if at_s - self.span_s < sample[0] < at_s)
        return LevelWindow(self.span_s, (*kept, (at_s, level)))

    def value(self, now_s: float) -> float | None:
        """Mean of the samples in the window; None when there is none."""
        levels = [level for at_s, level in self.samples if now_s - self.span_s < at_s]
        return sum(levels) / len(levels) if levels else None


@dataclass(frozen=True, slots=True)
class SlidingExtreme:
    """The largest (or smallest) value of the last `span_s`, without keeping all of them.

    `kept` holds only samples that can still become the extreme: each newer one is smaller (larger).
    """

    largest: bool
    kept: tuple[tuple[float, float], ...] = ()

    def seen(self, value: float, at_s: float, *, span_s: float) -> "SlidingExtreme":
        beats: Callable[[float, float], bool] = (
            (lambda old, new: old > new) if self.largest else (lambda old, new: old < new)
        )
        kept = tuple(
            (old_s, old) for old_s, old in self.kept if old_s > at_s - span_s and beats(old, value)
        )
        return SlidingExtreme(self.largest, (*kept, (at_s, value)))

    def extreme(self) -> float:
        """The extreme as of the newest sample; at least one value must have been seen."""
        return self.kept[0][1]


def _since(
    samples: tuple[tuple[float, float], ...], left_s: float
) -> tuple[tuple[float, float], ...]:
    """The samples after `left_s` and the last one at or before it."""
    first_after = bisect_right(samples, left_s, key=lambda sample: sample[0])
    return samples[max(first_after - 1, 0) :]


def _interpolated(samples: tuple[tuple[float, float], ...], at_s: float) -> float:
    """The total at `at_s`, which lies within the samples, on the line between its neighbours."""
    after = bisect_right(samples, at_s, key=lambda sample: sample[0])
    if after == 0:
        return samples[0][1]
    if after == len(samples):
        return samples[-1][1]
    (before_s, before), (after_s, later) = samples[after - 1], samples[after]
    return before + (later - before) * (at_s - before_s) / (after_s - before_s)
