# SPDX-License-Identifier: Apache-2.0
"""What the runs of one policy come to. But for `seconds`, same seeds give the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from math import fsum

from simulations.packing.protocol import FULL, INFLATION, Run

DIGITS = 4  # of per cents

Report = Mapping[str, object]


def build(
    runs: Sequence[Run],
    *,
    policy: str,
    through_http: bool,
    lists: Report,
    seconds: Sequence[float],
    about: Report,
) -> Report:
    """`runs` and the `seconds` each took, in the order of seeds; `lists`: what was packed."""
    full = [run.at(FULL) for run in runs]
    return {
        "tidegate": about,
        "policy": policy,
        "through": "http" if through_http else "core",
        "lists": lists,
        "inflation": INFLATION,
        "seeds": [run.seed for run in runs],
        "unallocated_gpu_percent": _spread(100 - moment.allocated_percent for moment in full),
        "fragments_gpu_percent": _spread(moment.fragments_percent for moment in full),
        "placed_pods": [run.placed for run in runs],
        "dropped_pods": [run.dropped for run in runs],
        **({"http_calls": [run.calls for run in runs]} if through_http else {}),
        "curve": curve(runs),
        "seconds": {
            "mean": round(fsum(seconds) / len(seconds), 2),
            "max": round(max(seconds), 2),
            "per_seed": [round(one, 2) for one in seconds],
            **({"calls_per_s": _rates(runs, seconds)} if through_http else {}),
        },
    }


def curve(runs: Sequence[Run]) -> Sequence[Mapping[str, float]]:
    """By per cent arrived, the means over the runs that have it."""
    percents = sorted({moment.arrived_percent for run in runs for moment in run.curve})
    by_percent = [{moment.arrived_percent: moment for moment in run.curve} for run in runs]
    points = []
    for percent in percents:
        here = [moments[percent] for moments in by_percent if percent in moments]
        points.append(
            {
                "arrived_percent": percent,
                "allocated_percent": _mean([moment.allocated_percent for moment in here]),
                "fragments_percent": _mean([moment.fragments_percent for moment in here]),
            }
        )
    return points


def _rates(runs: Sequence[Run], seconds: Sequence[float]) -> Sequence[float]:
    return [round(run.calls / took_s, 1) for run, took_s in zip(runs, seconds, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return round(fsum(values) / len(values), DIGITS)


def _spread(values: Iterable[float]) -> Report:
    every = [round(value, DIGITS) for value in values]
    return {"mean": _mean(every), "min": min(every), "max": max(every), "per_seed": every}
