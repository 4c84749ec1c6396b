# SPDX-License-Identifier: Apache-2.0
"""Which core is whose, and what the machine is.

A proxy has one core for itself; client, backend and harness have the others. On a machine with two
cores they share the second, on one with one core everything shares it and the report says so.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoscaler.errors import GiveUp

_SYSTEM_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the proxies, of the backend and of the client."""

    proxy: int
    backend: int
    client: int

    @property
    def proxy_shares(self) -> bool:
        """Whether the proxy's core also carries the client: figures are then of little use."""
        return self.proxy in (self.backend, self.client)

    @property
    def client_shares(self) -> bool:
        return self.backend == self.client


def divide(siblings: Mapping[int, frozenset[int]]) -> Cores:
    """Share out the cores that may be used.

    `siblings`: each core with those on the same silicon (its hyperthreads), itself included. The
    proxy gets the last core; the others avoid its hyperthreads while there are other cores.
    """
    cores = sorted(siblings)
    proxy = cores[-1]
    apart = [c for c in cores if c not in siblings[proxy] and c != proxy]
    others = apart or [c for c in cores if c != proxy] or [proxy]
    client = others[-1]
    return Cores(
        proxy=proxy,
        backend=next((c for c in others if c not in siblings[client] and c != client), others[0]),
        client=client,
    )


def usable_cores() -> Mapping[int, frozenset[int]]:
    """The cores that this process may use, each with its hyperthreads. Linux only."""
    if not hasattr(os, "sched_getaffinity"):
        raise GiveUp(
            f"cannot pin processes to cores on {platform.system()}: run `tidegate bench` on Linux"
        )
    return {core: _siblings(core) for core in os.sched_getaffinity(0)}


def _siblings(core: int) -> frozenset[int]:
    listed = _SYSTEM_CPUS / f"cpu{core}" / "topology" / "thread_siblings_list"
    try:
        return cores_of_list(listed.read_text())
    except FileNotFoundError:
        return frozenset({core})


def cores_of_list(text: str) -> frozenset[int]:
    """The numbers of the kernel's list format: `0-2,5` is 0, 1, 2 and 5."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def cores_busy_s() -> dict[int, float]:
    """For how long each core has not been idle since the system began; steps of 10 ms.

    Source: proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice;
    the last two are part of the first two.
    """
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    busy_s = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _idle, _iowait, *rest = (int(tick) for tick in ticks[:8])
            busy_s[int(name.removeprefix("cpu"))] = (user + nice + system + sum(rest)) * tick_s
    return busy_s


def hardware() -> dict[str, str | int]:
    """What the figures were taken on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "machine": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Processor"):
            return value.strip()
    return platform.processor() or platform.machine()
