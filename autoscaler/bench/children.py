# SPDX-License-Identifier: Apache-2.0
"""Processes that the benchmark starts: each on a core of its own, none outlives the benchmark.

A child prints one line when it is ready, ends when its standard input does, and is killed if it
does not. What it writes on standard error is kept, and shown when it fails.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO

from autoscaler.errors import GiveUp

_START_S = 20.0
_STOP_S = 5.0
_SHOWN_LINES = 12
_LONGEST_LINE_BYTES = 1 << 20


class Child:
    """One running process that answers lines with lines."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def ask(self, line: str, *, within_s: float) -> str:
        """Write one line, return the line that comes back."""
        if self._process.stdin is None:
            raise GiveUp(f"cannot write to {self.name}: it was started without standard input")
        self._process.stdin.write(line.encode() + b"\n")
        return await self.line(within_s=within_s)

    async def line(self, *, within_s: float) -> str:
        """The next line of standard output; raises `GiveUp` with the child's last words if none."""
        if self._process.stdout is None:
            raise GiveUp(f"cannot read from {self.name}: it was started without standard output")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        except TimeoutError:
            line = b""
        if not line.endswith(b"\n"):
            raise GiveUp(
                f"{self.name} said nothing within {within_s:g} s (exit status "
                f"{self._process.returncode}); its last words:\n{self.last_words()}"
            )
        return line.decode().rstrip("\n")

    def last_words(self) -> str:
        """The end of what it wrote on standard error."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_SHOWN_LINES:])

    async def terminate(self, *, within_s: float) -> None:
        """Have it end in good order, if it does so in time."""
        if not self.ended:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), within_s)

    async def stop(self) -> None:
        """Close its input, ask it to end, and kill it if it will not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        for end in (self._process.terminate, self._process.kill):
            if self._process.returncode is not None:
                break
            end()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                continue
        self._log.close()


@asynccontextmanager
async def child(
    name: str,
    argv: Sequence[str],
    *,
    core: int | None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Start `argv` on one core, or on ours (None); stop it when the block ends."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - stop() closes it
    ours = os.sched_getaffinity(0)
    # The child starts with our cores: set before its first thread.
    os.sched_setaffinity(0, ours if core is None else {core})
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=_LONGEST_LINE_BYTES,
            env={**os.environ, **(environment or {})},
        )
    finally:
        os.sched_setaffinity(0, ours)
    started = Child(name, process, log)
    try:
        yield started
    finally:
        await started.stop()


@asynccontextmanager
async def listening_child(
    name: str,
    argv: Sequence[str],
    *,
    core: int,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[Child, int]]:
    """Start a child that prints the port on which it listens; that port comes with it."""
    async with child(name, argv, core=core, environment=environment) as started:
        line = await started.line(within_s=_START_S)
        if not line.isdecimal():
            raise GiveUp(f"{name} was to print its port and printed {line!r}")
        yield started, int(line)
