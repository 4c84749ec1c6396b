# SPDX-License-Identifier: Apache-2.0
"""What kind of traffic a trace is, in a few numbers with units in their names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from simulations.spread import DIGITS, spread
from simulations.traces.arrivals import Arrival

IDLE_SLOT_S = 10


def describe(arrivals: Sequence[Arrival]) -> Mapping[str, object]:
    """Numbers of a trace that holds at least one arrival, in order of time.

    The span reaches from the first arrival to the last; rates are over the span, peaks over windows
    that begin at the first arrival. `idle_10s_ratio`: 10 s windows within the span without arrival.
    """
    first_s = arrivals[0].at_s
    span_s = arrivals[-1].at_s - first_s
    slots = Counter(int((arrival.at_s - first_s) // IDLE_SLOT_S) for arrival in arrivals)
    return {
        "requests": len(arrivals),
        "first_at_s": round(first_s, DIGITS),
        "span_s": round(span_s, DIGITS),
        "mean_rps": round(len(arrivals) / span_s, DIGITS) if span_s else None,
        "peak_1s_rps": _peak(arrivals, 1.0),
        "peak_60s_rps": _peak(arrivals, 60.0) if span_s >= 60 else None,
        "longest_gap_s": round(
            max((after.at_s - before.at_s for before, after in pairwise(arrivals)), default=0.0),
            DIGITS,
        ),
        "idle_10s_ratio": round(1 - len(slots) / (int(span_s // IDLE_SLOT_S) + 1), DIGITS),
        "prompt_tokens": spread(arrival.prompt_tokens for arrival in arrivals),
        "output_tokens": spread(arrival.output_tokens for arrival in arrivals),
        "services": sorted({a.service for a in arrivals if a.service is not None}),
    }


def _peak(arrivals: Sequence[Arrival], window_s: float) -> float:
    first_s = arrivals[0].at_s
    counts = Counter(int((arrival.at_s - first_s) // window_s) for arrival in arrivals)
    return round(max(counts.values()) / window_s, DIGITS)
