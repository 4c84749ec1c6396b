# SPDX-License-Identifier: Apache-2.0
"""How every `tidegate bench` runs and ends: what goes wrong in its own words, and an exit code."""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import typer
from rich.console import Console, RenderableType

from autoscaler.errors import BadInput, TidegateError

T = TypeVar("T")

PIPED_WIDTH: Final = 110
TERMINATED: Final = 128 + signal.SIGTERM


def complain(name: str, problems: Iterable[str]) -> None:
    """A line each on stderr; `name`: which bench."""
    for problem in problems:
        typer.echo(f"tidegate bench {name}: {problem}", err=True)


@contextmanager
def ending(name: str) -> Iterator[None]:
    """Errors within end the command: bad input by 2, what failed by 1, SIGTERM by 143."""
    try:
        yield
    except BadInput as bad:
        complain(name, bad.problems)
        raise typer.Exit(2) from bad
    except TidegateError as failed:
        complain(name, [str(failed)])
        raise typer.Exit(1) from failed
    except asyncio.CancelledError as told:
        complain(name, ["told to end; nothing is reported"])
        raise typer.Exit(TERMINATED) from told


def run(work: Coroutine[None, None, T]) -> T:
    """Run `work`; end it in good order, with all it started, when the process is told to end."""
    return asyncio.run(_until_terminated(work))


async def _until_terminated(work: Coroutine[None, None, T]) -> T:
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def write_json(document: Any) -> None:
    """One JSON object on stdout."""
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")


def show(tables: RenderableType) -> None:
    """For a person, also where stdout is a pipe."""
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(tables)
