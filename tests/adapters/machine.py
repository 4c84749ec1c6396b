# SPDX-License-Identifier: Apache-2.0
"""One machine for tests: real processes, activators that a test speaks for, bounded waits."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from autoscaler.adapters.local.cluster import LocalCluster
from autoscaler.adapters.local.replicas import LocalService, Site, Timings
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.routes import Endpoint
from autoscaler.core.signals import ServiceId
from autoscaler.ports import Refusal, ServiceView
from tests.adapters.builders import a_service_id
from tests.fakes import FakeActivators, WallClock

TOY = (sys.executable, "-I", "-S", str(Path(__file__).with_name("toy_worker.py")))
BRISK = Timings(
    probe_starting_s=0.03,
    probe_ready_s=0.05,
    probe_timeout_s=0.5,
    back_off_first_s=0.05,
    back_off_most_s=0.2,
    drain_look_s=0.02,
    drain_quiet_s=0.1,
)
BOUND_S = 20.0

T = TypeVar("T")


async def eventually(look: Callable[[], T | None], *, what: str) -> T:
    """Wait until `look` returns something true, and return it."""
    ends_s = time.monotonic() + BOUND_S
    while not (seen := look()):
        assert time.monotonic() < ends_s, f"waited {BOUND_S:g} s in vain: {what}"
        await asyncio.sleep(0.01)
    return seen


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_group(group: int) -> list[int]:
    """The processes of a group that run."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and alive(process.pid):
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


class Machine:
    """A `LocalCluster` with what it needs, and short questions to it."""

    def __init__(self, state_dir: Path, *, timings: Timings = BRISK) -> None:
        self.state_dir = state_dir
        self.log_dir = state_dir / "logs"
        self.activators = FakeActivators()
        self.changes: list[ServiceId] = []
        self.timings = timings
        self._cluster: LocalCluster | None = None

    async def up(self, *services: LocalService) -> LocalCluster:
        site = Site(clock=WallClock(), log_dir=self.log_dir, timings=self.timings)
        self._cluster = LocalCluster(
            services, site=site, activators=self.activators, on_change=self.changes.append
        )
        await self._cluster.start()
        return self._cluster

    async def down(self) -> None:
        if self._cluster is not None:
            await self._cluster.close(grace_s=0.2)

    @property
    def cluster(self) -> LocalCluster:
        assert self._cluster is not None
        return self._cluster

    def view(self, name: str = "toy") -> ServiceView:
        return self.cluster.view(a_service_id(name))

    async def scale(self, replicas: int, *, name: str = "toy") -> Refusal | None:
        view = self.view(name)
        return await self.cluster.scale(view.service, replicas, generation=view.generation)

    def replicas(self, name: str = "toy") -> tuple[Replica, ...]:
        return self.view(name).replicas

    def states(self, name: str = "toy") -> list[ReplicaState]:
        return [replica.state for replica in self.replicas(name)]

    def endpoints(self, name: str = "toy") -> dict[str, Endpoint]:
        route = self.activators.route(str(a_service_id(name)))
        return {endpoint.id: endpoint for endpoint in route.endpoints}

    async def until(self, *states: ReplicaState, name: str = "toy") -> tuple[Replica, ...]:
        """Wait until the replicas are in exactly these states."""
        wanted = sorted(states)
        await eventually(
            lambda: sorted(self.states(name)) == wanted,
            what=f"{[str(state) for state in wanted]}, have {self.replicas(name)}",
        )
        return self.replicas(name)
