# SPDX-License-Identifier: Apache-2.0
"""What every trace becomes: arrivals in order of time, and nothing else of its format."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from autoscaler.errors import BadInput


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as the trace tells it: when it comes and how much work it brings.

    `at_s`: seconds since the trace began, >= 0. `service`: whom it asks, where the trace says so.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    service: str | None = None


# (lines, the file's name for messages, the run's chance) -> arrivals; raises `BadInput`.
Reader = Callable[[Iterable[str], str, Random], Sequence[Arrival]]


def malformed(name: str, line: int, problem: str, remedy: str) -> BadInput:
    """One line that says which line of which file cannot be used, and what would be right."""
    return BadInput(f"{name}: line {line}: {problem}; {remedy}")


def tokens(text: object, *, column: str, name: str, line: int) -> int:
    """A count of tokens: a whole number, 0 or more."""
    remedy = f"{column} must be a whole number, 0 or more"
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise malformed(name, line, f"{column} is {text!r}", remedy)
    try:
        count = int(text)
    except ValueError:
        raise malformed(name, line, f"{column} is {text!r}", remedy) from None
    if count < 0:
        raise malformed(name, line, f"{column} is {count}", remedy)
    return count
