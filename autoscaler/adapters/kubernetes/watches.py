# SPDX-License-Identifier: Apache-2.0
"""The informers of a controller, and whom each one tells. It knows no rule of its own.

What the cluster has no CRD of is looked for again by the informer itself.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from autoscaler.adapters.kubernetes import gpus, objects
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.budget import KubernetesBudget
from autoscaler.adapters.kubernetes.cluster import KubernetesCluster
from autoscaler.adapters.kubernetes.informer import Informer
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.objects import (
    MANAGED_BY,
    OUR_SLICES,
    KubeService,
    OtherScaler,
    Pod,
    Slice,
    Workload,
)
from autoscaler.adapters.kubernetes.policies import Policies
from autoscaler.adapters.kubernetes.resources import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    HPAS,
    INFERENCE_SERVICES,
    LEADER_WORKER_SETS,
    LLM_INFERENCE_SERVICES,
    NODES,
    PODS,
    SCALED_OBJECTS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)
from autoscaler.adapters.kubernetes.routes import KubernetesRoutes
from autoscaler.manifests import Wanted

log = structlog.get_logger(__name__)

Key = tuple[str, str]

SCALED: Final = (DEPLOYMENTS, STATEFUL_SETS, LEADER_WORKER_SETS)
SPOKEN_FOR: Final = (INFERENCE_SERVICES, LLM_INFERENCE_SERVICES)  # their Deployments are scaled
ACTIVATOR_PODS: Final = "app.kubernetes.io/name=tidegate,app.kubernetes.io/component=activator"


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look. `namespaces` empty: the whole cluster. `own`: where Tidegate itself runs."""

    own: str
    namespaces: tuple[str, ...] = ()
    more_kinds: tuple[Resource, ...] = ()


