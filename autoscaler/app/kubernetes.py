# SPDX-License-Identifier: Apache-2.0
"""The controller on a Kubernetes cluster: several may run, the one that holds the Lease acts.

The others watch as well, so that whoever takes over knows the cluster already.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from autoscaler import cluster_settings, logs
from autoscaler.adapters.activators import ActivatorHub
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.cluster import KubernetesCluster
from autoscaler.adapters.kubernetes.demand import KubernetesDemand
from autoscaler.adapters.kubernetes.election import LeaderElection
from autoscaler.adapters.kubernetes.events import EventRecorder
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.memory import ConfigMapMemoryStore
from autoscaler.adapters.kubernetes.reports import Reports
from autoscaler.adapters.kubernetes.resources import Resource
from autoscaler.adapters.kubernetes.routes import KubernetesRoutes
from autoscaler.adapters.kubernetes.vouching import Vouching
from autoscaler.adapters.kubernetes.watches import Scope, Watches
from autoscaler.api.metrics import LoopCollector
from autoscaler.api.status import create_api
from autoscaler.app.serving import ApiServer
from autoscaler.app.ticking import MonotonicClock, Ticker
from autoscaler.cluster_settings import ClusterSettings
from autoscaler.errors import GiveUp
from autoscaler.loop import ControlLoop

log = structlog.get_logger(__name__)

LEASE: Final = "tidegate-controller"
CHANNEL: Final = "tidegate.dev/channel"  # on the Lease: where activators find the leader


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process runs."""

    pod: str
    namespace: str
    ip: str


def run_kubernetes(config_file: Path | None, kubeconfig: Path | None) -> None:
    """Run until SIGTERM or Ctrl-C. Raises `BadInput`, or `GiveUp` when leadership was lost."""
    settings = cluster_settings.load(config_file)
    logs.configure()
    asyncio.run(_run(settings, kubeconfig))


async def _run(settings: ClusterSettings, kubeconfig: Path | None) -> None:
    async with await KubeApi.connect(kubeconfig) as api:
        place = Place(
            pod=os.environ.get("POD_NAME") or socket.gethostname(),
            namespace=os.environ.get("POD_NAMESPACE") or api.namespace,
            ip=os.environ.get("POD_IP") or "127.0.0.1",
        )
        await KubernetesController(api, settings, place).run()


