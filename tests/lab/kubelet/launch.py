# SPDX-License-Identifier: Apache-2.0
"""Becomes a container's program: run as a script with a description of it, it ends in `execve`.

The program sees the machine's own files, with the pod's volumes over them. Whatever a mount path
lacks is made on a tmpfs of the program's own mount namespace, so nothing is left behind on the
machine. It runs as root and in the machine's network; its own are mounts, host name and cgroup.

Only the standard library, and little of it: the script runs as `python -I -S`, in about 20 ms.
"""

import ctypes
import json
import os
import stat
import sys
from typing import Any

CANNOT_START = 128  # the exit code with which a container runtime says so

CLONE_NEWNS, CLONE_NEWUTS = 0x20000, 0x4000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 1, 32, 4096, 8192, 16384, 1 << 18
KEPT = ("TIDEGATE_GUARD", "TIDEGATE_PROCESS")  # by these the kubelet finds what a program started

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        described: dict[str, Any] = json.load(file)
    env = described["env"] | {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        if described["cgroup"]:
            with open(f"{described['cgroup']}/cgroup.procs", "w", encoding="utf-8") as procs:
                procs.write(str(os.getpid()))
        if described["join"]:
            enter(described["join"])
        else:
            be_apart(described)
        os.chdir(described["cwd"])
        argv = described["argv"]
        os.environ["PATH"] = env["PATH"]  # where execvpe looks
        os.execvpe(argv[0], argv, env)  # noqa: S606  a container's command is the pod's to say
    except OSError as error:
        sys.stderr.write(f"cannot start the container: {error}\n")
        sys.exit(CANNOT_START)


def enter(pid: int) -> None:
    """Go where the program `pid` is."""
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
    for name in ("mnt", "uts"):
        space = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        _checked(libc.setns(space, 0), f"cannot enter the container's {name} namespace")
        os.close(space)
    os.fchdir(root)
    os.chroot(".")


def be_apart(described: dict[str, Any]) -> None:
    _checked(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS), "cannot leave the machine's namespaces")
    name = described["hostname"].encode()
    _checked(libc.sethostname(name, len(name)), "cannot set the host name")
    mount("none", "/", MS_REC | MS_PRIVATE)
    places = Places(described["scratch"])
    for source, target, read_only in sorted(described["mounts"], key=lambda one: len(one[1])):
        places.put(source, target, read_only=read_only)


class Places:
    """Where volumes go. `scratch` is an empty folder to build on."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._own: set[int] = set()  # devices made here: only on them entries may be added

    def put(self, source: str, target: str, *, read_only: bool) -> None:
        target = os.path.realpath(target)
        if not os.path.exists(target):
            self._make_room(target, folder=os.path.isdir(source))
        mount(source, target, MS_BIND | MS_REC)
        if read_only:
            mount("none", target, MS_BIND | MS_REMOUNT | MS_RDONLY)

    def _make_room(self, target: str, *, folder: bool) -> None:
        above = os.path.dirname(target)
        while not os.path.isdir(above):
            above = os.path.dirname(above)
        if os.stat(above).st_dev not in self._own:
            self._copy(above)
        os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
        if not folder:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))

    def _copy(self, folder: str) -> None:
        """Put a tmpfs in the place of `folder`, with all that is in it bound into it."""
        new = self._scratch
        mount("tmpfs", new, 0, kind="tmpfs")
        self._own.add(os.stat(new).st_dev)
        with os.scandir(folder) as entries:
            for entry in entries:
                _same(entry, os.path.join(new, entry.name))
        os.chmod(new, stat.S_IMODE(os.stat(folder).st_mode))
        if folder == "/":
            os.chroot(new)
            os.chdir("/")
        else:
            mount(new, folder, MS_MOVE)


def _same(entry: "os.DirEntry[str]", at: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), at)
        return
    if entry.is_dir():
        os.mkdir(at)
    else:
        os.close(os.open(at, os.O_CREAT | os.O_WRONLY))
    mount(entry.path, at, MS_BIND | MS_REC)


def mount(source: str, target: str, flags: int, *, kind: str = "none") -> None:
    done = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)
    _checked(done, f"cannot mount {source} on {target}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    main()
