# SPDX-License-Identifier: Apache-2.0
"""How values spread: mean, quantiles, largest. A quantile is a value that was really there."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

QUANTILES = (0.5, 0.9, 0.95, 0.99)
DIGITS = 6  # of seconds: finer than any model here


def quantile(ranked: Sequence[float], q: float) -> float:
    """The smallest of `ranked` (ascending, not empty) that a part `q` of them does not exceed."""
    return ranked[max(ceil(q * len(ranked) - 1e-9), 1) - 1]


def spread(values: Iterable[float]) -> Mapping[str, float | None]:
    """Mean, quantiles and largest of `values`; all None where there are none."""
    ranked = sorted(values)
    names = {f"p{q * 100:.0f}": q for q in QUANTILES}
    if not ranked:
        return {"mean": None, **dict.fromkeys(names), "max": None}
    return {
        "mean": round(sum(ranked) / len(ranked), DIGITS),
        **{name: round(quantile(ranked, q), DIGITS) for name, q in names.items()},
        "max": round(ranked[-1], DIGITS),
    }
