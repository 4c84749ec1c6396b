# SPDX-License-Identifier: Apache-2.0
"""Reads the Azure LLM inference traces (csv): `TIMESTAMP,ContextTokens,GeneratedTokens`.

Stamps carry 100 ns digits, more than `datetime` keeps, so they are read as whole ticks of 100 ns
and become seconds only after the first has been taken away. Some releases write a UTC offset; all
rows of one file must write it alike. Rows out of order are put in order.
Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md (CC-BY-4.0).
"""

import csv
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from random import Random

from autoscaler.errors import BadInput
from simulations.traces.arrivals import Arrival, malformed, tokens

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TICKS_PER_S = 10_000_000
STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,7}))?\d*(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def read(lines: Iterable[str], name: str, _chance: Random) -> Sequence[Arrival]:
    rows = csv.reader(lines)
    header = next(rows, None)
    if header is None or tuple(cell.strip() for cell in header) != COLUMNS:
        raise BadInput(
            f"{name}: line 1: the header is {','.join(header or ())!r}; "
            f"the azure format begins with {','.join(COLUMNS)!r}"
        )
    seen: list[tuple[int, int, int]] = []
    for row in rows:
        if not row:
            continue
        line = rows.line_num
        if len(row) != len(COLUMNS):
            raise malformed(
                name, line, f"{len(row)} columns", f"there must be {len(COLUMNS)}: {COLUMNS}"
            )
        seen.append(
            (
                _ticks(row[0], name=name, line=line),
                tokens(row[1], column=COLUMNS[1], name=name, line=line),
                tokens(row[2], column=COLUMNS[2], name=name, line=line),
            )
        )
    seen.sort(key=lambda request: request[0])
    first = seen[0][0] if seen else 0
    return [Arrival((ticks - first) / TICKS_PER_S, prompt, out) for ticks, prompt, out in seen]


def _ticks(stamp: str, *, name: str, line: int) -> int:
    """A stamp as 100 ns ticks since 1970 (UTC, or the file's own time where it names no offset)."""
    remedy = "a stamp looks like 2023-11-16 18:15:46.6805900"
    match = STAMP.fullmatch(stamp.strip())
    if match is None:
        raise malformed(name, line, f"TIMESTAMP is {stamp!r}", remedy)
    day, time, digits, offset = match.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{time}{offset or '+00:00'}")
    except ValueError:
        raise malformed(name, line, f"TIMESTAMP is {stamp!r}", remedy) from None
    since = whole - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * TICKS_PER_S + int((digits or "").ljust(7, "0"))
