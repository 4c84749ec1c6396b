# SPDX-License-Identifier: Apache-2.0
"""Reads the Mooncake traces (jsonl): `timestamp` in ms, `input_length`, `output_length` in tokens.

The conversation trace stamps its requests in ticks of about 3 s, so ten come at once and then none:
an artefact of the recording that would look like burstiness. Where that is so, each request is
moved by seeded chance to somewhere within its tick. `hash_ids` (prefix blocks) are not used.
Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces (Apache-2.0).
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random
from statistics import median

from simulations.traces.arrivals import Arrival, malformed, tokens
from simulations.traces.jsonl import rows

REQUESTS_PER_STAMP_IF_QUANTISED = 2.0


def read(lines: Iterable[str], name: str, chance: Random) -> Sequence[Arrival]:
    seen: list[tuple[float, int, int]] = []
    for line, row in rows(lines, name):
        stamp = row.get("timestamp")
        if (
            isinstance(stamp, bool)
            or not isinstance(stamp, int | float)
            or not math.isfinite(stamp)
            or stamp < 0
        ):
            raise malformed(
                name, line, f"timestamp is {stamp!r}", "timestamp must be milliseconds, 0 or more"
            )
        prompt = tokens(row.get("input_length"), column="input_length", name=name, line=line)
        output = tokens(row.get("output_length"), column="output_length", name=name, line=line)
        seen.append((stamp, prompt, output))
    seen.sort(key=lambda request: request[0])
    arrivals = [
        Arrival((stamp + chance.random() * tick) / 1000.0, prompt, output)
        for (stamp, prompt, output), tick in zip(
            seen, _ticks_ms([stamp for stamp, _, _ in seen]), strict=True
        )
    ]
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return arrivals


def _ticks_ms(stamps: Sequence[float]) -> Sequence[float]:
    """How far each request may be moved on, in ms: to the next stamp, at most the usual distance.

    Nothing is moved in a trace whose stamps are mostly its own.
    """
    distinct = sorted(set(stamps))
    if len(distinct) < 2 or len(stamps) < REQUESTS_PER_STAMP_IF_QUANTISED * len(distinct):
        return [0.0] * len(stamps)
    gaps = [after - before for before, after in pairwise(distinct)]
    usual = median(gaps)
    tick_of = {stamp: min(gap, usual) for stamp, gap in zip(distinct, gaps, strict=False)}
    return [tick_of.get(stamp, usual) for stamp in stamps]
