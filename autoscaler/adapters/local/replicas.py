# SPDX-License-Identifier: Apache-2.0
"""What moves one replica through its life: start, probe, restart, drain. Only this file starts one.

A replica takes requests while its route lists it; `LocalReplica.endpoint` says whether and how.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from autoscaler.adapters.local.guard import Guard
from autoscaler.adapters.local.life import Event, back_off_s, begin, not_ready, start_again, step
from autoscaler.adapters.local.process import ChildProcess, FreePorts, Launch, last_words
from autoscaler.adapters.plain_http import At, NoAnswer, get
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.routes import Endpoint
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.errors import RetryLater, TidegateError
from autoscaler.ports import Clock

REPLICA_HOST = "127.0.0.1"  # replicas are reached through the activator only
PROBE_MAX_BYTES = 64 * 1024  # only the status is wanted


@dataclass(frozen=True, slots=True)
class LocalService:
    """One service of this machine: what clients connect to, and what a replica of it is.

    `host` and `port` are where the activator listens for its clients; replicas get a free loopback
    port each, in `PORT`, and wherever `command` says `{port}` or `{host}`.
    """

    service: ServiceId
    policy: ServicePolicy
    port: int
    command: tuple[str, ...]
    host: str = "127.0.0.1"
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ready_path: str = "/v2/health/ready"
    metrics_path: str | None = None  # where its engine tells of queues and tokens; None: nowhere
    drain_grace_s: float = 30.0  # how long a replica may still finish requests
    stop_grace_s: float = 10.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True, slots=True)
class Timings:
    """How often replicas are looked at, and how long one waits for them; seconds."""

    probe_first_s: float = 0.02
    probe_starting_s: float = 0.2  # at most; see `next_look_s`
    probe_ready_s: float = 1.0
    probe_timeout_s: float = 2.0
    silent_after: int = 3  # probes in a row
    back_off_first_s: float = 1.0
    back_off_most_s: float = 60.0
    # While an activator is down nobody listens for its services' clients.
    kept_back_off_first_s: float = 0.05
    kept_back_off_most_s: float = 5.0
    drain_look_s: float = 0.05
    # No request in flight for this long: also one sent just before the route changed has arrived.
    drain_quiet_s: float = 0.3


@dataclass(frozen=True, slots=True)
class Site:
    """What all replicas of one machine share."""

    clock: Clock
    log_dir: Path
    timings: Timings = Timings()
    guard: Guard = field(default_factory=Guard)
    ports: FreePorts = field(default_factory=FreePorts)

    def tend(self, child: ChildProcess) -> None:
        """What is due now and then while a process runs."""
        child.bound_log()
        with suppress(RetryLater):  # the machine is out of something; the next look tries again
            self.guard.ensure()


@dataclass(frozen=True, slots=True)
class Owner:
    """What a replica needs of the service it belongs to."""

    next_id: Callable[[], str]
    in_flight: Callable[[str], int | NoReading]  # requests that the endpoint of this id still has
    changed: Callable[[], None]  # called whenever the state or the endpoint changed


class LocalReplica:
    """One of the n that a service was asked to have."""

    def __init__(self, spec: LocalService, *, site: Site, owner: Owner) -> None:
        self._spec = spec
        self._site = site
        self._owner = owner
        self._life = begin(owner.next_id(), asked_at_s=site.clock.now_s())
        self._child: ChildProcess | None = None
        self._port = 0
        self._misses = 0
        self._dismissed = False
        self._stopping = False
        self._nudged = asyncio.Event()  # something happened that the next look should not wait for

    @property
    def report(self) -> Replica:
        return self._life.replica

    @property
    def pid(self) -> int | None:
        return None if self._child is None or self._child.ended else self._child.pid

    @property
    def endpoint(self) -> Endpoint | None:
        """Where requests go; `draining` also while a replica that was ready does not answer."""
        if self._child is None or self._child.ended or self.report.ready_at_s is None:
            return None
        return Endpoint(
            self.report.id,
            REPLICA_HOST,
            self._port,
            slots=self._spec.policy.slots,
            draining=self._life.state is not ReplicaState.READY,
        )

    async def run(self) -> None:
        """Start, watch and start again; returns once dismissed and gone."""
        while not self._dismissed:
            self._start()
            if self._child is not None:
                await self._live(self._child)
            if await self._wanted_again():
                next_id, now_s = self._owner.next_id(), self._site.clock.now_s()
                self._life = start_again(self._life, next_id, now_s=now_s)
                self._owner.changed()

    def dismiss(self) -> None:
        """No longer wanted: it gets no new request, finishes what it has, and ends."""
        if not self._dismissed:
            self._dismissed = True
            self._step(Event.DISMISSED, "no longer needed")
            self._nudged.set()

    def recall(self) -> bool:
        """Wanted again; false if it is past that, having been told to stop."""
        if not self._dismissed or self._stopping or self.endpoint is None:
            return False
        self._dismissed = False
        self._step(Event.RECALLED, "needed again")
        self._nudged.set()
        return True

    def kill(self) -> None:
        """Now, without grace."""
        self.dismiss()
        self._stopping = True
        if self._child is not None:
            self._child.kill()

    def _start(self) -> None:
        self._child, self._misses, self._stopping = None, 0, False
        try:
            self._port = self._site.ports.take(REPLICA_HOST)
            self._child = ChildProcess(self._launch(), guard=self._site.guard)
        except (TidegateError, OSError) as error:  # OSError: no port, no open file is to be had
            self._step(Event.ENDED, str(error))
        else:
            self._child.exit.add_done_callback(lambda _: self._nudged.set())

    def _launch(self) -> Launch:
        spec, replica_id = self._spec, self.report.id
        return Launch(
            command=tuple(
                part.replace("{port}", str(self._port)).replace("{host}", REPLICA_HOST)
                for part in spec.command
            ),
            log=self._site.log_dir / spec.service.name / f"{replica_id}.log",
            env={
                **spec.env,
                "PORT": str(self._port),
                "HOST": REPLICA_HOST,
                "TIDEGATE_SERVICE": spec.service.name,
                "TIDEGATE_REPLICA": replica_id,
            },
            cwd=spec.cwd,
        )

    async def _live(self, child: ChildProcess) -> None:
        """From its process being there to the process being gone."""
        try:
            while not child.ended:
                if self._dismissed:
                    await self._drain(child)
                else:
                    await self._look(child)
        finally:  # also when this task is cancelled: nothing may be left running
            child.kill()
        if self._life.state in {ReplicaState.STARTING, ReplicaState.READY}:
            self._step(Event.ENDED, _in_its_own_words(child))
        else:
            self._owner.changed()

    async def _look(self, child: ChildProcess) -> None:
        """Probe once, judge, and wait until the next look is due."""
        miss = await self._probe()
        if child.ended or self._dismissed:
            return
        self._misses = 0 if miss is None else self._misses + 1
        timings = self._site.timings
        if self._life.state is ReplicaState.READY:
            if self._misses >= timings.silent_after:
                self._step(Event.SILENT, f"{self._misses} readiness probes in a row failed: {miss}")
        elif miss is None:
            self._step(Event.ANSWERED)
        elif self._in_state_for_s() >= self._spec.policy.cold_start_timeout_s and self._idle():
            await self._give_up_on(child, miss)
            return
        else:
            self._life = not_ready(self._life, miss)  # no change of state: nobody is woken
        self._site.tend(child)
        ready = self._life.state is ReplicaState.READY
        await self._rest(
            timings.probe_ready_s if ready else next_look_s(self._in_state_for_s(), timings=timings)
        )

    def _idle(self) -> bool:
        """Whether it has no request for sure; one may be what keeps it from answering probes."""
        return self.report.ready_at_s is None or self._owner.in_flight(self.report.id) == 0

    async def _give_up_on(self, child: ChildProcess, miss: str) -> None:
        limit_s = self._spec.policy.cold_start_timeout_s
        self._step(Event.OVERDUE, f"not ready within cold-start-timeout={limit_s:g}s: {miss}")
        await child.stop(grace_s=self._spec.stop_grace_s)

    async def _probe(self) -> str | None:
        """None when ready, else why not."""
        at = At(REPLICA_HOST, self._port, self._spec.ready_path)
        timeout_s = self._site.timings.probe_timeout_s
        answer = await get(at, timeout_s=timeout_s, max_bytes=PROBE_MAX_BYTES)
        if isinstance(answer, NoAnswer):
            return f"{at} {answer.why}"
        return None if 200 <= answer.status < 300 else f"{at} answered {answer.status}"

    async def _drain(self, child: ChildProcess) -> None:
        """Wait for its last requests, then stop it; returns early if it ended or was recalled."""
        if self.endpoint is not None:
            await self._last_requests(child)
        if self._dismissed:
            self._stopping = True
            await child.stop(grace_s=self._spec.stop_grace_s)

    async def _last_requests(self, child: ChildProcess) -> None:
        timings = self._site.timings
        ends_s = self._site.clock.now_s() + self._spec.drain_grace_s
        quiet_since_s = None
        while self._dismissed and not child.ended and not self._stopping:
            now_s = self._site.clock.now_s()
            if self._owner.in_flight(self.report.id) != 0:  # no reading is not zero
                quiet_since_s = None
            elif quiet_since_s is None:
                quiet_since_s = now_s
            elif now_s - quiet_since_s >= timings.drain_quiet_s:
                return
            if now_s >= ends_s:
                return
            await self._rest(timings.drain_look_s)

    async def _wanted_again(self) -> bool:
        """Wait out the pause after a failure; false as soon as it is dismissed."""
        timings = self._site.timings
        pause_s = back_off_s(
            self._life.failures, first_s=timings.back_off_first_s, most_s=timings.back_off_most_s
        )
        ends_s = self._site.clock.now_s() + pause_s
        while not self._dismissed and (left_s := ends_s - self._site.clock.now_s()) > 0:
            await self._rest(left_s)
        return not self._dismissed

    async def _rest(self, at_most_s: float) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._nudged.wait()
        except TimeoutError:
            pass
        self._nudged.clear()

    def _in_state_for_s(self) -> float:
        return self._site.clock.now_s() - self._life.since_s

    def _step(self, event: Event, why: str = "") -> None:
        self._life = step(self._life, event, now_s=self._site.clock.now_s(), why=why)
        self._owner.changed()


def next_look_s(starting_for_s: float, *, timings: Timings) -> float:
    """When to probe a starting replica again: a twentieth of the time it took so far.

    No start is noticed more than 5 % late, and one that takes minutes is not probed all the time.
    """
    return min(max(starting_for_s / 20, timings.probe_first_s), timings.probe_starting_s)


def _in_its_own_words(child: ChildProcess) -> str:
    ended = child.exit.result()
    words = last_words(child.log)
    return f"{ended}: {words}" if words else f"{ended}, and nothing in its log {child.log}"
