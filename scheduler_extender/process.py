# SPDX-License-Identifier: Apache-2.0
"""One extender process: win the Lease, list everything after that, answer, leave in good order.

A process that loses the Lease ends, and is started anew by its Deployment: it may know old things.
"""

import asyncio
import gc
import os
import signal
import socket
import time
from typing import Final
from uuid import uuid4

import structlog
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from scheduler_extender.adapters.api import Api
from scheduler_extender.adapters.cluster import (
    KubernetesBinder,
    KubernetesEvictor,
    KubernetesPodsAndNodes,
    KubernetesRetries,
)
from scheduler_extender.adapters.events import KubernetesReporter
from scheduler_extender.adapters.lease import KubernetesLease
from scheduler_extender.adapters.placeholders import KubernetesPlaceholders
from scheduler_extender.adapters.reservations import KubernetesReservations
from scheduler_extender.app import App
from scheduler_extender.binding import BIND_S, Binds
from scheduler_extender.errors import GiveUp, NotLeading
from scheduler_extender.listening import Server, bound
from scheduler_extender.metrics import PreemptionMetrics, StateCollector
from scheduler_extender.placeholders.growing import Growth
from scheduler_extender.ports import Reporter
from scheduler_extender.preemption.preempting import Preempting
from scheduler_extender.reservations.pod import template_of
from scheduler_extender.reservations.reserving import Reserving
from scheduler_extender.retrying import retry
from scheduler_extender.settings import Settings
from scheduler_extender.state import ClusterState
from scheduler_extender.verbs import Verbs

log = structlog.get_logger(__name__)

SETTLE_S: Final = 1.0
AUDIT_AT_ONCE: Final = 20  # nodes between two breaths
KEEP_ALIVE_S: Final = 90  # kube-scheduler keeps idle connections; it must be who closes first


