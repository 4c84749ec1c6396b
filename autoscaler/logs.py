# SPDX-License-Identifier: Apache-2.0
"""Where a process's log lines go: to stderr, and never at the price of the process.

A disk that is full, or a pipe whose reader has left, costs lines. It must not cost a tick, a held
request or, through the guard, every replica.
"""

import sys
from contextlib import suppress


class StderrLines:
    """What structlog hands its lines to: one write each. A line that cannot be written is lost."""

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: stderr was closed
            if sys.stderr is not None:  # Python's own sign that there was none from the start
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()

    debug = info = warning = error = critical = exception = msg


def stderr_lines(*_: object) -> StderrLines:
    """For structlog's `logger_factory`."""
    return StderrLines()


def for_people() -> bool:
    """Whether someone reads stderr on a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
