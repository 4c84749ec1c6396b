# SPDX-License-Identifier: Apache-2.0
"""Keeps one process alive that is no replica, such as an activator: nothing probes or counts it."""

import asyncio
from collections.abc import Mapping

import structlog

from autoscaler.adapters.local.life import PROVEN_AFTER_S, back_off_s
from autoscaler.adapters.local.process import ChildProcess, Launch, last_words
from autoscaler.adapters.local.replicas import Site
from autoscaler.errors import TidegateError

log = structlog.get_logger()


class KeptProcess:
    """Started again with back-off whenever it ends, until `stop()`."""

    def __init__(
        self,
        name: str,
        command: tuple[str, ...],
        *,
        site: Site,
        env: Mapping[str, str] | None = None,
        stop_grace_s: float = 5.0,
    ) -> None:
        """`stop_grace_s`: from SIGTERM to SIGKILL."""
        self.name = name
        self.starts = 0
        self.why = ""  # how it ended the last time
        self._launch = Launch(command, log=site.log_dir / f"{name}.log", env=env or {})
        self._site = site
        self._stop_grace_s = stop_grace_s
        self._child: ChildProcess | None = None
        self._stopped = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None or self._child.ended else self._child.pid

    def start(self) -> None:
        if self._life is None:
            self._life = asyncio.create_task(self._run(), name=f"keeps {self.name}")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after the grace; returns when it is gone."""
        self._stopped.set()
        if self._child is not None:
            await self._child.stop(grace_s=self._stop_grace_s)
        if self._life is not None:
            await self._life

    async def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            began_s = self._site.clock.now_s()
            await self._once()
            if self._stopped.is_set():
                return
            lasted = self._site.clock.now_s() - began_s >= PROVEN_AFTER_S
            failures = 1 if lasted else failures + 1
            timings = self._site.timings
            pause_s = back_off_s(
                failures, first_s=timings.kept_back_off_first_s, most_s=timings.kept_back_off_most_s
            )
            log.warning("a process ended", name=self.name, why=self.why, next_start_s=pause_s)
            await self._wait(pause_s)

    async def _once(self) -> None:
        """From one start to the end that followed."""
        self.starts += 1
        try:
            self._child = child = ChildProcess(self._launch, guard=self._site.guard)
        except TidegateError as error:
            self.why = str(error)
            return
        try:
            while not child.ended:
                self._site.tend(child)
                await asyncio.wait({child.exit}, timeout=self._site.timings.probe_ready_s)
        finally:  # also when this task is cancelled: nothing may be left running
            child.kill()
        self.why = f"{child.exit.result()}: {last_words(child.log) or 'it said nothing'}"

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._stopped.wait()
        except TimeoutError:
            return
