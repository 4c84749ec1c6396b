# SPDX-License-Identifier: Apache-2.0
"""The controller on a Kubernetes cluster: several may run, the one that holds the Lease acts.

The others watch as well, so that whoever takes over knows the cluster already.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from autoscaler import cluster_settings, logs
from autoscaler.adapters.activators import ActivatorHub
from autoscaler.adapters.gpus.dcgm_source import DcgmSignalSource
from autoscaler.adapters.gpus.exporters import GpuExporters
from autoscaler.adapters.kubernetes.annotations import AnnotationWriter
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.cluster import KubernetesCluster
from autoscaler.adapters.kubernetes.demand import KubernetesDemand
from autoscaler.adapters.kubernetes.election import LeaderElection
from autoscaler.adapters.kubernetes.events import EventRecorder
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.memory import ConfigMapMemoryStore
from autoscaler.adapters.kubernetes.metrics import TickSeconds, register
from autoscaler.adapters.kubernetes.reports import Reports
from autoscaler.adapters.kubernetes.resources import Resource
from autoscaler.adapters.kubernetes.routes import KubernetesRoutes
from autoscaler.adapters.kubernetes.selectors import ScaleSelectors
from autoscaler.adapters.kubernetes.vouching import Vouching
from autoscaler.adapters.kubernetes.watches import Scope, Watches
from autoscaler.adapters.prometheus import PrometheusSignalSource
from autoscaler.api.keda.scaler import ExternalScaler
from autoscaler.api.metrics import LoopCollector
from autoscaler.api.status import create_api
from autoscaler.app.recalling import recall
from autoscaler.app.serving import ApiServer, KedaServer
from autoscaler.app.ticking import MonotonicClock, Ticker
from autoscaler.cluster_settings import ClusterSettings
from autoscaler.descriptors import raise_descriptor_limit
from autoscaler.errors import GiveUp, RetryLater
from autoscaler.loop import ControlLoop, Record

log = structlog.get_logger(__name__)

FIRST_LOOK_S: Final = 0.5  # between two tries of a new leader to see everything
LEASE: Final = "tidegate-controller"
# client-go lists anew after at most 30 s and as much again by chance, and then kube-proxy works.
PROXIES_LAG_S: Final = 75.0
Task = asyncio.Task[None]

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
    raise_descriptor_limit()  # each pod that is asked has a connection of its own
    asyncio.run(_run(settings, kubeconfig))


async def _run(settings: ClusterSettings, kubeconfig: Path | None) -> None:
    async with KubeApi.connect(kubeconfig) as api:
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
        self._lost_lead = False
        self._unled_at_s: float | None = None
        clock = self._clock = MonotonicClock()
        inventory = Inventory()
        vouching = Vouching(api, place.namespace)
        self._hub = ActivatorHub(
            now_s=clock.now_s,
            authenticate=vouching.why_not,
            lives=lambda hello: self._watches.activator_lives(hello.pod),
        )
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
        self._exporters = GpuExporters(api, urls=settings.dcgm, service=settings.dcgm_service)
        self._gpus = DcgmSignalSource(
            self._exporters.places,
            ready_pods=self._cluster.metrics_places,
            clock=clock,
            trouble=self._exporters.trouble,
        )
        self._events = EventRecorder(api, component="tidegate-controller", instance=place.pod)
        self._annotations = AnnotationWriter(api)
        self._reports = Reports(
            self._events,
            self._annotations,
            cluster=self._cluster,
            inventory=inventory,
            blind=self._demand.blind,
        )
        self._prometheus = (
            None
            if settings.prometheus is None
            else PrometheusSignalSource(
                settings.prometheus,
                clock=clock,
                pods=self._cluster.metrics_places,
                queries=self._cluster.queries,
            )
        )
        self._store = ConfigMapMemoryStore(api, namespace=place.namespace)
        self._loop = ControlLoop(
            cluster=self._cluster,
            sources=[
                self._demand,
                *([self._gpus] if self._exporters.named else []),
                *([self._prometheus] if self._prometheus is not None else []),
            ],
            routes=self._routes,
            store=self._store,
            clock=clock,
        )
        self._scaler = ExternalScaler(self._loop, now_s=clock.now_s, tick_s=settings.tick_s)
        self._keda = None if settings.keda is None else KedaServer(settings.keda, self._scaler)
        self._registry = CollectorRegistry()
        self._ticker = Ticker(self._loop, timekeeper=TickSeconds(self._registry))
        self._election = LeaderElection(
            api,
            namespace=place.namespace,
            name=LEASE,
            identity=place.pod,
            annotations={CHANNEL: f"{place.ip}:{settings.channel.port}"},
            on_start=self._lead,
            on_stop=self._lost,
        )
        self._selectors = ScaleSelectors(
            api, targets=self._cluster.without_selector, found=self._cluster.selector_found
        )
        self._wire()

    def _wire(self) -> None:
        self._loop.on_record = self._recorded
        self._cluster.on_change = self._changed
        self._cluster.in_flight = self._demand.in_flight
        self._cluster.leads = lambda: self._election.leading
        self._routes.on_change = self._ticker.tick_soon
        self._routes.activator_pods = lambda: self._watches.activator_pods
        self._routes.proxies_lag = self._proxies_lag
        self._hub.on_wake = self._wake
        self._hub.on_follow = self._routes.activators_changed

    def _changed(self, service: Any) -> None:
        self._routes.service_changed(service)
        self._ticker.tick_soon(service)

    def _recorded(self, record: Record) -> None:
        self._reports.recorded(record)
        self._scaler.recorded(record)

    def _wake(self, route: str) -> None:
        service = self._routes.service_of(route)
        if service is not None:
            self._ticker.tick_soon(service)

    async def run(self) -> None:
        """Stand by, lead, and hand over when told to stop. Raises `GiveUp` if the Lease is lost."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        api = self._api_server()
        await api.start()
        log.info("controller started", api=f"http://{api.address}", pod=self._place.pod)
        background = [self._watches.start(), self._events.start(), self._annotations.start()]
        try:
            if await self._until_stopped(self._watches.wait_synced(), *background):
                await self._until_stopped(self._election.run(), *background)
        finally:
            await self._watches.stop()
            await self._annotations.stop()
            await self._events.stop()
            await api.stop()
        if self._lost_lead:
            raise GiveUp(
                f"lost the Lease {LEASE}: another controller leads, or the API server was out of "
                f"reach for too long; this process ends, and is started anew by its Deployment"
            )
        log.info("stopped")

    async def _until_stopped(self, work: Coroutine[Any, Any, None], *beside: Task) -> bool:
        """Run `work` until it is done, or we are told to stop; raises what ended any of it."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((working, stopping, *beside), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            for other in beside:
                if other.done():
                    other.result()
            return working.done() and not self._stop.is_set()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _lead(self) -> None:
        """Act until cancelled; what was begun ends with it."""
        # A leader that did not hand over may have lost the API server, and others with it.
        self._unled_at_s = None if self._election.handed_over else self._clock.now_s()
        channel = self._settings.channel
        await self._hub.start((channel.host, channel.port))
        scheduler = AsyncIOScheduler()
        scheduler.add_job(
            self._tick_due,
            "interval",
            seconds=self._settings.tick_s,
            max_instances=1,
            coalesce=True,
        )
        scheduler.start()
        try:
            await self._look_around()
            if self._keda is not None:
                # Whoever stands by has decided nothing, and a client that reached it would stay.
                await self._keda.start()
            async with asyncio.TaskGroup() as acting:
                acting.create_task(self._ticker.run(), name="ticks")
                acting.create_task(self._routes.run(), name="slices")
                acting.create_task(self._routes.prove(), name="proofs")
                acting.create_task(self._demand.run(), name="scrapes")
                if self._prometheus is not None:
                    acting.create_task(self._prometheus.run(), name="prometheus")
                acting.create_task(self._selectors.run(), name="selectors")
                if self._prometheus is not None:
                    past = recall(self._loop, self._prometheus, self._clock)
                    acting.create_task(past, name="past")
                if self._exporters.named:
                    acting.create_task(self._exporters.run(), name="exporters")
                    acting.create_task(self._gpus.run(), name="gpus")
        finally:
            scheduler.shutdown(wait=False)

    def _proxies_lag(self) -> bool:
        """Whether kube-proxies may still have to hear what happened while nobody could."""
        since_s = [self._watches.recovered_at_s, self._unled_at_s]
        now_s = self._clock.now_s()
        return any(at_s is not None and now_s - at_s < PROXIES_LAG_S for at_s in since_s)

    async def _look_around(self) -> None:
        """Decide on every service once before any activator is told anything."""
        while True:
            await self._ticker.tick()
            with suppress(RetryLater):
                if self._loop.records.keys() >= (await self._cluster.services()).keys():
                    break
            await asyncio.sleep(FIRST_LOOK_S)
        self._routes.begin()

    async def _lost(self) -> None:
        """No longer the leader, told to stop or not: what is known here is no longer the truth."""
        if not self._stop.is_set():
            self._lost_lead = True
            self._stop.set()
        else:
            await self._store.flush()
        if self._keda is not None:
            await self._keda.stop()
        await self._hub.stop()

    async def _tick_due(self) -> None:
        self._hub.expect(self._watches.activators_expected)
        self._reports.stood_still()
        self._ticker.tick_all()

    def _api_server(self) -> ApiServer:
        self._registry.register(LoopCollector(self._loop, demand=self._routes.demand))
        register(
            self._registry,
            leads=lambda: self._election.leading,
            requests=self._api.requests,
            ages_s=lambda: self._watches.ages_s(self._clock.now_s()),
        )
        return ApiServer(
            self._settings.api,
            create_api(
                self._loop,
                registry=self._registry,
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
