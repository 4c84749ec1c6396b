# SPDX-License-Identifier: Apache-2.0
"""Wires the controller together and runs it; decides nothing.

`tidegate run` is this file: the loop from `loop.py` on a platform's adapters, a tick a second and
one at once when the activator or a replica has news, and the status API beside it.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import structlog
import typer
import uvicorn
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from autoscaler import logs
from autoscaler import settings as config
from autoscaler.adapters.activators import ActivatorHub, ActivatorSignalSource
from autoscaler.adapters.engines import EngineMetrics
from autoscaler.adapters.local.cluster import LocalCluster
from autoscaler.adapters.local.kept import KeptProcess
from autoscaler.adapters.local.replicas import LocalService, Site
from autoscaler.adapters.memory import FileMemoryStore
from autoscaler.api.metrics import LoopCollector
from autoscaler.api.status import create_api
from autoscaler.core.signals import ServiceId
from autoscaler.errors import BadInput
from autoscaler.loop import ControlLoop
from autoscaler.settings import Address, ServiceSettings, Settings

log = structlog.get_logger(__name__)

LOCAL_NAMESPACE = "local"
LISTENS_WITHIN_S = 15.0  # an activator starts in a second; the log says so when one does not

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


class Platform(StrEnum):
    LOCAL = "local"


@cli.command()
def run(
    config_file: Annotated[
        Path, typer.Option("--config", help="The TOML file that names the services.")
    ] = Path("tidegate.toml"),
    platform: Annotated[
        Platform, typer.Option(help="Where replicas run: `local` starts them as processes here.")
    ] = Platform.LOCAL,
) -> None:
    """Run the controller: scale services by their traffic, to zero and back.

    On the local platform each service's replicas are processes on this machine. Clients connect to
    the service's `listen` address; requests that come while it sleeps wait there until a replica is
    ready. An example of the config file:

    \b
      [services.iris]
      listen = "127.0.0.1:8081"
      models = { iris = "iris.skops" }
      targets = "concurrency=2"
      max-replicas = 4
      scale-to-zero-after = "5m"

    docs/settings.md lists every key. `GET /v1/services` on the controller's address
    (127.0.0.1:8070) says how each service stands and why. SIGTERM or Ctrl-C lets requests finish
    and stops every process; a second one kills them at once.
    """
    settings = config.load(config_file)
    logs.configure()
    with _only_controller(settings.controller.state_dir):
        _check_ports(settings)
        asyncio.run(_LocalController(settings).run())


class MonotonicClock:
    """Seconds of this machine that never go back."""

    def now_s(self) -> float:
        return time.monotonic()


class Ticker:
    """Runs one tick at a time: over everything when told so, and over a service that has news."""

    def __init__(self, loop: ControlLoop) -> None:
        self._loop = loop
        self._all = False
        self._services: set[ServiceId] = set()
        self._news = asyncio.Event()

    def tick_all(self) -> None:
        self._all = True
        self._news.set()

    async def tick_due(self) -> None:
        """`tick_all` for a scheduler, which runs what is no coroutine on threads of its own."""
        self.tick_all()

    def tick_soon(self, service: ServiceId) -> None:
        self._services.add(service)
        self._news.set()

    async def run(self) -> None:
        """Tick until cancelled. A tick that fails changes nothing; the next one sees anew."""
        while True:
            await self._news.wait()
            self._news.clear()
            only = None if self._all else frozenset(self._services)
            self._all, self._services = False, set()
            try:
                await self._loop.tick(only)
            except Exception:
                # The one edge of this process: an error in one tick must not stop the next.
                log.exception("the tick failed; nothing changes until the next")


class _LocalController:
    """The controller on the local platform, from start to the last process gone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        clock = MonotonicClock()
        state_dir = settings.controller.state_dir
        self._socket_path = state_dir / "activator.sock"
        self._hub = ActivatorHub(now_s=clock.now_s)
        self._hub.on_wake = self._wake
        self._cluster = LocalCluster(
            [_local_service(service) for service in settings.services],
            site=Site(clock, state_dir / "logs"),
            activators=self._hub,
            on_change=lambda service: self._ticker.tick_soon(service),
        )
        self._loop = ControlLoop(
            cluster=self._cluster,
            sources=[
                ActivatorSignalSource(self._hub),
                EngineMetrics(self._cluster.metrics_places, clock=clock),
            ],
            routes=self._cluster,
            store=FileMemoryStore(state_dir / "learned.json"),
            clock=clock,
        )
        self._ticker = Ticker(self._loop)
        self._clock = clock

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number, stop)
        api = self._api()  # first: a port that is taken must end nothing that has begun
        await self._hub.start(self._socket_path)
        await self._cluster.start()
        activators = self._start_activators()
        ticking = asyncio.create_task(self._ticker.run(), name="ticks")
        scheduler = AsyncIOScheduler()
        scheduler.add_job(
            self._ticker.tick_due,
            "interval",
            seconds=self._settings.controller.tick_s,
            max_instances=1,
            coalesce=True,
        )
        scheduler.start()
        self._ticker.tick_all()
        await self._listening(stop)
        await api.start()
        log.info("controller started", api=f"http://{api.address}")
        await stop.wait()
        # Activators first, while the loop still scales: what is held or in flight is answered.
        log.info("stopping: requests may finish", within_s=self._settings.activator.drain_s)
        await asyncio.gather(*(kept.stop() for kept in activators))
        scheduler.shutdown(wait=False)
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        longest_s = max(service.drain_grace_s for service in self._settings.services)
        await self._cluster.close(grace_s=longest_s)
        await api.stop()
        await self._hub.stop()
        log.info("stopped")

    def _signalled(self, number: int, stop: asyncio.Event) -> None:
        if stop.is_set():
            log.warning("stopping at once: what runs is killed", signal=signal.Signals(number).name)
            self._cluster.abandon()
            os._exit(128 + number)
        stop.set()

    def _api(self) -> "_ApiServer":
        registry = CollectorRegistry()
        registry.register(
            LoopCollector(self._loop, demand=lambda service: self._hub.demand(str(service)))
        )
        return _ApiServer(
            self._settings.controller.api,
            create_api(self._loop, registry=registry, now_s=self._clock.now_s),
        )

    async def _listening(self, stop: asyncio.Event) -> None:
        """Wait until every service can be reached; say which cannot, and go on."""
        names = [str(ServiceId(LOCAL_NAMESPACE, s.name)) for s in self._settings.services]
        ends_s = self._clock.now_s() + LISTENS_WITHIN_S
        while not all(map(self._hub.held_by, names)):
            if stop.is_set():
                return
            if self._clock.now_s() >= ends_s:
                break
            await asyncio.sleep(0.02)
        for name in names:
            if not self._hub.held_by(name):
                why = [port.problem for port in self._hub.ports(name) if port.problem]
                log.error("no activator listens for the service", service=name, why=why)

    def _start_activators(self) -> list[KeptProcess]:
        count = self._settings.activator.processes
        return [
            self._cluster.keep(
                f"activator-{n}",
                (
                    *(sys.executable, "-m", "autoscaler.cli", "activator"),
                    *("--channel", str(self._socket_path), "--process", f"{n}/{count}"),
                    *("--grace-s", f"{self._settings.activator.drain_s:g}"),
                ),
                # Its own grace ends first: what is cut off then gets an answer from it.
                stop_grace_s=self._settings.activator.drain_s + 5.0,
            )
            for n in range(count)
        ]

    def _wake(self, key: str) -> None:
        namespace, _, name = key.partition("/")
        self._ticker.tick_soon(ServiceId(namespace, name))