class Watches:
    """Lists and watches everything a controller needs; `start()` it, `stop()` it.

    For the budget it also looks at nodes, and at the pods of all namespaces. Nobody waits for what
    cannot be had of that: where it is not permitted, nothing is capped.
    """

    def __init__(
        self,
        api: KubeApi,
        scope: Scope,
        *,
        inventory: Inventory,
        cluster: KubernetesCluster,
        routes: KubernetesRoutes,
        budget: KubernetesBudget | None = None,
    ) -> None:
        self._inventory = inventory
        self._cluster = cluster
        self._routes = routes
        self._budget = budget
        self._policies = Policies(api, on_change=cluster.declared)
        everywhere = scope.namespaces
        self._activators = Informer(
            api,
            PODS,
            parse=objects.pod,
            namespaces=(scope.own,),
            label_selector=ACTIVATOR_PODS,
            on_change=lambda key, old, new: self._routes.activators_changed(),
        )
        self._informers: list[Informer[Any]] = [
            self._activators,
            Informer(
                api,
                PODS,
                parse=_pod_with_gpus if budget is not None and not everywhere else objects.pod,
                namespaces=everywhere,
                on_change=self._pod,
            ),
            Informer(
                api,
                SERVICES,
                parse=objects.service,
                namespaces=everywhere,
                on_change=self._service,
            ),
            Informer(
                api,
                ENDPOINT_SLICES,
                parse=objects.our_slice,
                namespaces=everywhere,
                label_selector=f"{MANAGED_BY}={OUR_SLICES}",
                on_change=self._slice,
            ),
        ]
        for resource in (*SCALED, *scope.more_kinds):
            cluster.scales(resource)
            cluster.hears(resource)
            read = partial(objects.workload, plural=resource.plural, read=self._policies.wanted)
            self._add(api, resource, read, everywhere, self._workload)
        for resource in SPOKEN_FOR:
            cluster.hears(resource)
            told = partial(self._declared, resource.plural)
            parse = partial(self._policies.wanted, plural=resource.plural)
            self._add(api, resource, parse, everywhere, told)
        for resource in (HPAS, SCALED_OBJECTS):
            self._add(api, resource, objects.autoscaler, everywhere, self._other_scaler)
        self._of_budget = [] if budget is None else self._for_budget(api, budget, everywhere)
        cluster.synced = lambda: self.synced
        self._running: asyncio.Task[None] | None = None

    def _add(
        self, api: KubeApi, resource: Resource, parse: Any, namespaces: tuple[str, ...], told: Any
    ) -> None:
        self._informers.append(
            Informer(api, resource, parse=parse, namespaces=namespaces, on_change=told)
        )

    def _for_budget(
        self, api: KubeApi, budget: KubernetesBudget, namespaces: tuple[str, ...]
    ) -> list[Informer[Any]]:
        informers: list[Informer[Any]] = [
            Informer(api, NODES, parse=gpus.node, on_change=budget.node_changed)
        ]
        if namespaces:  # GPUs are shared with all the others
            informers.append(
                Informer(
                    api,
                    PODS,
                    parse=_pod_if_gpus,
                    on_change=lambda key, old, new: budget.pod_changed(old, new),
                )
            )
        budget.unknown = lambda: _not_listed(informers)
        return informers

    @property
    def synced(self) -> bool:
        """Whether everything has been listed once that deciding cannot do without."""
        return all(informer.synced for informer in self._informers)

    @property
    def activator_pods(self) -> Mapping[str, Pod]:
        """The activator pods that take requests, by name."""
        pods = self._activators.objects.values()
        return {pod.name: pod for pod in pods if pod.ready and not pod.deleting and pod.ip}

    @property
    def activators_expected(self) -> int:
        pods = self._activators.objects.values()
        return sum(not pod.deleting and not pod.failed for pod in pods)

    def activator_lives(self, name: str) -> bool:
        pods = self._activators.objects.values()
        return any(pod.name == name and not pod.failed for pod in pods)

    def ages_s(self, now_s: float) -> Mapping[str, float]:
        """Of each kind of object, how long ago the API server was last heard of it."""
        informers = (*self._of_budget, *self._informers)
        heard = {i.resource.plural: i.heard_at_s for i in informers}
        return {plural: now_s - at_s for plural, at_s in heard.items() if at_s is not None}

    @property
    def recovered_at_s(self) -> float | None:
        """When the API server was last found again after it was out of reach."""
        recovered = [i.recovered_at_s for i in self._informers if i.recovered_at_s is not None]
        return max(recovered, default=None)

    async def wait_synced(self) -> None:
        """Until everything was listed once, and every ConfigMap that is named was read.

        Of the budget until all was listed, or the API server said why not.
        """
        await asyncio.gather(*(informer.wait_synced() for informer in self._informers))
        await self._policies.wait_read()
        await asyncio.gather(*(informer.wait_answered() for informer in self._of_budget))

    def start(self) -> "asyncio.Task[None]":
        """Run all informers; the task ends early only with an error of ours: watch it."""
        self._running = asyncio.create_task(self._run(), name="watches")
        return self._running

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as running:
            running.create_task(self._policies.run(), name="policies")
            for informer in (*self._informers, *self._of_budget):
                running.create_task(informer.run())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    # Who is told what

    def _workload(self, key: Key, old: Workload | None, new: Workload | None) -> None:
        if old is not None and new is None:
            self._policies.forget(old.key)
        self._cluster.workload_changed(old, new)

    def _pod(self, key: Key, old: Pod | None, new: Pod | None) -> None:
        self._cluster.pod_changed(old, new)
        if self._budget is not None:
            self._budget.pod_changed(old, new)

    def _service(self, key: Key, old: KubeService | None, new: KubeService | None) -> None:
        concerned = self._inventory.targets_behind(old) if old is not None else []
        self._inventory.service_changed(old, new)
        if new is not None:
            concerned += self._inventory.targets_behind(new)
        self._cluster.services_changed(concerned)

    def _slice(self, key: Key, old: Slice | None, new: Slice | None) -> None:
        self._routes.slice_changed(old, new)

    def _declared(
        self,
        plural: str,
        key: Key,
        old: tuple[Wanted, ...] | None,
        new: tuple[Wanted, ...] | None,
    ) -> None:
        if new is None:
            self._policies.forget((plural, *key))
        self._cluster.declared((plural, *key), new or ())

    def _other_scaler(self, key: Key, old: OtherScaler | None, new: OtherScaler | None) -> None:
        self._cluster.other_scaler_changed(old, new)


def _pod_with_gpus(raw: objects.Raw) -> Pod:
    return objects.pod(raw, gpus=gpus.use_of)


def _pod_if_gpus(raw: objects.Raw) -> Pod | None:
    pod = _pod_with_gpus(raw)
    return pod if pod.gpus is not None else None


def _not_listed(informers: Iterable[Informer[Any]]) -> str:
    """Why not all of these were listed yet; empty: they were."""
    waiting = [informer for informer in informers if not informer.synced]
    return "; ".join(
        informer.trouble or f"{informer.resource.plural} are still being listed"
        for informer in waiting
    )
