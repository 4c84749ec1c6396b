# SPDX-License-Identifier: Apache-2.0
"""Brings activators into the path of Kubernetes Services and out again: `ports.RouteTable`.

A Service keeps its selector and its own slices. To be in the path, one more EndpointSlice lists the
activators under the Service's port names; to be out, that slice is gone. Every Service port has a
port of its own on the activators, so that a request says by where it arrives whom it is for. Only
this file writes EndpointSlices.
"""

import asyncio
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi, Patch
from autoscaler.adapters.kubernetes.cluster import Governed, KubernetesCluster
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.inventory import Inventory, Name
from autoscaler.adapters.kubernetes.objects import (
    FIELD_MANAGER,
    MANAGED_BY,
    OUR_SLICES,
    SERVICE_NAME,
    KubeService,
    Pod,
    ServicePort,
    Slice,
)
from autoscaler.adapters.kubernetes.ports import PortsOfRoutes
from autoscaler.adapters.kubernetes.proof import Proofs
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES
from autoscaler.channel import Hello
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.routes import Backend, Demand, Endpoint, Route
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.errors import GiveUp, TidegateError
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)

GATHER_S: Final = 0.05  # changes within so long go to the activators together
WRITES_AT_ONCE: Final = 16
RETRY_S: Final = 1.0  # after a slice could not be written
CLUSTER_DOMAIN: Final = "cluster.local"


class Activators(Protocol):
    """What is asked of the activators; `adapters/activators.py` speaks to them."""

    def publish(self, routes: Mapping[str, Route]) -> None: ...

    def demand(self, service: str) -> Demand | NoReading: ...

    def holders(self, service: str) -> Collection[Hello]:
        """The activators proven to listen for a route as it was published, and here to stay."""
        ...


@dataclass(slots=True)
class _State:
    """What is known of one service's path."""

    wanted: bool = False
    decided: bool = False  # since this process leads
    state: str = "asleep"
    why: str = ""
    routes: dict[str, Route] = field(default_factory=dict)
    built_for: tuple[ServicePolicy, bool] | None = None  # policy, parked: as the routes have it


