# SPDX-License-Identifier: Apache-2.0
"""Where the extender's log lines go: to stderr, and never at the price of a pod.

A disk that is full or a reader that left costs lines; it must not end a watch.
"""

import sys
from contextlib import suppress

import structlog


class _Stderr:
    """What structlog hands its lines to. stderr is looked up at each, for it may be replaced."""

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it was closed
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = exception = msg


def configure() -> None:
    """One event a line: for people on a terminal, as JSON elsewhere."""
    for_people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: _Stderr(),
    )