class _ApiServer:
    """The status API on its own socket, within the controller's event loop."""

    def __init__(self, address: Address, app: FastAPI) -> None:
        self._socket = _bound(address, "controller.api")
        self._server = _QuietServer(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        host, port = self._socket.getsockname()[:2]
        return Address(host, port)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._socket]), name="api")

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _QuietServer(uvicorn.Server):
    """A server that leaves the process's signals to the controller."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _local_service(service: ServiceSettings) -> LocalService:
    return LocalService(
        service=ServiceId(LOCAL_NAMESPACE, service.name),
        policy=service.policy,
        host=service.listen.host,
        port=service.listen.port,
        command=service.command,
        env=service.env,
        cwd=service.cwd,
        ready_path=service.ready_path,
        metrics_path=service.metrics_path,
        drain_grace_s=service.drain_grace_s,
    )


@contextlib.contextmanager
def _only_controller(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process: two controllers would write each other's replicas."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock: IO[str] = (state_dir / "controller.lock").open("a+", encoding="utf-8")
    except OSError as trouble:
        raise BadInput(
            f"controller.state-dir: cannot write to {state_dir} ({trouble.strerror}); "
            f"name a folder that can be written"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BadInput(
                f"controller.state-dir: {state_dir} is in use by the controller with process id "
                f"{lock.read().strip() or 'unknown'}; stop it or name another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_ports(settings: Settings) -> None:
    """Refuse to start where another program listens already."""
    for service in settings.services:
        _bound(service.listen, f"services.{service.name}.listen").close()
    _bound(settings.controller.api, "controller.api").close()


def _bound(address: Address, key: str) -> socket.socket:
    try:
        infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = infos[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
    except (OSError, ValueError) as trouble:  # ValueError: what no host can be called
        why = (trouble.strerror if isinstance(trouble, OSError) else "") or trouble
        raise BadInput(
            f"{key}: cannot listen on {address} ({why}); "
            f"stop what listens there or name another address"
        ) from None
    return bound
