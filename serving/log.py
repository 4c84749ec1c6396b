# SPDX-License-Identifier: Apache-2.0
"""One JSON line an event, on stderr.

Small on purpose: a logging framework would cost the start 60 ms.
"""

import logging
import sys
from datetime import UTC, datetime

import orjson


def event(name: str, **fields: object) -> None:
    """Write one line; `fields` carry their unit at the end of their name."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = orjson.dumps({"at": now, "event": name, **fields}, default=str)
    sys.stderr.write(line.decode() + "\n")
    sys.stderr.flush()


class _Lines(logging.Handler):
    """What libraries log, as events."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info is not None:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        event(record.levelname.lower(), **fields)


def capture_libraries() -> None:
    """Route warnings, and what libraries log at WARNING or above, to `event`."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()], force=True)
    logging.captureWarnings(True)
