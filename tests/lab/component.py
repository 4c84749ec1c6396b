# SPDX-License-Identifier: Apache-2.0
"""One process of the lab: its command, its log, and its end with whoever started it."""

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from autoscaler.adapters.local.guard import MARK, Guard
from tests.lab.network import PATH

GUARD: Final = Guard()  # kills this process's components if it dies


@dataclass(slots=True)
class Component:
    """May be started again after it was stopped; its log goes on."""

    name: str
    command: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def ended(self) -> int | None:
        """The exit status of one that ended without being told to."""
        return None if self.process is None else self.process.poll()

    def start(self) -> None:
        GUARD.ensure()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  what the lab is made of
                self.command,
                cwd=self.folder,
                env={**os.environ, "PATH": PATH, MARK: GUARD.mark, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        GUARD.watch(self.process.pid)

    def stop(self, *, kill: bool = False, within_s: float = 15.0) -> None:
        """End it; one that does not end in time is killed."""
        if self.process is None:
            return
        GUARD.release(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(within_s)
        self.process = None

    def tail(self, lines: int = 25) -> str:
        return tail(self.log, lines) if self.log.exists() else ""


def tail(log: Path, lines: int) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
