# SPDX-License-Identifier: Apache-2.0
"""The table of trace formats. Another format is one file with a `read` and one row here."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from autoscaler.errors import BadInput
from simulations.traces import azure, jsonl, mooncake
from simulations.traces.arrivals import Arrival, Reader


@dataclass(frozen=True, slots=True)
class TraceFormat:
    read: Reader
    meaning: str


FORMATS: Mapping[str, TraceFormat] = {
    "azure": TraceFormat(
        azure.read, "Azure LLM inference traces: csv of TIMESTAMP,ContextTokens,GeneratedTokens"
    ),
    "jsonl": TraceFormat(
        jsonl.read, "one object a line: at_s, prompt_tokens, output_tokens, and service if many"
    ),
    "mooncake": TraceFormat(
        mooncake.read,
        "Mooncake traces: jsonl of timestamp (ms), input_length, output_length; "
        "coarse ticks are spread by the seed",
    ),
}


@dataclass(frozen=True, slots=True)
class Trace:
    """A file's arrivals in order of time, and the proof of which file it was."""

    name: str
    sha256: str
    arrivals: Sequence[Arrival]


def read_trace(path: Path, format_name: str, *, seed: int) -> Trace:
    """Read a whole trace. Raises `BadInput` naming the file, the line and the remedy."""
    known = FORMATS.get(format_name)
    if known is None:
        raise BadInput(
            f"--format: {format_name!r} is not permitted; permitted: {', '.join(FORMATS)}"
        )
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise BadInput(f"--trace {path}: {reason}; name a readable file") from None
    except UnicodeDecodeError:
        raise BadInput(
            f"--trace {path}: not a text file; unpack it first if it is compressed"
        ) from None
    # A seed of its own for each trace, so that no draw of the run depends on the trace's length.
    chance = Random(f"{seed}/trace")  # noqa: S311  simulated chance, meant to be repeatable
    arrivals = known.read(io.StringIO(text, newline=""), path.name, chance)
    if not arrivals:
        raise BadInput(f"--trace {path}: holds no request; give a trace with at least one")
    return Trace(path.name, hashlib.sha256(content).hexdigest(), arrivals)
