# SPDX-License-Identifier: Apache-2.0
"""Waiting for what is to come, with a bound."""

import asyncio
from collections.abc import Callable
from time import monotonic

PATIENCE_S = 15.0  # how long a test waits for what must happen; it never decides an outcome


async def until(condition: Callable[[], object], what: str) -> None:
    """Return as soon as `condition` holds."""
    end_s = monotonic() + PATIENCE_S
    while not condition():
        if monotonic() > end_s:
            raise AssertionError(f"waited {PATIENCE_S:g} s in vain: {what}")
        await asyncio.sleep(0.005)