def run(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C. Raises `GiveUp` where the Lease was lost, or nothing can work."""
    taken = bound(settings.host, settings.port)
    pages = bound(*settings.pages, option="--pages") if settings.pages else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, taken, pages))


async def _run(settings: Settings, taken: socket.socket, pages: socket.socket | None) -> None:
    async with Api(settings.kubeconfig) as api:
        await Process(settings, api, taken, pages=pages).run()


class Process:
    """Verbs are answered on `taken`; health and metrics there, and on `pages` if it is given."""

    def __init__(
        self,
        settings: Settings,
        api: Api,
        taken: socket.socket,
        *,
        pages: socket.socket | None = None,
    ) -> None:
        pod = os.environ.get("POD_NAME") or socket.gethostname()
        namespace = settings.namespace or os.environ.get("POD_NAMESPACE") or api.namespace
        self._settings = settings
        self._sockets = [taken] if pages is None else [taken, pages]
        self._stop = asyncio.Event()
        self._state = ClusterState(namespace)
        self._lease = KubernetesLease(
            api, namespace=namespace, name=settings.lease, identity=f"{pod}_{uuid4().hex[:8]}"
        )
        self._binds = Binds(
            self._state, binder=KubernetesBinder(api), lease=self._lease, now_s=time.monotonic
        )
        template = settings.reservation_pod and template_of(settings.reservation_pod)
        self._reserving = Reserving(
            self._state,
            KubernetesReservations(api, template, namespace=namespace) if template else None,
            lease=self._lease,
            now_s=time.monotonic,
            idle_s=settings.reservation_idle_s,
        )
        self._source = KubernetesPodsAndNodes(api)
        self._retries = KubernetesRetries(api)
        self._reporter = KubernetesReporter(api, instance=pod)
        uid, asks = os.environ.get("POD_UID"), settings.placeholders
        self._growth = Growth(
            self._state,
            KubernetesPlaceholders(
                api, asks, namespace=namespace, owner=(pod, uid) if uid else None
            ),
            reporter=self._reporter,
            scheduler=settings.scheduler,
            namespace=namespace,
            most=asks.most if asks.enabled else 0,
        )
        registry = CollectorRegistry()
        registry.register(StateCollector(self._state, leading=lambda: self._lease.leading))
        self._preempting = Preempting(
            self._state,
            evictor=KubernetesEvictor(api),
            retries=self._retries,
            reporter=self._reporter,
            lease=self._lease,
            metrics=PreemptionMetrics(registry),
            epoch_s=time.time,
        )
        verbs = Verbs(self._state, self._binds)
        app = App(
            verbs,
            registry=registry,
            why_unready=self._why_unready,
            pages_port=pages.getsockname()[1] if pages else None,
        )
        self._server = Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", ws="none",
                server_header=False, timeout_keep_alive=KEEP_ALIVE_S,
            )
        )  # fmt: skip

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        serving = asyncio.create_task(self._server.serve(self._sockets))
        host, port = self._sockets[0].getsockname()[:2]
        log.info("extender started", listen=f"{host}:{port}", identity=self._lease.identity)
        leading = asyncio.create_task(self._lead())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((leading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
        finally:
            stopping.cancel()
            leading.cancel()
            await asyncio.wait([leading])
            await self._leave(serving)

    async def _lead(self) -> None:
        """Ends only by raising."""
        await self._lease.won()
        log.info("leading; listing nodes and pods", lease=self._settings.lease)
        began_s = time.monotonic()
        following = asyncio.create_task(self._source.follow(self._state))
        upkeep = asyncio.create_task(self._upkeep(began_s))
        losing = asyncio.create_task(self._lease.lost())
        beside = [following, upkeep]
        if self._settings.preempt:
            beside.append(asyncio.create_task(self._preempt()))
        try:
            await asyncio.wait((losing, *beside), return_when=asyncio.FIRST_COMPLETED)
            for task in beside:
                if task.done():
                    task.result()
            why = await losing
            raise GiveUp(
                f"lost the Lease {self._settings.lease}: {why}; this process ends, and is started "
                "anew by its Deployment"
            )
        finally:
            for ending in (losing, *beside):
                ending.cancel()
            await asyncio.wait((losing, *beside))

    async def _upkeep(self, began_s: float) -> None:
        while not self._state.synced:  # noqa: ASYNC110 - the state is pure, and knows no events
            await asyncio.sleep(0.05)
        # What is known now lives long: the collector need not look at it at every turn.
        gc.collect()
        gc.freeze()
        log.info(
            "in sync",
            nodes=len(self._state.nodes),
            pods=len(self._state.pods),
            after_s=round(time.monotonic() - began_s, 2),
        )
        audit_at_s = time.monotonic()
        while True:
            await asyncio.sleep(SETTLE_S)
            await self._binds.settle()
            now_s = time.monotonic()
            self._preempting.look(now_s=now_s)
            await retry(self._state.waiting, self._retries, now_s=now_s)
            await self._reserving.step()
            await self._growth.look(now_s=now_s)
            if now_s - audit_at_s >= self._settings.audit_s:
                audit_at_s = now_s
                await audit(self._state, self._reporter)

    async def _preempt(self) -> None:
        """Beside the upkeep: an eviction may take long, and nothing else should wait for it."""
        while True:
            await asyncio.sleep(SETTLE_S)
            if self._state.synced:
                await self._preempting.turn(now_s=time.monotonic())

    def _why_unready(self) -> str | None:
        try:
            self._binds.check_leading()
        except NotLeading as why:
            return str(why)
        return None

    async def _leave(self, serving: "asyncio.Task[None]") -> None:
        """Answer nobody new, let what is asked for end, and give the Lease away if nothing can
        land.
        """
        self._server.should_exit = True
        await serving
        until_s = time.monotonic() + BIND_S
        while not self._settled and time.monotonic() < until_s:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.05)
        if self._lease.leading and self._settled:
            await self._lease.release()
        log.info("stopped")

    @property
    def _settled(self) -> bool:
        """Whether nothing that we asked for can still take effect."""
        return self._binds.settled and self._reserving.settled


async def audit(state: ClusterState, reporter: Reporter) -> None:
    """Look at every node, a few at a time, so that no call waits for it."""
    for count, name in enumerate(tuple(state.fleet.nodes)):
        if count % AUDIT_AT_ONCE == 0:
            await asyncio.sleep(0)
        node = state.nodes.get(name)
        for doubt in state.audit(name) if node is not None else ():
            cards = ", ".join(doubt.uuids)
            if node is not None:
                reporter.warn(
                    node=node,
                    reason="GpuAllocationDoubted",
                    message=f"{doubt.why}; no more pods get {cards or 'its GPUs'} until that ends",
                )
