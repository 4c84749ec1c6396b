# SPDX-License-Identifier: Apache-2.0
"""One child process in a group of its own: started, signalled and reaped here and nowhere else.

The group is signalled as a whole. When its leader ends, what is left of the group is killed before
the leader is reaped, so a group's number is never signalled after it could belong to another. What
left the group for a session of its own is found by its environment, and killed then too.
"""

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from autoscaler.adapters.local.guard import MARK, Guard, marked
from autoscaler.errors import GiveUp

LOG_MAX_BYTES = 8 * 1024 * 1024
LOG_KEPT_BYTES = 1024 * 1024  # of a log that grew past the bound; they move to `NAME.log.1`
LAST_WORDS_MAX = 200  # characters of a log's last line that a reason quotes
FAMILY = "TIDEGATE_PROCESS"  # in the environment of a child and of all that it starts
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
POLL_S = 0.05  # how often an exit is looked for where the kernel has no pidfd


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `env` is added to the controller's own; stdout and stderr go to `log`."""

    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: with a code, or by a signal."""

    code: int | None = None
    by: str = ""

    def __str__(self) -> str:
        return f"killed by {self.by}" if self.by else f"exit code {self.code}"


def exit_of(status: int) -> Exit:
    """Read a status as `subprocess` gives it: a negative one is the number of a signal."""
    if status >= 0:
        return Exit(code=status)
    try:
        return Exit(by=signal.Signals(-status).name)
    except ValueError:
        return Exit(by=f"signal {-status}")


class ChildProcess:
    """A running process. Starting it takes the caller about 0.2 ms.

    Raises `GiveUp` where what is to be started is at fault, `RetryLater` where the machine is.
    """

    def __init__(self, launch: Launch, *, guard: Guard) -> None:
        guard.ensure()
        self.log = launch.log
        self._guard = guard
        self._family = secrets.token_hex(8)
        self._popen = _spawn(launch, marks={MARK: guard.mark, FAMILY: self._family})
        self.pid = self._popen.pid
        guard.watch(self.pid)
        loop = asyncio.get_running_loop()
        self.exit: asyncio.Future[Exit] = loop.create_future()
        self._watch(loop)

    @property
    def ended(self) -> bool:
        return self.exit.done()

    def terminate(self) -> None:
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)

    async def stop(self, *, grace_s: float) -> Exit:
        """SIGTERM to the group, SIGKILL once the grace is over; returns when it is reaped."""
        self.terminate()
        await asyncio.wait({self.exit}, timeout=grace_s)
        self.kill()
        return await asyncio.shield(self.exit)

    def bound_log(self) -> None:
        """Keep the last part of a log that grew too long; lines written meanwhile may be lost."""
        with suppress(OSError):  # a full disk: the next look tries again
            if self.log.stat().st_size > LOG_MAX_BYTES:
                self.log.with_suffix(".log.1").write_bytes(_tail(self.log, LOG_KEPT_BYTES))
                os.truncate(self.log, 0)

    def _signal_group(self, sent: signal.Signals) -> None:
        if not self.exit.done():
            # macOS answers EPERM for a group of which only the zombie leader is left.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, sent)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if sys.platform == "linux":
            with suppress(OSError):  # a sandbox may forbid it
                pidfd = os.pidfd_open(self.pid)
                loop.add_reader(pidfd, self._reap, pidfd)
                return
        self._poll()

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            asyncio.get_running_loop().call_later(POLL_S, self._poll)
        else:
            self._reap()

    def _reap(self, pidfd: int | None = None) -> None:
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self.kill()  # the rest of the group; its leader is a zombie still, so the number is ours
        self._guard.release(self.pid)
        status = self._popen.wait()
        if not self.exit.done():
            self.exit.set_result(exit_of(status))
        asyncio.get_running_loop().run_in_executor(None, _kill_family, self._family)


def _kill_family(family: str) -> None:
    """Kill what a child that has ended left running; on a thread, as it looks at every process."""
    for pid in marked(family, name=FAMILY):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _spawn(launch: Launch, *, marks: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    what = f"cannot start {launch.command[0]!r}"
    try:
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    except OSError as error:
        raise GiveUp(f"{what}: its log cannot be written: {error}; make room or mend it") from error
    try:
        return subprocess.Popen(  # noqa: S603  what to run is the user's to say
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **launch.env, **marks},
            cwd=launch.cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if launch.cwd is not None and not launch.cwd.is_dir():
            raise GiveUp(f"{what}: its working directory {launch.cwd} does not exist") from error
        raise GiveUp(f"{what}: no such command; give its full path or mend PATH") from error
    except PermissionError as error:
        raise GiveUp(f"{what}: not permitted; is it executable (chmod +x)?") from error
    except (OSError, ValueError) as error:
        raise GiveUp(f"{what}: {error}") from error
    finally:
        os.close(log)


def last_words(log: Path) -> str:
    """The last line of a log with something on it, shortened, on one line; "" if there is none."""
    try:
        lines = _tail(log, 4096).decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = (COLOUR.sub("", line).strip() for line in reversed(lines))
    line = "".join(sign if sign.isprintable() else " " for sign in next(filter(None, said), ""))
    return line if len(line) <= LAST_WORDS_MAX else line[: LAST_WORDS_MAX - 1] + "…"


def _tail(path: Path, size_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - size_bytes, 0))
        return file.read(size_bytes)


class FreePorts:
    """Ports that the kernel says are free, none given twice in a row.

    Another process may take one before its replica listens there: the replica then fails to bind,
    ends, and its next start gets another port.
    """

    def __init__(self, *, remembered: int = 256) -> None:
        self._given: deque[int] = deque(maxlen=remembered)

    def take(self, host: str) -> int:
        while True:
            with socket.socket(_family(host)) as asked:
                asked.bind((host, 0))
                port: int = asked.getsockname()[1]
            if port not in self._given:
                self._given.append(port)
                return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
