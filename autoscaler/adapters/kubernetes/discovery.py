# SPDX-License-Identifier: Apache-2.0
"""The activator's finding of endpoints: an EndpointSlice watch in each namespace it serves.

Slices are read as kube-proxy reads them: all slices of a Service are one list, each slice has port
numbers of its own, and an endpoint may stand in two of them for a moment. The slices by which the
controller brings activators into the path are left out, or activators would send to each other.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final

from autoscaler.adapters.kubernetes.api import KubeApi, Raw
from autoscaler.adapters.kubernetes.informer import Informer
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES
from autoscaler.core.found import Found
from autoscaler.core.routes import Backend

SERVICE_LABEL: Final = "kubernetes.io/service-name"
MANAGED_BY_LABEL: Final = "endpointslice.kubernetes.io/managed-by"
OURS: Final = "tidegate.dev"
_SELECTOR: Final = f"{SERVICE_LABEL},{MANAGED_BY_LABEL}!={OURS}"

Service = tuple[str, str]  # namespace, name
Key = tuple[str, str]  # namespace, slice


@dataclass(frozen=True, slots=True)
class Slice:
    """What is kept of one EndpointSlice. `ports`: by name; `found` have no port yet."""

    service: str
    family: str
    ports: Mapping[str, int]
    found: tuple[Found, ...]


def parse_slice(raw: Raw) -> Slice | None:
    """What is kept of an EndpointSlice; None: it is ours, of no Service, or names no addresses."""
    labels: dict[str, str] = raw["metadata"].get("labels") or {}
    service = labels.get(SERVICE_LABEL)
    family: str = raw["addressType"]
    if not service or labels.get(MANAGED_BY_LABEL) == OURS or family not in ("IPv4", "IPv6"):
        return None
    ports = {
        str(port.get("name") or ""): int(port["port"])
        for port in raw.get("ports") or ()
        if port.get("port") and port.get("protocol", "TCP") == "TCP"
    }
    found = (_parse_endpoint(endpoint) for endpoint in raw.get("endpoints") or ())
    return Slice(service, family, ports, tuple(found))


def _parse_endpoint(raw: Mapping[str, Any]) -> Found:
    """An endpoint of a slice. What its conditions leave open counts as ready, as the API says."""
    conditions = raw.get("conditions") or {}
    address = str(raw["addresses"][0])  # the others, where there are any, mean nothing
    target = raw.get("targetRef") or {}
    pod = target.get("name") if target.get("kind") == "Pod" else None
    return Found(
        id=str(pod or address),
        host=address,
        port=0,
        ready=conditions.get("ready") is not False,
        terminating=conditions.get("terminating") is True,
    )


def found_in(slices: Collection[Slice], port_name: str) -> tuple[Found, ...]:
    """The endpoints of one Service port, each once, in the order of their ids.

    Of a replica with addresses in both families the IPv4 one counts; of one that stands in two
    slices the ready one, for the other is the older.
    """
    best: dict[str, tuple[tuple[bool, bool], Found]] = {}
    for each in slices:
        port = each.ports.get(port_name)
        if port is None:
            continue
        for found in each.found:
            rank = (each.family == "IPv4", found.ready)
            if found.id not in best or rank > best[found.id][0]:
                best[found.id] = (rank, replace(found, port=port))
    return tuple(best[id_][1] for id_ in sorted(best))


class KubernetesDiscovery:
    """Endpoints as the cluster lists them, for as long as the context lasts.

    A namespace that may not be watched, or cannot be for now, leaves what was found there as it
    was: see `Informer`.
    """

    def __init__(self, api: KubeApi) -> None:
        self.on_change: Callable[[Service], None] = lambda service: None
        self._api = api
        self._watches = asyncio.TaskGroup()
        self._watching: dict[str, tuple[asyncio.Task[None], Informer[Slice]]] = {}
        self._services: set[Service] = set()
        self._slices: dict[Service, dict[Key, Slice]] = {}

    async def __aenter__(self) -> "KubernetesDiscovery":
        await self._watches.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.follow(())
        await self._watches.__aexit__(kind, error, trace)

    def follow(self, backends: Collection[Backend]) -> None:
        """Watch the namespaces of these backends from now on, and no others."""
        self._services = {(backend.namespace, backend.service) for backend in backends}
        wanted = {backend.namespace for backend in backends}
        for namespace in self._watching.keys() - wanted:
            self._watching.pop(namespace)[0].cancel()
            for service in [each for each in self._slices if each[0] == namespace]:
                del self._slices[service]
        for namespace in wanted - self._watching.keys():
            informer: Informer[Slice] = Informer(
                self._api,
                ENDPOINT_SLICES,
                parse=parse_slice,
                namespaces=(namespace,),
                label_selector=_SELECTOR,
                on_change=self._changed,
            )
            task = self._watches.create_task(self._watch(namespace, informer))
            self._watching[namespace] = (task, informer)

    def found(self, backend: Backend) -> tuple[Found, ...] | None:
        """The backend's endpoints; None as long as its namespace has not been listed once."""
        watching = self._watching.get(backend.namespace)
        if watching is None or not watching[1].synced:
            return None
        slices = self._slices.get((backend.namespace, backend.service), {})
        return found_in(slices.values(), backend.port_name)

    async def _watch(self, namespace: str, informer: Informer[Slice]) -> None:
        running = informer.start()
        try:
            await informer.wait_synced()
            for service in [each for each in self._services if each[0] == namespace]:
                self.on_change(service)  # also that there is nothing is news
            await running
        finally:
            await informer.stop()

    def _changed(self, key: Key, old: Slice | None, new: Slice | None) -> None:
        namespace = key[0]
        if namespace not in self._watching:
            return
        touched = {(namespace, each.service) for each in (old, new) if each is not None}
        if old is not None:
            self._slices.get((namespace, old.service), {}).pop(key, None)
        if new is not None:
            self._slices.setdefault((namespace, new.service), {})[key] = new
        for service in touched & self._services:
            self.on_change(service)
