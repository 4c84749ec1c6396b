# SPDX-License-Identifier: Apache-2.0
"""All services of one machine, as `ports.Cluster` and `ports.RouteTable`. It decides no count.

The activator always stands in the path on this platform, so to hold a service's requests is to see
that it listens; every change of a replica is a new route table.
"""

import asyncio
import errno
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from autoscaler import schedule
from autoscaler.adapters.local.kept import KeptProcess
from autoscaler.adapters.local.replicas import LocalReplica, LocalService, Owner, Site
from autoscaler.adapters.plain_http import At
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.routes import Demand, Route
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.errors import BadInput, GiveUp
from autoscaler.ports import Refusal, ServiceView

log = structlog.get_logger()

LOGS_KEPT = 20  # per service, beside those of the replicas that run
KILLED_WITHIN_S = 5.0  # a process that SIGKILL does not end within this is stuck in the kernel


class Activators(Protocol):
    """The activators of this machine; `adapters/activators.py` speaks to them."""

    def publish(self, routes: Mapping[str, Route]) -> None: ...

    def demand(self, service: str) -> Demand | NoReading: ...

    def share_ratio(self) -> float:
        """The part (0-1) of the activator processes that `demand` speaks for."""
        ...

    def may_send(self, service: str, endpoint: str) -> bool:
        """Whether one may yet send new requests there, not having heard that it drains."""
        ...

    def held_by(self, service: str) -> bool: ...


def route_key(service: ServiceId) -> str:
    """The name that activators know a service by."""
    return str(service)


@dataclass(slots=True)
class _Service:
    """What the platform holds of one service. Only `LocalCluster` changes it."""

    spec: LocalService
    generation: int = 1
    started: int = 0  # processes ever started; numbers the replicas
    replicas: list[LocalReplica] = field(default_factory=list)
    state: str = "asleep"
    why: str = ""

    @property
    def wanted(self) -> list[LocalReplica]:
        return [r for r in self.replicas if r.report.state is not ReplicaState.DRAINING]

    def view(self, now: datetime) -> ServiceView:
        return ServiceView(
            service=self.spec.service,
            policy=schedule.bounds_at(self.spec.policy, now),
            generation=self.generation,
            scale=len(self.wanted),
            replicas=tuple(replica.report for replica in self.replicas),
        )

    def route(self) -> Route:
        policy = self.spec.policy
        endpoints = (replica.endpoint for replica in self.replicas)
        return Route(
            service=route_key(self.spec.service),
            host=self.spec.host,
            port=self.spec.port,
            endpoints=tuple(endpoint for endpoint in endpoints if endpoint is not None),
            hold_limit=policy.hold_limit,
            hold_bytes=policy.hold_bytes,
            hold_timeout_s=policy.hold_timeout_s,
            state=self.state,
            why=self.why,
        )


