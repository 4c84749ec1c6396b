# SPDX-License-Identifier: Apache-2.0
"""Our own plain format (jsonl), for anyone's recordings: one object a line, in any order of time.

`at_s` (seconds since the recording began), `prompt_tokens`, `output_tokens`, and where several
services were recorded together `service`. Other keys are not used.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import TextIO

from simulations.traces.arrivals import Arrival, malformed, tokens


def read(lines: Iterable[str], name: str, _chance: Random) -> Sequence[Arrival]:
    arrivals = []
    for line, row in rows(lines, name):
        at_s = row.get("at_s")
        if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not 0 <= at_s < math.inf:
            raise malformed(name, line, f"at_s is {at_s!r}", "at_s must be seconds, 0 or more")
        service = row.get("service")
        if service is not None and not isinstance(service, str):
            raise malformed(name, line, f"service is {service!r}", "service must be a name")
        prompt = tokens(row.get("prompt_tokens"), column="prompt_tokens", name=name, line=line)
        output = tokens(row.get("output_tokens"), column="output_tokens", name=name, line=line)
        arrivals.append(Arrival(float(at_s), prompt, output, service))
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return arrivals


def rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Each line's object with its line number; empty lines are passed over."""
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise malformed(
                name, line, f"{text.strip()[:40]!r} is no JSON object", "write one object a line"
            )
        yield line, row


def write(arrivals: Iterable[Arrival], to: TextIO) -> int:
    """Write arrivals so that `read` gives them back; the answer is how many."""
    count = 0
    for arrival in arrivals:
        row: dict[str, object] = {
            "at_s": arrival.at_s,
            "prompt_tokens": arrival.prompt_tokens,
            "output_tokens": arrival.output_tokens,
        }
        if arrival.service is not None:
            row["service"] = arrival.service
        to.write(json.dumps(row) + "\n")
        count += 1
    return count
