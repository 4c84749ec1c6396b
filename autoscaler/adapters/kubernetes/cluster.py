# SPDX-License-Identifier: Apache-2.0
"""All services of a Kubernetes cluster as `ports.Cluster`. Only this file writes a count there.

A service is a scale target that somebody's annotations ask us to scale. Its view is kept and built
anew only when something about it changed: ticks over thousands of services read memory.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from autoscaler import schedule
from autoscaler.adapters.kubernetes.api import KubeApi, Patch
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.inventory import Inventory, Target
from autoscaler.adapters.kubernetes.objects import (
    DELETION_COST,
    FIELD_MANAGER,
    KubeService,
    Labels,
    OtherScaler,
    Pod,
    Workload,
)
from autoscaler.adapters.kubernetes.resources import PODS, Resource
from autoscaler.adapters.plain_http import At
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.core.signals import Query, ServiceId
from autoscaler.core.zero import SWITCHED_OFF
from autoscaler.errors import GiveUp, RetryLater, TidegateError
from autoscaler.manifests import Wanted
from autoscaler.ports import Clock, Refusal, ServiceView

log = structlog.get_logger(__name__)

GONE_FIRST: Final = "-1000"  # of all pods that are as ready, the ReplicaSet removes these first
WRITES_TRIED: Final = 3  # while an object's status moves under our hands
MARKED_MOST: Final = 64  # pods told apart before one scale-down; more is beyond any use
HANDED_OVER_S: Final = 2.0  # the watch may be so late with what an earlier leader wrote last
SOMEBODY: Final = "somebody else"
LEADER_ONLY: Final = "leaderworkerset.sigs.k8s.io/worker-index"  # "0": a group counts once

Owner = tuple[str, str, str]  # plural, namespace, name of the object that carries the annotations


@dataclass(slots=True)
class _PodTimes:
    """On the controller's own clock: machines disagree about the time."""

    first_seen_s: float
    ready_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A count of ours that the watch has not shown yet."""

    replicas: int
    version: int  # the object's, as we left it


@dataclass(slots=True)
class Governed:
    """One service, as `KubernetesCluster` holds it; only that changes it.

    `policy` is the last valid one: what is written now may be wrong (invariant I9). `problem`: why
    the service stands still, or must not sleep; for its status and events.
    """

    wanted: Wanted
    policy: ServicePolicy | None = None
    generation: int = 0
    scale: int = 0
    written_by: str = ""
    problem: str = ""
    stands_still: bool = False
    pods: dict[str, _PodTimes] = field(default_factory=dict)
    asked: _Asked | None = None
    tried: int | None = None  # to write this count; whether it was written is not known
    # Looked up once until something about the service changes; None: look.
    places: Mapping[str, At | None] | None = None  # of its pods' metrics
    services: list[KubeService] | None = None  # that select its pods
    view: ServiceView | None = None

    @property
    def target(self) -> Target:
        target = self.wanted.target
        return (target.plural, target.namespace, target.name)

    @property
    def parked(self) -> bool:
        """Somebody else set the count to 0 (rule D5)."""
        return self.scale == 0 and bool(self.written_by)


class KubernetesCluster:
    """Services by annotation, replicas by `/scale`. To be used within one event loop.

    `on_change(service)` is called when a service's pods or policy changed; `in_flight(service)`
    tells how many requests each pod has now, by pod name, as far as that is known.
    """

    def __init__(self, api: KubeApi, inventory: Inventory, *, clock: Clock) -> None:
        self.on_change: Callable[[ServiceId], None] = lambda service: None
        self.in_flight: Callable[[ServiceId], Mapping[str, float]] = lambda service: {}
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.synced: Callable[[], bool] = lambda: False
        self.leads: Callable[[], bool] = lambda: True
        self.governed: dict[ServiceId, Governed] = {}
        self._api = api
        self._inventory = inventory
        self._clock = clock
        self._declared: dict[Owner, tuple[Wanted, ...]] = {}
        self._speakers: defaultdict[ServiceId, dict[Owner, Wanted]] = defaultdict(dict)
        self._of_target: dict[Target, ServiceId] = {}
        self._selectors: dict[Target, Labels] = {}  # those that only a scale told
        self._resources: dict[str, Resource] = {}
        self._kinds: dict[str, Resource] = {}
        self._dirty: set[ServiceId] = set()
        self._scheduled: set[ServiceId] = set()
        # By what they scale: namespace, kind, name.
        self._others: dict[tuple[str, str, str], dict[str, OtherScaler]] = {}
        self._views: dict[ServiceId, ServiceView] = {}
        self._began_at_s: float | None = None

    # What the informers say

    def scales(self, resource: Resource) -> None:
        """Counts of this kind of object can be written."""
        self._resources[resource.plural] = resource

    def hears(self, resource: Resource) -> None:
        """Objects of this kind may carry annotations, or be scaled."""
        if resource.kind:
            self._kinds[resource.kind] = resource

    def resource_of(self, kind: str) -> Resource | None:
        return self._kinds.get(kind)

    def declared(self, owner: Owner, wanted: tuple[Wanted, ...]) -> None:
        """What an annotated object asks for now; empty: nothing any more."""
        before = self._declared.get(owner, ())
        if before == wanted:
            return
        if wanted:
            self._declared[owner] = wanted
        else:
            self._declared.pop(owner, None)
        for each in before:
            self._speakers[_service_of(each)].pop(owner, None)
        for each in wanted:
            self._speakers[_service_of(each)][owner] = each
            self._learn_kind(each)
        for service in dict.fromkeys(_service_of(each) for each in (*before, *wanted)):
            self._settle(service)

    def workload_changed(self, old: Workload | None, new: Workload | None) -> None:
        either = new or old
        if either is None:
            return
        if new is None:
            self._selectors.pop(either.key, None)
        elif new.selector is None:
            new = replace(new, selector=self._selectors.get(new.key))
        # As it is known there: with the selector that its scale told, where it told one.
        self._inventory.workload_changed(self._inventory.workloads.get(either.key), new)
        self.declared(either.key, new.wanted if new is not None else ())
        self._touch(either.key)

    def without_selector(self) -> list[tuple[Target, Resource]]:
        """The targets to be scaled that do not say themselves which pods are theirs."""
        return [
            (target, self._resources[target[0]])
            for target in self._of_target
            if target[0] in self._resources
            and (workload := self._inventory.workloads.get(target)) is not None
            and (workload.selector is None or target in self._selectors)
        ]

    def selector_found(self, target: Target, labels: Labels) -> None:
        """The scale of a target told which pods are its own."""
        workload = self._inventory.workloads.get(target)
        if workload is not None and self._selectors.get(target) != labels:
            self._selectors[target] = labels
            self.workload_changed(workload, replace(workload, selector=None))

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        for target in self._inventory.pod_changed(old, new):
            self._touch(target)

    def other_scaler_changed(self, old: OtherScaler | None, new: OtherScaler | None) -> None:
        if old is not None:
            self._others.get(_scaled(old), {}).pop(f"{old.kind}/{old.name}", None)
        if new is not None:
            self._others.setdefault(_scaled(new), {})[f"{new.kind}/{new.name}"] = new
        for other in (old, new):
            if other is not None:
                self._changed(ServiceId(other.namespace, other.target_name))

    def services_changed(self, targets: list[Target]) -> None:
        """The Services before these targets changed."""
        for target in targets:
            self._touch(target)

    # What others ask

    def metrics_places(self, service: ServiceId) -> Mapping[str, At | None]:
        """Each ready pod of a service -> where its metrics are; None where nothing tells.

        The same object as long as nothing changed.
        """
        governed = self.governed.get(service)
        if governed is None:
            return {}
        if governed.places is None:
            governed.places = self._places(governed)
        return governed.places

    def queries(self, service: ServiceId) -> tuple[Query, ...]:
        """The targets of a service that are PromQL."""
        governed = self.governed.get(service)
        policy = None if governed is None else governed.policy
        return () if policy is None else policy.queries

    def services_before(self, governed: Governed) -> list[KubeService]:
        """The Services that select a service's pods, by name."""
        if governed.services is None:
            governed.services = self._inventory.services_of(governed.target)
        return governed.services

    def _places(self, governed: Governed) -> Mapping[str, At | None]:
        guess = self._serving_port(governed.target)
        places: dict[str, At | None] = {}
        for pod in self._inventory.pods_of(governed.target).values():
            if pod.ready and not pod.deleting and pod.ip:
                port, path = pod.metrics or (guess, "/metrics")
                places[pod.name] = At(pod.ip, port, path, pod.processes) if port else None
        return places

    def _serving_port(self, target: Target) -> int:
        """The port that the first Service leads to; 0 where there is none."""
        workload = self._inventory.workloads.get(target)
        for kube in self._inventory.services_of(target):
            for port in kube.ports:
                if isinstance(port.target, int):
                    return port.target
                return workload.ports.get(port.target, 0) if workload is not None else 0
        return 0

    # ports.Cluster

    async def services(self) -> Mapping[ServiceId, ServiceView]:
        """Every service whose scale target exists. Raises `RetryLater` before all is listed."""
        if not self.synced():
            raise RetryLater("the cluster's objects are still being listed", after_s=1.0)
        if self._began_at_s is None:
            self._began_at_s = self._clock.now_s()
        self._dirty |= self._scheduled
        while self._dirty:
            service = self._dirty.pop()
            view = self._build(service)
            if view is None:
                self._views.pop(service, None)
            else:
                self._views[service] = view
        return self._views

    async def scale(self, service: ServiceId, replicas: int, *, generation: int) -> Refusal | None:
        if not self.leads():
            return Refusal("another controller leads by now")
        governed = self.governed.get(service)
        if governed is None or governed.view is None:
            return Refusal(f"{service} is no longer to be scaled")
        if generation != governed.generation:
            return Refusal(
                f"decided on generation {generation}, it is {governed.generation} by now"
            )
        resource = self._resources.get(governed.wanted.target.plural)
        if resource is None:
            return Refusal(f"{governed.wanted.target.kind} is not among the kinds to scale")
        refusal = Refusal("")
        for _ in range(WRITES_TRIED):
            try:
                if replicas < governed.scale:
                    await self._mark_idlest(service, governed, governed.scale - replicas)
                return await self._write(governed, resource, replicas)
            except Conflict as trouble:  # its status moved: the count may well be the same
                governed.tried = None  # nothing was written
                refusal = Refusal(str(trouble))
            except GiveUp as trouble:
                governed.tried = None
                return Refusal(str(trouble))
            except TidegateError as trouble:  # the next tick sees anew, and decides anew
                return Refusal(str(trouble))
        return refusal

    # How a view comes about

    def _settle(self, service: ServiceId) -> None:
        """Find out who speaks for a service now; of several the first by name, and it is said."""
        speakers = self._speakers[service]
        if not speakers:
            del self._speakers[service]
            governed = self.governed.pop(service, None)
            if governed is not None:
                self._of_target.pop(governed.target, None)
            self._scheduled.discard(service)
            self._changed(service)
            return
        wanted = speakers[min(speakers)]
        governed = self.governed.setdefault(service, Governed(wanted))
        self._of_target.pop(governed.target, None)
        governed.wanted = wanted
        governed.policy = wanted.policy or governed.policy
        self._of_target[governed.target] = service
        self._scheduled.discard(service)
        if governed.policy is not None and governed.policy.schedule:
            self._scheduled.add(service)
        self._changed(service)

    def _learn_kind(self, wanted: Wanted) -> None:
        """Of a kind that the settings name by its plural, its objects alone tell the name."""
        resource = self._resources.get(wanted.target.plural)
        if resource is not None and not resource.kind:
            self._kinds[wanted.target.kind] = replace(resource, kind=wanted.target.kind)
            self._resources[resource.plural] = self._kinds[wanted.target.kind]

    @property
    def _just_began(self) -> bool:
        now_s = self._clock.now_s()
        return self._began_at_s is None or now_s - self._began_at_s < HANDED_OVER_S

    def _touch(self, target: Target) -> None:
        service = self._of_target.get(target)
        if service is not None:
            self._changed(service)

    def _changed(self, service: ServiceId) -> None:
        self._dirty.add(service)
        governed = self.governed.get(service)
        if governed is not None:
            governed.places = governed.services = None
        self.on_change(service)

    def _build(self, service: ServiceId) -> ServiceView | None:
        governed = self.governed.get(service)
        if governed is None:
            return None
        workload = self._inventory.workloads.get(governed.target)
        if workload is None or governed.policy is None:
            governed.view = None
            governed.problem = _words(governed.wanted)
            if governed.wanted.policy is not None:
                target = governed.wanted.target
                governed.problem = f"there is no {target.kind} {target.name} yet"
            return None
        count, by = _count_of(governed, workload, just_began=self._just_began)
        governed.scale, governed.written_by = count, by
        policy = self._policy(governed, governed.policy)
        view = ServiceView(
            service=service,
            policy=policy,
            generation=governed.generation,
            scale=governed.scale,
            replicas=self._replicas(governed),
            written_by=governed.written_by,
        )
        before = governed.view
        if before is None or (before.policy, before.scale, before.written_by) != (
            view.policy, view.scale, view.written_by
        ):  # fmt: skip
            governed.generation += 1
            view = replace(view, generation=governed.generation)
        governed.view = view
        return view

    def _policy(self, governed: Governed, policy: ServicePolicy) -> ServicePolicy:
        """The policy as it holds now: the schedule's bounds, and what forbids sleep or acts."""
        policy = schedule.bounds_at(policy, self.now())
        governed.problem, governed.stands_still = _words(governed.wanted), False
        other = self._rival(governed)
        if other is not None and not policy.dry_run:  # a dry run writes nothing beside theirs
            governed.stands_still = True
            governed.problem = (
                f"{other.kind} {other.name} scales {governed.wanted.target.kind} "
                f"{governed.wanted.target.name} as well; delete it, "
                f"set tidegate.dev/enabled to false, or tidegate.dev/dry-run to true, "
                f"so that it alone writes"
            )
            return replace(policy, paused=True)
        shared = self._inventory.shared_with(governed.target)
        if shared is not None and policy.min_replicas == 0:
            governed.problem = governed.problem or (
                f"{shared[0]} {shared[2]} has replicas behind the same Service: the last replica "
                f"stays, so that its share of the requests is not lost"
            )
            return replace(policy, min_replicas=1)
        return policy

    def _rival(self, governed: Governed) -> OtherScaler | None:
        target = governed.wanted.target
        others = self._others.get((target.namespace, target.kind, target.name), {})
        return next(iter(others.values()), None)

    def _replicas(self, governed: Governed) -> tuple[Replica, ...]:
        now_s = self._clock.now_s()
        pods = self._inventory.pods_of(governed.target)
        for uid in governed.pods.keys() - pods.keys():
            del governed.pods[uid]
        replicas = []
        for uid, pod in pods.items():
            if pod.labels.get(LEADER_ONLY, "0") != "0":
                continue
            times = governed.pods.setdefault(uid, _PodTimes(now_s))
            state = _state(pod)
            if state is ReplicaState.READY and times.ready_at_s is None:
                times.ready_at_s = now_s
            replicas.append(Replica(pod.name, state, times.first_seen_s, times.ready_at_s, pod.why))
        return tuple(sorted(replicas, key=lambda replica: replica.id))

    # How a count is written

    async def _write(self, governed: Governed, resource: Resource, replicas: int) -> Refusal | None:
        """Write the count if it still is the one that was decided upon: read anew, then guarded."""
        target = governed.wanted.target
        path = resource.path(target.namespace, target.name, "scale")
        scale = await self._api.get(path)
        there = scale.get("spec", {}).get("replicas", 0)
        if there != governed.scale:
            return Refusal(f"the count is {there} by now, not {governed.scale}")
        version = scale["metadata"]["resourceVersion"]
        governed.tried = replicas
        written = await self._api.patch(
            path,
            {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}},
            kind=Patch.MERGE,
            params={"fieldManager": FIELD_MANAGER},
        )
        governed.asked = _Asked(replicas, int(written["metadata"]["resourceVersion"]))
        self._touch(governed.target)
        return None

    async def _mark_idlest(self, service: ServiceId, governed: Governed, count: int) -> None:
        """Have the idlest pods go first; a pod marked for a past scale-down is unmarked."""
        view = governed.view
        if view is None or governed.wanted.target.plural != "deployments":
            return
        pods = {pod.name: pod for pod in self._inventory.pods_of(governed.target).values()}
        ready = [r for r in view.replicas if r.state is ReplicaState.READY]
        if count >= len(ready):
            return  # all of them go
        busy = self.in_flight(service)
        idlest = sorted(ready, key=lambda r: (busy.get(r.id, 0.0), -r.asked_at_s))[:count]
        marks = {replica.id for replica in idlest[:MARKED_MOST]}
        for name, pod in pods.items():
            cost = GONE_FIRST if name in marks else None
            if pod.deletion_cost != cost and (cost or pod.deletion_cost == GONE_FIRST):
                await self._mark(pod, cost)

    async def _mark(self, pod: Pod, cost: str | None) -> None:
        try:
            await self._api.patch(
                PODS.path(pod.namespace, pod.name),
                {"metadata": {"annotations": {DELETION_COST: cost}}},
                kind=Patch.MERGE,
                params={"fieldManager": FIELD_MANAGER},
            )
        except NotFound:
            log.debug("a pod was gone before it could be marked", pod=pod.name)