class LocalCluster:
    """Supervises the replicas of all services. Must be used within one event loop; `close()` it."""

    def __init__(
        self,
        services: Collection[LocalService],
        *,
        site: Site,
        activators: Activators,
        on_change: Callable[[ServiceId], None] = lambda service: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`on_change` is called whenever a replica of the service changed its state.

        `now`: by which the schedules of policies go.
        """
        _check(services)
        self._services = {spec.service: _Service(spec) for spec in services}
        self._site = site
        self._activators = activators
        self._on_change = on_change
        self._now = now
        self._lives: dict[LocalReplica, asyncio.Task[None]] = {}
        self._kept: list[KeptProcess] = []
        self._closing = False
        self._published: Mapping[str, Route] = {}

    async def start(self) -> None:
        """Publish the routes and start each service with its `initial-replicas`."""
        _set_aside(self._site.log_dir)
        for held in self._services.values():
            self._resize(held, held.spec.policy.initial_replicas)
        self._publish()

    def keep(
        self,
        name: str,
        command: tuple[str, ...],
        *,
        env: Mapping[str, str] | None = None,
        stop_grace_s: float = 5.0,
    ) -> KeptProcess:
        """Keep an activator alive, from now on; it is stopped after the replicas.

        While none that is kept runs, no replica can have a request in flight.
        """
        kept = KeptProcess(name, command, site=self._site, env=env, stop_grace_s=stop_grace_s)
        self._kept.append(kept)
        kept.start()
        return kept

    async def services(self) -> Mapping[ServiceId, ServiceView]:
        return {service: self.view(service) for service in self._services}

    def view(self, service: ServiceId) -> ServiceView:
        return self._services[service].view(self._now())

    async def scale(self, service: ServiceId, replicas: int, *, generation: int) -> Refusal | None:
        held = self._services.get(service)
        if held is None:
            return Refusal(f"no service {service} on this machine")
        if self._closing:
            return Refusal("the controller is stopping")
        if generation != held.generation:
            return Refusal(f"decided on generation {generation}, it is {held.generation} by now")
        if replicas < 0:
            return Refusal(f"{replicas} replicas cannot be")
        self._resize(held, replicas)
        return None

    async def hold(self, service: ServiceId) -> bool:
        return self._activators.held_by(route_key(service))

    async def release(self, service: ServiceId) -> None:
        """On one machine clients know no other way than through the activator: it stays."""

    def in_path(self, service: ServiceId) -> bool:
        return True

    async def announce(self, service: ServiceId, *, state: str, why: str) -> None:
        held = self._services.get(service)
        if held is not None and (held.state, held.why) != (state, why):
            held.state, held.why = state, why
            self._publish()

    def metrics_places(self) -> Mapping[ServiceId, Mapping[str, At]]:
        """Of each service with a `metrics-path`: replica id -> where its metrics are.

        A replica that was ready and does not answer now is listed too: it may hold a queue.
        """
        return {
            service: {
                endpoint.id: At(endpoint.host, endpoint.port, held.spec.metrics_path)
                for replica in held.wanted
                if (endpoint := replica.endpoint) is not None
            }
            for service, held in self._services.items()
            if held.spec.metrics_path is not None
        }

    def pids(self) -> Mapping[str, int]:
        """Replica id -> process, for all processes that run."""
        replicas = (replica for held in self._services.values() for replica in held.replicas)
        return {replica.report.id: replica.pid for replica in replicas if replica.pid is not None}

    def ready_pids(self) -> Mapping[ServiceId, Mapping[str, Collection[int]]]:
        """Of each service: replica id -> its process, for all replicas that are ready."""
        return {
            service: {
                replica.report.id: (replica.pid,)
                for replica in held.replicas
                if replica.report.state is ReplicaState.READY and replica.pid is not None
            }
            for service, held in self._services.items()
        }

    @property
    def guard_pid(self) -> int | None:
        """The process that kills all others should the controller die; None: nothing ran yet."""
        return self._site.guard.pid

    async def close(self, *, grace_s: float = 30.0) -> None:
        """Drain everything; whatever is left after `grace_s` is killed. No process stays behind.

        The activators go last: until then they hand on the answers of the replicas.
        """
        self._closing = True
        for replica in tuple(self._lives):
            replica.dismiss()
        await self._gone(grace_s)
        for replica in tuple(self._lives):
            replica.kill()
        await self._gone(KILLED_WITHIN_S)
        for task in self._lives.values():
            task.cancel()
        await asyncio.gather(*(kept.stop() for kept in self._kept))
        self._site.guard.close()

    def abandon(self) -> None:
        """Kill every process, replicas and activators, and return when that is done."""
        self._site.guard.close()

    async def _gone(self, within_s: float) -> None:
        if self._lives:
            await asyncio.wait(self._lives.values(), timeout=within_s)

    def _resize(self, held: _Service, replicas: int) -> None:
        more = replicas - len(held.wanted)
        if more == 0:
            return
        held.generation += 1
        if more < 0:
            for replica in self._victims(held, -more):
                replica.dismiss()
            return
        for replica in tuple(held.replicas):
            if more and replica.recall():
                more -= 1
        for _ in range(more):
            self._add(held)
        self._changed(held)

    def _victims(self, held: _Service, count: int) -> list[LocalReplica]:
        demand = self._activators.demand(route_key(held.spec.service))
        in_flight = demand.in_flight_by_endpoint if isinstance(demand, Demand) else {}
        chosen = victims([r.report for r in held.wanted], count, in_flight=in_flight)
        return [replica for replica in held.wanted if replica.report.id in chosen]

    def _add(self, held: _Service) -> None:
        owner = Owner(
            next_id=lambda: self._next_id(held),
            in_flight=lambda replica_id: self._in_flight(held, replica_id),
            changed=lambda: self._changed(held),
        )
        replica = LocalReplica(held.spec, site=self._site, owner=owner)
        held.replicas.append(replica)
        task = asyncio.create_task(replica.run(), name=f"replica of {held.spec.service}")
        self._lives[replica] = task
        task.add_done_callback(lambda done: self._removed(held, replica, done))

    def _next_id(self, held: _Service) -> str:
        """A name for the next process; never given twice, so a route cannot mean an older one."""
        name = held.spec.service.name
        running = {replica.report.id for replica in held.replicas}
        _prune(self._site.log_dir / name, running=running)
        held.started += 1
        return f"{name}-{held.started}"

    def _removed(self, held: _Service, replica: LocalReplica, task: asyncio.Task[None]) -> None:
        del self._lives[replica]
        held.replicas.remove(replica)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a replica was lost to an error of ours", exc_info=error)
            held.generation += 1
        self._changed(held)

    def _in_flight(self, held: _Service, replica_id: str) -> int | NoReading:
        """The requests that a replica still has; 0 only where that is known (rule D1)."""
        if self._kept and not any(kept.pid for kept in self._kept):
            return 0  # whoever carried requests is gone, and the requests with it
        demand = self._activators.demand(route_key(held.spec.service))
        if isinstance(demand, NoReading):
            return demand
        if self._activators.share_ratio() < 1:
            return NoReading("only some of the activators speak")
        if self._activators.may_send(route_key(held.spec.service), replica_id):
            return NoReading("an activator has not yet heard that it drains")
        return demand.in_flight_by_endpoint.get(replica_id, 0)

    def _changed(self, held: _Service) -> None:
        self._publish()
        self._on_change(held.spec.service)

    def _publish(self) -> None:
        routes = {route_key(service): held.route() for service, held in self._services.items()}
        if routes != self._published:
            self._published = routes
            self._activators.publish(routes)


def _check(services: Collection[LocalService]) -> None:
    """Raise `BadInput` for what cannot work on one machine, each problem with its remedy."""
    problems = []
    names = [spec.service.name for spec in services]
    ports = [spec.port for spec in services]
    for spec in services:
        name = spec.service.name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            problems.append(
                f"service {name!r}: a name is made of letters, digits, '.', '_' and '-'"
            )
        if names.count(name) > 1:
            problems.append(f"service {name!r}: there are two of this name; rename one")
        if not 1 <= spec.port <= 65535 or ports.count(spec.port) > 1:
            problems.append(f"service {name!r}: port={spec.port} must be its own, 1 to 65535")
        if not spec.command:
            problems.append(f"service {name!r}: command is empty; say how to start a replica")
        for what, path in (("ready-path", spec.ready_path), ("metrics-path", spec.metrics_path)):
            if path is not None and not path.startswith("/"):
                problems.append(f"service {name!r}: {what}={path!r} must begin with '/'")
    if problems:
        raise BadInput(*dict.fromkeys(problems))


def _set_aside(log_dir: Path) -> None:
    """Keep the logs of the last run, and of that one only, in `NAME.previous`."""
    previous = log_dir.with_name(f"{log_dir.name}.previous")
    try:
        if log_dir.is_dir():
            shutil.rmtree(previous, ignore_errors=True)
            log_dir.rename(previous)
        elif log_dir.exists():
            raise NotADirectoryError(errno.ENOTDIR, f"{log_dir.name} is not a folder")
    except OSError as error:
        raise GiveUp(
            f"cannot keep logs in {log_dir}, with those of the last run in {previous.name}: "
            f"{error.strerror}; remove what is in the way or mend its permissions"
        ) from error


def _prune(folder: Path, *, running: Collection[str]) -> None:
    """Remove the oldest logs of replicas that are gone, all but `LOGS_KEPT`."""
    ended = [path for path in folder.glob("*.log*") if path.name.split(".log")[0] not in running]
    with suppress(OSError):  # one that vanished meanwhile: the next start prunes again
        for path in sorted(ended, key=lambda path: path.stat().st_mtime)[:-LOGS_KEPT]:
            path.unlink()


def victims(
    replicas: Collection[Replica], count: int, *, in_flight: Mapping[str, int]
) -> frozenset[str]:
    """The ids of the `count` replicas that are missed least.

    Those that failed first, then those still starting, then the idlest, then the youngest.
    """
    order = (ReplicaState.FAILED, ReplicaState.STARTING, ReplicaState.READY)

    def missed(replica: Replica) -> tuple[int, int, float]:
        return (order.index(replica.state), in_flight.get(replica.id, 0), -replica.asked_at_s)

    return frozenset(replica.id for replica in sorted(replicas, key=missed)[:count])
