# SPDX-License-Identifier: Apache-2.0
"""How a program of the lab runs: until SIGTERM or SIGINT, which cancel it."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


def run_until_signalled(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(_until_signalled(work))


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    for sent in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sent, task.cancel)
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
