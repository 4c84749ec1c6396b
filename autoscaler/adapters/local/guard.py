# SPDX-License-Identifier: Apache-2.0
"""No orphan: kills what a dead controller left behind, also after `kill -9` of the controller.

The guard is a small process of its own, this file run as a script, that reads a pipe from the
controller: `+ GROUP` and `- GROUP` lines say which process groups live, `.` that the controller
leaves in good order. The pipe ends when the controller does, whatever ended it; every group still
listed then gets SIGKILL.

Why a process and not PR_SET_PDEATHSIG: that reaches only the direct child, so a server's own child
processes would live on with the GPU; it fires when the *thread* that forked ends; and it needs a
fork that runs Python (2.2 ms in a controller of 62 MB, against 0.15 ms for vfork).

Only the standard library, and little of it: the script runs as `python -I -S`.
"""

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

# Stands in the environment of every child, so that one is found which started in the moment of the
# controller's death, or which left its group for a session of its own.
MARK = "TIDEGATE_GUARD"
# How long after the end such processes are looked for: one that is just being started carries the
# mark a few milliseconds after it has closed our pipe.
LINGER_S = 1.0
GOODBYE = ".\n"


class Guard:
    """The controller's end of the pipe. Call `ensure()` before a process is started."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(16)
        self._groups: set[int] = set()
        self._pid: int | None = None
        self._pipe: int | None = None

    @property
    def pid(self) -> int | None:
        return self._pid

    def ensure(self) -> None:
        """Start the guard, or start it anew if something killed it. Raises `RetryLater`."""
        if self._pid is not None and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            return
        self._pid = None
        self._hang_up()
        try:
            self._start()
        except OSError as error:
            from autoscaler.errors import RetryLater  # not at the top: the script stands alone

            raise RetryLater(
                f"cannot start the guard against orphans: {error}; is the machine out of processes "
                "or open files (ulimit -u, ulimit -n)?",
                after_s=1.0,
            ) from error

    def watch(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+ {group}\n")

    def release(self, group: int) -> None:
        """Call it before the group's leader is reaped: afterwards the number may be another's."""
        self._groups.discard(group)
        self._tell(f"- {group}\n")

    def close(self) -> None:
        """Let the guard end; it kills whatever was not released."""
        self._tell(GOODBYE)
        self._hang_up()
        if self._pid is not None:
            os.waitpid(self._pid, 0)
            self._pid = None

    def _start(self) -> None:
        reads, writes = os.pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", __file__, self.mark],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reads, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
                setpgroup=0,  # out of reach of a terminal's Ctrl-C and of a kill of our group
            )
        finally:
            os.close(reads)
        self._pipe = writes
        self._tell("".join(f"+ {group}\n" for group in sorted(self._groups)))

    def _tell(self, lines: str) -> None:
        if self._pipe is None:
            return
        with suppress(BrokenPipeError):  # it was killed: `ensure()` tells the next one all groups
            os.write(self._pipe, lines.encode())

    def _hang_up(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def groups_left(lines: Iterable[str]) -> tuple[set[int], bool]:
    """The groups that were named and not released, and whether the controller said goodbye."""
    left: set[int] = set()
    for line in lines:
        if line == GOODBYE:
            return left, True
        sign, _, group = line.partition(" ")
        if not group.endswith("\n"):  # cut off in the middle: the number may be incomplete
            continue
        (left.add if sign == "+" else left.discard)(int(group))
    return left, False


def marked(mark: str, *, name: str = MARK) -> list[int]:
    """The processes with `mark` in the environment they were started with; Linux only."""
    wanted = f"{name}={mark}".encode()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                if wanted in environment.read().split(b"\0"):
                    found.append(int(name))
    return found


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    left, in_good_order = groups_left(sys.stdin)
    for group in left:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    until_s = time.monotonic() + (0.0 if in_good_order else LINGER_S)
    while True:
        for pid in marked(sys.argv[1]):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= until_s:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main()
