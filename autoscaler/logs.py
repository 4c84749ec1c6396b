# SPDX-License-Identifier: Apache-2.0
"""Where a process's log lines go: to stderr, and never at the price of the process.

A disk that is full, or a pipe whose reader has left, costs lines. It must not cost a tick, a held
request or, through the guard, every replica.
"""

import sys
from contextlib import suppress

import structlog


class StderrLines:
    """What structlog hands its lines to: one write each. A line that cannot be written is lost."""

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: stderr was closed
            if sys.stderr is not None:  # Python's own sign that there was none from the start
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()

    debug = info = warning = error = critical = exception = msg


def configure() -> None:
    """One event a line: for people on a terminal, as JSON elsewhere. Called once a process."""
    for_people = sys.stderr is not None and sys.stderr.isatty()
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            render,
        ],
        logger_factory=lambda *_: StderrLines(),
    )