class KubernetesController:
    """One controller process, from start to the Lease handed over."""

    def __init__(self, api: KubeApi, settings: ClusterSettings, place: Place) -> None:
        self._api = api
        self._settings = settings
        self._place = place
        self._stop = asyncio.Event()
        clock = self._clock = MonotonicClock()
        inventory = Inventory()
        self._hub = ActivatorHub(now_s=clock.now_s)
        self._cluster = KubernetesCluster(api, inventory, clock=clock)
        self._routes = KubernetesRoutes(
            api, inventory=inventory, cluster=self._cluster, activators=self._hub, clock=clock
        )
        self._watches = Watches(
            api,
            _scope(settings, place),
            inventory=inventory,
            cluster=self._cluster,
            routes=self._routes,
        )
        self._demand = KubernetesDemand(
            clock=clock,
            demand_of=self._routes.demand,
            heard_at_s=self._hub.heard_at_s,
            share_ratio=self._hub.share_ratio,
            ready_pods=self._cluster.metrics_places,
        )
        self._events = EventRecorder(api, component="tidegate-controller", instance=place.pod)
        self._reports = Reports(self._events, cluster=self._cluster, inventory=inventory)
        self._store = ConfigMapMemoryStore(api, place.namespace)
        self._loop = ControlLoop(
            cluster=self._cluster,
            sources=[self._demand],
            routes=self._routes,
            store=self._store,
            clock=clock,
        )
        self._ticker = Ticker(self._loop)
        self._election = LeaderElection(
            api,
            namespace=place.namespace,
            name=LEASE,
            identity=place.pod,
            annotations={CHANNEL: f"{place.ip}:{settings.channel.port}"},
        )
        self._wire(Vouching(api, place.namespace))

    def _wire(self, vouching: Vouching) -> None:
        self._loop.on_record = self._reports.recorded
        self._cluster.on_change = self._changed
        self._cluster.in_flight = self._demand.in_flight
        self._routes.on_change = self._ticker.tick_soon
        self._routes.activator_pods = lambda: self._watches.activator_pods
        self._hub.on_wake = self._wake
        self._hub.on_follow = self._routes.activators_changed
        self._hub.authenticate = vouching.why_not
        self._hub.lives = lambda hello: self._watches.activator_lives(hello.pod)

    def _changed(self, service: Any) -> None:
        self._routes.service_changed(service)
        self._ticker.tick_soon(service)

    def _wake(self, route: str) -> None:
        service = self._routes.service_of(route)
        if service is not None:
            self._ticker.tick_soon(service)

    async def run(self) -> None:
        """Stand by, lead, and hand over when told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        api = self._api_server()
        await api.start()
        self._watches.start()
        self._events.start()
        log.info("controller started", api=f"http://{api.address}", pod=self._place.pod)
        try:
            await self._lead_until_told()
        finally:
            await self._watches.stop()
            await self._events.stop()
            await api.stop()
        log.info("stopped")

    async def _lead_until_told(self) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        listed = asyncio.create_task(self._watches.wait_synced())
        await asyncio.wait((stopping, listed), return_when=asyncio.FIRST_COMPLETED)
        listed.cancel()
        if self._stop.is_set():
            return
        async with self._election.run() as election:
            elected = asyncio.create_task(election.elected())
            await asyncio.wait((stopping, elected), return_when=asyncio.FIRST_COMPLETED)
            elected.cancel()
            if self._stop.is_set():
                return
            lost = asyncio.create_task(election.lost())
            async with self._leading():
                await asyncio.wait((stopping, lost), return_when=asyncio.FIRST_COMPLETED)
            lost.cancel()
        if not self._stop.is_set():
            raise GiveUp(
                f"lost the Lease {LEASE}: another controller leads, or the API server was out of "
                f"reach for too long; this process ends and is started anew"
            )

    @contextlib.asynccontextmanager
    async def _leading(self) -> AsyncIterator[None]:
        """Act for as long as the context lasts; what was begun ends with it."""
        channel = self._settings.channel
        await self._hub.start((channel.host, channel.port))
        running = [
            asyncio.create_task(self._ticker.run(), name="ticks"),
            asyncio.create_task(self._routes.run(), name="slices"),
            asyncio.create_task(self._routes.prove(), name="proofs"),
            asyncio.create_task(self._demand.run(), name="scrapes"),
        ]
        scheduler = AsyncIOScheduler()
        scheduler.add_job(
            self._tick_due,
            "interval",
            seconds=self._settings.tick_s,
            max_instances=1,
            coalesce=True,
        )
        scheduler.start()
        self._ticker.tick_all()
        log.info("leading", pod=self._place.pod)
        try:
            yield
        finally:
            scheduler.shutdown(wait=False)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._store.flush()
            await self._hub.stop()
            log.info("no longer leading", pod=self._place.pod)

    async def _tick_due(self) -> None:
        self._hub.expect(self._watches.activators_expected)
        self._reports.stood_still()
        self._ticker.tick_all()

    def _api_server(self) -> ApiServer:
        registry = CollectorRegistry()
        registry.register(LoopCollector(self._loop, demand=self._routes.demand))
        return ApiServer(
            self._settings.api,
            create_api(
                self._loop,
                registry=registry,
                now_s=self._clock.now_s,
                why_unready=self._why_unready,
            ),
        )

    def _why_unready(self) -> str | None:
        return None if self._watches.synced else "the cluster's objects are still being listed"


def _scope(settings: ClusterSettings, place: Place) -> Scope:
    return Scope(
        own=place.namespace,
        namespaces=settings.namespaces,
        more_kinds=tuple(
            Resource(kind.group, kind.version, kind.plural) for kind in settings.scale_kinds
        ),
    )
