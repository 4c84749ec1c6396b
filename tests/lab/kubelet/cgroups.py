# SPDX-License-Identifier: Apache-2.0
"""A cgroup for every pod: in it, what listens on "any address" listens on the pod's own.

Two BPF programs of ten instructions stand on the cgroup. Binding to 0.0.0.0 or 127.0.0.1 becomes
binding to the pod's IP, and connecting to 127.0.0.1 becomes connecting to the pod's IP (not to the
API server's port). So pods that share one network have a localhost of their own, and two of them
may listen on the same port. Where the kernel or the sandbox refuses, pods run without: then a
program has to bind `$POD_IP` by itself, and the kubelet says so once in its log.
"""

import ctypes
import os
import platform
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
PROG_LOAD, PROG_ATTACH = 5, 8
CGROUP_SOCK_ADDR = 18
INET4_BIND, INET4_CONNECT = 8, 10
ANY = "0.0.0.0"  # noqa: S104  an address to look for, not to listen on
LOCALHOST = "127.0.0.1"

PREFIX = "tidegate-lab-"
GONE_WITHIN_S = 1.0  # after SIGKILL

# struct bpf_sock_addr: where the IPv4 address and the port lie, both in network order
USER_IP4, USER_PORT = 4, 24
LOAD, STORE, SET, SKIP_IF_EQUAL, JUMP, EXIT = 0x61, 0x63, 0xB4, 0x16, 0x05, 0x95
CONTEXT, SEEN = 1, 2  # registers


def _step(op: int, *, to: int = 0, of: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", op, to | of << 4, off, imm)


def _ip(address: str) -> int:
    number: int = struct.unpack("<i", socket.inet_aton(address))[0]
    return number


def _redirect(addresses: Sequence[str], *, ip: str, except_port: int) -> bytes:
    """Replace any of `addresses` by `ip`; return 1, which lets the call go on."""
    leave = [_step(SET, to=0, imm=1), _step(EXIT)]
    change = [_step(SET, to=SEEN, imm=_ip(ip)), _step(STORE, to=CONTEXT, of=SEEN, off=USER_IP4)]
    steps = [
        _step(LOAD, to=SEEN, of=CONTEXT, off=USER_PORT),
        _step(SKIP_IF_EQUAL, to=SEEN, imm=socket.htons(except_port), off=4 + len(addresses)),
        _step(LOAD, to=SEEN, of=CONTEXT, off=USER_IP4),
    ]
    steps += [
        _step(SKIP_IF_EQUAL, to=SEEN, imm=_ip(addresses[-left]), off=left)
        for left in range(len(addresses), 0, -1)
    ]
    steps.append(_step(JUMP, off=len(change)))
    return b"".join(steps + change + leave)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(attributes, 128)
    answer: int = libc.syscall(BPF_SYSCALL[platform.machine()], command, room, len(room))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return answer


@contextmanager
def _loaded(code: bytes, hook: int) -> Iterator[int]:
    steps = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    program = _bpf(
        PROG_LOAD,
        struct.pack(
            "<IIQQIIQII16sII",
            CGROUP_SOCK_ADDR,
            len(code) // 8,
            ctypes.addressof(steps),
            ctypes.addressof(licence),
            *(0, 0, 0, 0, 0),  # no verifier log
            b"tidegate_lab",
            0,
            hook,
        ),
    )
    try:
        yield program
    finally:
        os.close(program)


class PodCgroups:
    """The cgroups of one node's pods, under a cgroup of the node's own."""

    def __init__(self, name: str, *, api_port: int) -> None:
        self._api_port = api_port
        self._base: Path | None = None
        try:
            mounted = _cgroup2()
            if mounted is None:
                raise OSError("no cgroup2 file system is mounted")
            _remove_old(mounted)
            base = mounted / f"{PREFIX}{name}-{os.getpid()}"
            base.mkdir(exist_ok=True)
            self._base = base
            self._try()
        except (OSError, KeyError) as error:
            self.close()
            log.warning("pods_share_any_address", why=str(error), remedy="bind $POD_IP")

    def make(self, name: str, ip: str) -> str:
        """A pod's cgroup; "" where the machine has none to give."""
        if self._base is None:
            return ""
        made = self._base / name
        made.mkdir(exist_ok=True)
        opened = os.open(made, os.O_RDONLY)
        try:
            for hook, addresses in ((INET4_BIND, (ANY, LOCALHOST)), (INET4_CONNECT, (LOCALHOST,))):
                code = _redirect(addresses, ip=ip, except_port=self._api_port)
                with _loaded(code, hook) as program:
                    _bpf(PROG_ATTACH, struct.pack("<IIII", opened, program, hook, 0))
        finally:
            os.close(opened)
        return str(made)

    def kill(self, path: str) -> None:
        """Kill whatever is left in a pod's cgroup."""
        if path:
            with suppress(OSError):
                Path(path, "cgroup.kill").write_text("1")

    def remove(self, path: str) -> None:
        """Call it when the pod has ended; one that is not empty yet goes with `close`."""
        if path:
            with suppress(OSError):
                os.rmdir(path)

    def close(self) -> None:
        """Kill whatever is left in any pod, and remove all."""
        if self._base is not None:
            self.kill(str(self._base))
            until_s = time.monotonic() + GONE_WITHIN_S
            while not _remove_tree(self._base) and time.monotonic() < until_s:
                time.sleep(0.01)
            self._base = None

    def _try(self) -> None:
        path = self.make("try", LOCALHOST)
        self.remove(path)


def _remove_tree(folder: Path) -> bool:
    """Whether it is gone; a cgroup with processes in it stays."""
    try:
        for inner in folder.iterdir():
            if inner.is_dir():
                inner.rmdir()
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _remove_old(mounted: Path) -> None:
    """What kubelets left that were killed: their pods' processes went with them."""
    for left in mounted.glob(f"{PREFIX}*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            _remove_tree(left)


def _cgroup2() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None
