# SPDX-License-Identifier: Apache-2.0
"""The controller on one machine: replicas are processes, the activator is always in the path."""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from autoscaler import logs
from autoscaler import settings as config
from autoscaler.adapters.activators import ActivatorHub, ActivatorSignalSource
from autoscaler.adapters.engines import EngineMetrics
from autoscaler.adapters.gpus.nvml import NvmlDevices
from autoscaler.adapters.gpus.nvml_source import NvmlSignalSource
from autoscaler.adapters.local.cluster import LocalCluster
from autoscaler.adapters.local.kept import KeptProcess
from autoscaler.adapters.local.replicas import LocalService, Site
from autoscaler.adapters.memory import FileMemoryStore
from autoscaler.adapters.prometheus import PrometheusSignalSource
from autoscaler.api.keda.scaler import ExternalScaler
from autoscaler.api.metrics import LoopCollector
from autoscaler.api.status import create_api
from autoscaler.app.serving import KEDA_LISTEN, ApiServer, KedaServer, bound
from autoscaler.app.ticking import MonotonicClock, Ticker
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.errors import BadInput
from autoscaler.loop import ControlLoop
from autoscaler.settings import ServiceSettings, Settings

log = structlog.get_logger(__name__)

LOCAL_NAMESPACE = "local"
LISTENS_WITHIN_S = 15.0  # an activator starts in a second; the log says so when one does not


def run_local(config_file: Path) -> None:
    """Run until SIGTERM or Ctrl-C. Raises `BadInput` for a config file that cannot be followed."""
    settings = config.load(config_file)
    logs.configure()
    with _only_controller(settings.controller.state_dir):
        _check_ports(settings)
        asyncio.run(_LocalController(settings).run())


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
        self._gpus = _gpus(self._cluster, clock)
        self._prometheus = _prometheus(settings, self._cluster, clock)
        self._loop = ControlLoop(
            cluster=self._cluster,
            sources=[
                ActivatorSignalSource(self._hub, now_s=clock.now_s),
                EngineMetrics(self._cluster.metrics_places, clock=clock),
                *([self._gpus] if self._gpus is not None else []),
                *([self._prometheus] if self._prometheus is not None else []),
            ],
            routes=self._cluster,
            store=FileMemoryStore(state_dir / "learned.json"),
            clock=clock,
        )
        self._scaler = ExternalScaler(
            self._loop, now_s=clock.now_s, tick_s=settings.controller.tick_s
        )
        self._loop.on_record = self._scaler.recorded
        self._ticker = Ticker(self._loop)
        self._clock = clock

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number, stop)
        api = self._api()  # first: a port that is taken must end nothing that has begun
        where = self._settings.keda
        keda = None if where is None else KedaServer(where, self._scaler)
        await self._hub.start(self._socket_path)
        await self._cluster.start()
        activators = self._start_activators()
        background = [asyncio.create_task(self._ticker.run(), name="ticks")]
        if self._gpus is not None:
            background.append(asyncio.create_task(self._gpus.run(), name="gpus"))
        if self._prometheus is not None:
            background.append(asyncio.create_task(self._prometheus.run(), name="prometheus"))
        for task in background:
            task.add_done_callback(lambda ended: self._ended(ended, stop))
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
        if keda is not None:
            await keda.start()
        log.info("controller started", api=f"http://{api.address}")
        await stop.wait()
        # Activators first, while the loop still scales: what is held or in flight is answered.
        log.info("stopping: requests may finish", within_s=self._settings.activator.drain_s)
        await asyncio.gather(*(kept.stop() for kept in activators))
        scheduler.shutdown(wait=False)
        for task in background:
            task.cancel()
        ends = await asyncio.gather(*background, return_exceptions=True)
        longest_s = max(service.drain_grace_s for service in self._settings.services)
        await self._cluster.close(grace_s=longest_s)
        if keda is not None:
            await keda.stop()
        await api.stop()
        await self._hub.stop()
        log.info("stopped")
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _ended(self, task: asyncio.Task[None], stop: asyncio.Event) -> None:
        """What runs beside the API for as long as the controller does has ended before it."""
        if not task.cancelled() and not stop.is_set():
            log.error(
                "the controller cannot go on", task=task.get_name(), why=repr(task.exception())
            )
            stop.set()

    def _signalled(self, number: int, stop: asyncio.Event) -> None:
        if stop.is_set():
            log.warning("stopping at once: what runs is killed", signal=signal.Signals(number).name)
            self._cluster.abandon()
            os._exit(128 + number)
        stop.set()

    def _api(self) -> ApiServer:
        registry = CollectorRegistry()
        registry.register(
            LoopCollector(self._loop, demand=lambda service: self._hub.demand(str(service)))
        )
        return ApiServer(
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


def _gpus(cluster: LocalCluster, clock: MonotonicClock) -> NvmlSignalSource | None:
    """None: this machine's GPUs cannot be read, which the log says once."""
    devices = NvmlDevices()
    first = devices.read()
    if isinstance(first, NoReading):
        log.info("no service is told how busy GPUs are", why=first.why)
        return None
    return NvmlSignalSource(devices, pids=cluster.ready_pids, clock=clock)


def _prometheus(
    settings: Settings, cluster: LocalCluster, clock: MonotonicClock
) -> PrometheusSignalSource | None:
    """None where the config file names no Prometheus."""
    if settings.prometheus is None:
        return None
    queries = {ServiceId(LOCAL_NAMESPACE, s.name): s.policy.queries for s in settings.services}
    return PrometheusSignalSource(
        settings.prometheus,
        clock=clock,
        pods=lambda service: cluster.metrics_places().get(service, {}),
        queries=lambda service: queries.get(service, ()),
    )


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
        bound(service.listen, f"services.{service.name}.listen").close()
    bound(settings.controller.api, "controller.api").close()
    if settings.keda is not None:
        bound(settings.keda, KEDA_LISTEN).close()