def _scaled(other: OtherScaler) -> tuple[str, str, str]:
    return (other.namespace, other.target_kind, other.target_name)


def _count_of(governed: Governed, workload: Workload, *, just_began: bool) -> tuple[int, str]:
    """The count asked for, and who set it if not we; ours until the watch has shown our write.

    A change is somebody else's if we have not written it, whatever the API server notes: of what
    comes by the scale subresource it often notes nobody. Who set a 0 that was there before us, the
    status line tells.
    """
    count, asked, tried = workload.replicas, governed.asked, governed.tried
    if asked is not None and workload.version < asked.version:
        return asked.replicas, ""
    before, by = governed.scale, governed.written_by
    if asked is not None:
        before, by = asked.replicas, ""
        governed.asked = governed.tried = None
    if governed.view is None:
        told = SOMEBODY if SWITCHED_OFF in (workload.status or "") else ""
        return count, (workload.written_by or told) if count == 0 else ""
    if count == before:
        return count, by
    if count == tried or just_began:
        return count, ""
    return count, workload.written_by or SOMEBODY


def _state(pod: Pod) -> ReplicaState:
    if pod.deleting:
        return ReplicaState.DRAINING
    if pod.ready:
        return ReplicaState.READY
    return ReplicaState.FAILED if pod.failed else ReplicaState.STARTING


def _service_of(wanted: Wanted) -> ServiceId:
    return ServiceId(wanted.target.namespace, wanted.target.name)


def _words(wanted: Wanted) -> str:
    return "; ".join(map(str, wanted.problems))