class KubernetesRoutes:
    """The activators in or out of each service's path. To be used within one event loop.

    `on_change(service)` is called once the path is proven; `activator_pods()` are those that may be
    listed, by name. While `proxies_lag()` no slice is deleted, since a kube-proxy that hears of it
    before it hears of pods that became ready refuses the Service's clients; and no path is proven.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        inventory: Inventory,
        cluster: KubernetesCluster,
        activators: Activators,
        clock: Clock,
    ) -> None:
        self.on_change: Callable[[ServiceId], None] = lambda service: None
        self.activator_pods: Callable[[], Mapping[str, Pod]] = dict
        self.proxies_lag: Callable[[], bool] = lambda: False
        self._api = api
        self._inventory = inventory
        self._cluster = cluster
        self._activators = activators
        self._proofs = Proofs(clock=clock, on_proof=lambda service: self.on_change(service))
        self._ports = PortsOfRoutes()
        self._states: dict[ServiceId, _State] = {}
        self._slices: dict[Name, Slice] = {}  # by the Service's name
        self._service_of: dict[str, ServiceId] = {}  # by route key
        self._stale: set[ServiceId] = set()
        self._publishing: asyncio.TimerHandle | None = None
        self._complete = False
        self._due: set[Name] = set()
        self._retries: dict[Name, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()
        self._writing = asyncio.Semaphore(WRITES_AT_ONCE)

    # What the informers say

    def slice_changed(self, old: Slice | None, new: Slice | None) -> None:
        """One of our own slices changed."""
        either = new or old
        if either is None:
            return
        name = (either.namespace, either.service)
        if new is None:
            self._slices.pop(name, None)
            self._proofs.forget(name)
        else:
            self._slices[name] = new
            for port_name, port in new.ports.items():
                self._ports.keep(_key(new.namespace, new.service, port_name), port)
        self._reconcile(name)

    def service_changed(self, service: ServiceId) -> None:
        """A service's pods, policy or Services changed."""
        self._stale.add(service)
        self._publish_soon()

    def activators_changed(self) -> None:
        """Activator pods came, went, or follow another table: every slice of ours is looked at."""
        for service, state in self._states.items():
            if state.wanted:
                for kube in self._services(service):
                    self._reconcile(kube.key)
        for name in self._slices:
            self._reconcile(name)

    def begin(self) -> None:
        """Every service has been looked at once: from now on activators are told.

        Before that a table would lack services, and an activator ends those that it does not name;
        and a slice whose service is not known yet would be taken for one that nobody wants.
        """
        self._complete = True
        self._publish()

    # ports.RouteTable

    async def hold(self, service: ServiceId) -> bool:
        state = self._states.setdefault(service, _State())
        names = [s.key for s in self._services(service)]
        state.decided = True
        if not state.wanted:
            state.wanted = True
            self._republish(service)
            for name in names:
                self._reconcile(name)
        # What one node's kube-proxy proves says nothing of one that has yet to hear of the slice.
        return (
            bool(names)
            and not self.proxies_lag()
            and all(name in self._slices and self._proofs.proven(name) for name in names)
        )

    async def release(self, service: ServiceId) -> None:
        state = self._states.setdefault(service, _State())
        names = [s.key for s in self._services(service)]
        state.decided = True
        if state.wanted or any(name in self._slices for name in names):
            state.wanted = False
            self._republish(service)
            for name in names:
                self._proofs.forget(name)
                self._reconcile(name)

    def in_path(self, service: ServiceId) -> bool:
        state = self._states.get(service)
        if state is not None and state.wanted:
            return True
        return any(each.key in self._slices for each in self._services(service))

    async def announce(self, service: ServiceId, *, state: str, why: str) -> None:
        known = self._states.setdefault(service, _State())
        governed = self._cluster.governed.get(service)
        built_for = None
        if governed is not None and governed.view is not None:
            built_for = (governed.view.policy, governed.parked)
        if (known.state, known.why, known.built_for) != (state, why, built_for):
            known.state, known.why = state, why
            self._republish(service)

    # What others ask

    def service_of(self, route: str) -> ServiceId | None:
        return self._service_of.get(route)

    def demand(self, service: ServiceId) -> Demand | NoReading:
        """What the activators know of a service, over all its Services and ports."""
        state = self._states.get(service)
        if state is None or not state.routes:
            return NoReading("no Service selects its pods, so no activator can see its requests")
        total: Demand | None = None
        for route in state.routes:
            demand = self._activators.demand(route)
            if isinstance(demand, NoReading):
                return demand
            total = demand if total is None else total + demand
        return total or Demand(str(service))

    # Routes

    def _services(self, service: ServiceId) -> list[KubeService]:
        governed = self._cluster.governed.get(service)
        return [] if governed is None else self._cluster.services_before(governed)

    def _republish(self, service: ServiceId) -> None:
        self._stale.add(service)
        self._publish_soon()

    def _publish_soon(self) -> None:
        if self._publishing is None:
            self._publishing = asyncio.get_running_loop().call_later(GATHER_S, self._publish)

    def _publish(self) -> None:
        """Build the routes of what changed anew, and hand the whole table to the activators."""
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        if not self._complete:
            return
        stale, self._stale = self._stale, set()
        for service in stale:
            governed = self._cluster.governed.get(service)
            state = self._states.setdefault(service, _State())
            try:
                state.routes = self._routes(service, governed, state) if governed else {}
            except GiveUp as trouble:  # what was said last stays in force
                log.error("a service has no route; it cannot sleep", why=str(trouble))
            if governed is None:
                del self._states[service]
        # Two targets may stand behind one Service: whoever can be woken speaks for it.
        self._service_of, table = {}, {}
        for service, state in sorted(self._states.items(), key=self._weight):
            for key, route in state.routes.items():
                self._service_of[key], table[key] = service, route
        self._activators.publish(table)
        for name in self._slices:
            if not self._is_wanted(name):
                self._reconcile(name)

    def _weight(self, item: tuple[ServiceId, _State]) -> tuple[bool, bool, str]:
        """The order in which services speak for a Service that they share; the last one counts."""
        service, state = item
        governed = self._cluster.governed.get(service)
        return (governed is not None and not governed.parked, state.wanted, str(service))

    def _routes(self, service: ServiceId, governed: Governed, state: _State) -> dict[str, Route]:
        view = governed.view
        if view is None and (state.routes or not self._is_sliced(service)):
            return state.routes  # what was said last stays in force
        # Of a sleeping service whose policy is not known, the requests are held all the same.
        policy = ServicePolicy() if view is None else view.policy
        workload = self._inventory.workloads.get(governed.target)
        if workload is None:
            return state.routes  # it is being made anew, perhaps: those that wait may go on waiting
        state.built_for = (policy, governed.parked)
        routes = {}
        for kube in self._services(service):
            for port in kube.ports:
                target = port.target
                number = target if isinstance(target, int) else workload.ports.get(target, 0)
                route = self._route(kube, port, state, policy, governed, number=number)
                routes[route.service] = route
        return routes

    def _is_sliced(self, service: ServiceId) -> bool:
        return any(kube.key in self._slices for kube in self._services(service))

    def _route(
        self,
        kube: KubeService,
        port: ServicePort,
        state: _State,
        policy: ServicePolicy,
        governed: Governed,
        *,
        number: int,
    ) -> Route:
        key = _key(kube.namespace, kube.name, port.name)
        workload = self._inventory.workloads[governed.target]
        headless = not kube.cluster_ip
        return Route(
            service=key,
            host="::" if kube.ipv6 else "",
            port=number if headless else self._ports.of(key),
            hosts=_hosts(kube) if headless else (),
            endpoints=self._endpoints(governed, policy, number),
            hold_limit=0 if governed.parked else policy.hold_limit,
            hold_bytes=policy.hold_bytes,
            hold_timeout_s=policy.hold_timeout_s,
            backend=Backend(
                kube.namespace, kube.name, port.name, probe=workload.probe, slots=policy.slots
            ),
            in_path=state.wanted,
            state=state.state,
            why=state.why,
        )

    def _endpoints(
        self, governed: Governed, policy: ServicePolicy, port: int
    ) -> tuple[Endpoint, ...]:
        """Only where slots are to be shared out: else the activators find all there is to know."""
        if policy.slots is None:
            return ()
        pods = self._inventory.pods_of(governed.target).values()
        return tuple(
            Endpoint(pod.name, pod.ip, port, policy.slots, pod.deleting)
            for pod in sorted(pods, key=lambda pod: pod.name)
            if pod.ip
        )

    # Slices

    def _is_wanted(self, name: Name) -> bool:
        """Whether the activators should stand before a Service."""
        kube = self._inventory.services.get(name)
        service = None if kube is None else self._service_behind(kube)
        return service is not None and self._states[service].wanted

    def _is_undecided(self, kube: KubeService) -> bool:
        """Whether a new leader has yet to decide on a service: until then its path stays."""
        return any(
            not (service in self._states and self._states[service].decided)
            for service in self._ours_behind(kube)
        )

    def _ours_behind(self, kube: KubeService) -> list[ServiceId]:
        """The services that a Service leads to."""
        services = [ServiceId(ns, name) for _, ns, name in self._inventory.targets_behind(kube)]
        return [service for service in services if service in self._cluster.governed]

    def _service_behind(self, kube: KubeService) -> ServiceId | None:
        keys = (_key(kube.namespace, kube.name, port.name) for port in kube.ports)
        return next((self._service_of[key] for key in keys if key in self._service_of), None)

    def _reconcile(self, name: Name) -> None:
        self._due.add(name)
        self._news.set()

    async def run(self) -> None:
        """Write slices as they come due, until cancelled."""
        async with asyncio.TaskGroup() as writing:
            while True:
                await self._news.wait()
                self._news.clear()
                due, self._due = self._due, set()
                for name in due:
                    writing.create_task(self._settle(name))

    async def prove(self) -> None:
        """Probe every Service that an activator should stand before, until cancelled."""
        await self._proofs.run(self._to_prove)

    def _to_prove(self) -> list[tuple[ServiceId, KubeService]]:
        return [
            (service, kube)
            for service, state in self._states.items()
            if state.wanted
            for kube in self._services(service)
            if kube.key in self._slices
        ]

    async def _settle(self, name: Name) -> None:
        """Make one slice what it should be."""
        async with self._writing:
            try:
                await self._write(name)
            except TidegateError as trouble:
                log.warning("an EndpointSlice was not written", service=name, why=str(trouble))
                self._look_again(name)

    def _look_again(self, name: Name) -> None:
        if (waiting := self._retries.get(name)) is not None:
            waiting.cancel()  # else each change meanwhile would start retries of its own
        later = asyncio.get_running_loop().call_later(RETRY_S, self._again, name)
        self._retries[name] = later

    def _again(self, name: Name) -> None:
        del self._retries[name]
        self._reconcile(name)

    async def _write(self, name: Name) -> None:
        there = self._slices.get(name)
        kube = self._inventory.services.get(name)
        if kube is None or not self._is_wanted(name):
            if there is None:
                return
            # Of a service that is no longer ours the activators answer nothing any more.
            if kube is not None and self._ours_behind(kube) and self.proxies_lag():
                self._look_again(name)
                return
            if kube is None or not self._is_undecided(kube):
                await self._delete(there)
                return
            # Nobody may move this path for now; that its activators live is seen to all the same.
        addresses, ports = self._contents(kube, there)
        if not addresses and there is not None:
            return  # better those who served a moment ago than nobody
        if not addresses or not ports:
            return
        if there is None:
            await self._create(kube, addresses, ports)
        elif (there.addresses, there.ports) != (frozenset(addresses), ports):
            await self._replace(there, kube, addresses, ports)

    def _contents(
        self, kube: KubeService, there: Slice | None
    ) -> tuple[dict[str, Pod], dict[str, int]]:
        """The activators that serve all ports of a Service (address -> pod), and those ports."""
        keys = {port.name: _key(kube.namespace, kube.name, port.name) for port in kube.ports}
        service = self._service_behind(kube)
        if service is None:
            return {}, {}
        routes = self._states[service].routes
        ports = {name: routes[key].port for name, key in keys.items() if key in routes}
        if not ports:
            return {}, {}
        serving = [{h.pod for h in self._activators.holders(key)} for key in keys.values()]
        pods = self.activator_pods()
        listed = there.addresses if there is not None else frozenset()
        # One that was listed and is ready has its routes, also if it has not spoken to us yet.
        names = set.intersection(*serving) | {n for n, pod in pods.items() if pod.ip in listed}
        return {pods[n].ip: pods[n] for n in sorted(names & pods.keys()) if pods[n].ip}, ports

    async def _create(
        self, kube: KubeService, addresses: Mapping[str, Pod], ports: Mapping[str, int]
    ) -> None:
        path = ENDPOINT_SLICES.path(kube.namespace)
        try:
            await self._api.create(path, _body(kube, addresses, ports))
        except Conflict:  # the watch has not shown it yet
            await self._replace_named(kube, _slice_name(kube.name), addresses, ports)

    async def _replace(
        self,
        there: Slice,
        kube: KubeService,
        addresses: Mapping[str, Pod],
        ports: Mapping[str, int],
    ) -> None:
        await self._replace_named(kube, there.name, addresses, ports)

    async def _replace_named(
        self, kube: KubeService, name: str, addresses: Mapping[str, Pod], ports: Mapping[str, int]
    ) -> None:
        body = _body(kube, addresses, ports)
        await self._api.patch(
            ENDPOINT_SLICES.path(kube.namespace, name),
            {"endpoints": body["endpoints"], "ports": body["ports"]},
            kind=Patch.MERGE,
            params={"fieldManager": FIELD_MANAGER},
        )

    async def _delete(self, there: Slice) -> None:
        try:
            await self._api.delete(ENDPOINT_SLICES.path(there.namespace, there.name))
            self._slices.pop((there.namespace, there.service), None)  # before any watch says so
            self._proofs.forget((there.namespace, there.service))
        except NotFound:
            log.debug("a slice was gone before it was deleted", slice=there.name)


def _key(namespace: str, service: str, port_name: str) -> str:
    return f"{namespace}/{service}:{port_name}"


def _hosts(kube: KubeService) -> tuple[str, ...]:
    short = f"{kube.name}.{kube.namespace}"
    return (kube.name, short, f"{short}.svc", f"{short}.svc.{CLUSTER_DOMAIN}")


def _slice_name(service: str) -> str:
    """A name of at most 253 characters that no other Service of the namespace leads to."""
    name = f"tidegate-{service}"
    return name if len(name) <= 240 else f"{name[:230]}-{zlib.crc32(service.encode()):08x}"


def _body(
    kube: KubeService, addresses: Mapping[str, Pod], ports: Mapping[str, int]
) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": _slice_name(kube.name),
            "namespace": kube.namespace,
            "labels": {SERVICE_NAME: kube.name, MANAGED_BY: OUR_SLICES},
        },
        "addressType": "IPv6" if kube.ipv6 else "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True},
                "targetRef": {
                    "kind": "Pod",
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "uid": pod.uid,
                },
            }
            for address, pod in addresses.items()
        ],
        "ports": [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports.items()],
    }
