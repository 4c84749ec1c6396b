# SPDX-License-Identifier: Apache-2.0
"""A child's end of `children.py`: tell the parent a line, and end when the parent does."""

import asyncio
import os
import sys
import threading


def tell(line: object) -> None:
    """One line to the parent, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def next_line() -> str:
    """The parent's next line; empty when there will be none."""
    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def parent_ended() -> None:
    """Wait until the parent closed our standard input, by will or by dying."""
    while await next_line():
        pass


def end_with_parent() -> None:
    """For a program that does not look at its standard input: end at once when the parent does."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
