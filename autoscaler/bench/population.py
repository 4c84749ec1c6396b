# SPDX-License-Identifier: Apache-2.0
"""The services that a controller is measured with: Deployments, their pods and a Service each.

They are real objects of a real API server; their pods are bound to nodes that kwok plays, so that
nothing runs. The pods name their node themselves: the scheduler is not what is measured.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    LEASES,
    NODES,
    PODS,
    SERVICES,
    Resource,
)
from autoscaler.errors import BadInput, GiveUp, RetryLater

NAMESPACES: Final = Resource("", "v1", "namespaces", namespaced=False)
OURS: Final = {"app.kubernetes.io/managed-by": "tidegate-bench"}
SELECT_OURS: Final = ",".join(f"{name}={value}" for name, value in OURS.items())
MOST_REPLICAS: Final = 999
ANNOTATIONS: Final = {
    "tidegate.dev/enabled": "true",
    "tidegate.dev/targets": "concurrency=8",
    "tidegate.dev/max-replicas": str(MOST_REPLICAS + 1),  # a wave adds one
}
AT_ONCE: Final = 24
LOOK_S: Final = 2.0

Raw = Mapping[str, Any]
Advance = Callable[[int], None]  # is told how far it is


@dataclass(slots=True)
class Population:
    """`services` Deployments of `replicas` pods in a namespace that is theirs alone."""

    api: KubeApi
    namespace: str
    services: int
    replicas: int
    nodes: str  # label selector of the nodes that are played
    _made_namespace: bool = False
    _pods: list[str] = field(default_factory=list)

    async def claim(self) -> list[str]:
        """Take the namespace; returns the nodes to use. Raises `BadInput`."""
        nodes = [
            str(node["metadata"]["name"])
            async for node in self._all(NODES, labelSelector=self.nodes)
        ]
        if not nodes:
            raise BadInput(
                f"--nodes {self.nodes}: no node has this label; have kwok play some, or name others"
            )
        try:
            await self.api.create(NAMESPACES.path(), {"metadata": {"name": self.namespace}})
        except Conflict:
            await self._refuse_others()
        else:
            self._made_namespace = True
        return nodes

    async def _refuse_others(self) -> None:
        for resource in (DEPLOYMENTS, SERVICES, PODS):
            path = resource.path(self.namespace)
            others = {"labelSelector": SELECT_OURS.replace("=", "!="), "limit": "1"}
            if (await self.api.get(path, others))["items"]:
                raise BadInput(
                    f"--namespace {self.namespace}: it has {resource.plural} that are not of this "
                    f"command; name one that does not exist"
                )

    async def create(self, nodes: list[str], *, advance: Advance) -> None:
        """Make what is not there yet."""
        bodies = self._bodies(nodes)
        for done in range(0, self.services * 2, AT_ONCE):
            some = [body for _, body in zip(range(AT_ONCE), bodies, strict=False)]
            await asyncio.gather(*(self._make(resource, body) for resource, body in some))
            advance(min(done + AT_ONCE, self.services * 2))

    async def ready(self, *, advance: Advance, within_s: float) -> None:
        """Wait until every pod is ready. Raises `GiveUp`."""
        wanted, seen = self.services * self.replicas, 0
        try:
            async with asyncio.timeout(within_s):
                while seen < wanted:
                    await asyncio.sleep(LOOK_S)
                    seen = sum([
                        int(one.get("status", {}).get("readyReplicas", 0))
                        async for one in self._all(DEPLOYMENTS, labelSelector=SELECT_OURS)
                    ])  # fmt: skip
                    advance(min(seen, wanted))
        except TimeoutError:
            raise GiveUp(
                f"{seen} of {wanted} pods were ready after {within_s:g} s; "
                f"does kwok play the nodes with the label {self.nodes}?"
            ) from None
        self._pods = [
            str(one["metadata"]["name"]) async for one in self._all(PODS, labelSelector=SELECT_OURS)
        ]

    async def scale(self, service: int, replicas: int) -> None:
        path = DEPLOYMENTS.path(self.namespace, name_of(service), "scale")
        await self.api.patch(
            path, {"spec": {"replicas": replicas}}, params={"fieldManager": "tidegate-bench"}
        )

    async def replace_a_pod(self) -> None:
        """Delete one; its ReplicaSet makes another."""
        if self._pods:
            try:
                await self.api.delete(PODS.path(self.namespace, self._pods.pop()))
            except NotFound:  # a scale-down took it
                return

    async def remove(self, *, advance: Advance, within_s: float) -> None:
        """Take away what was made here, and wait until its pods are gone. Raises `GiveUp`."""
        background = {"propagationPolicy": "Background"}
        for resource in (DEPLOYMENTS, SERVICES):
            path = resource.path(self.namespace)
            await self.api.delete(path, params={"labelSelector": SELECT_OURS}, body=background)
        pods = PODS.path(self.namespace)
        try:
            async with asyncio.timeout(within_s):
                while left := await self._left(pods):
                    advance(self.services * self.replicas - left)
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise GiveUp(
                f"pods of {self.namespace} were still there after {within_s:g} s; "
                f"delete that namespace by hand"
            ) from None
        await self._remove_controllers_own()

    async def _left(self, pods: str) -> int:
        found = await self.api.get(pods, {"limit": 1})
        return len(found["items"]) + int(found["metadata"].get("remainingItemCount", 0))

    async def _remove_controllers_own(self) -> None:
        """What the controller left: with the namespace, or one by one in a namespace of others."""
        if self._made_namespace:
            await self.api.delete(NAMESPACES.path(name=self.namespace))
            return
        for resource, prefix in ((LEASES, "tidegate-controller"), (CONFIG_MAPS, "tidegate-state-")):
            async for one in self._all(resource):
                if one["metadata"]["name"].startswith(prefix):
                    path = resource.path(self.namespace, one["metadata"]["name"])
                    await self.api.delete(path)

    async def _make(self, resource: Resource, body: Raw) -> None:
        path, name = resource.path(self.namespace), body["metadata"]["name"]
        while True:
            try:
                await self.api.create(path, body)
            except Conflict:  # of an earlier run
                if resource is DEPLOYMENTS:
                    wanted = {
                        "metadata": {"annotations": ANNOTATIONS},
                        "spec": {"replicas": self.replicas},
                    }
                    await self.api.patch(resource.path(self.namespace, name), wanted)
            except RetryLater as busy:
                await asyncio.sleep(busy.after_s)
                continue
            return

    async def _all(self, resource: Resource, **params: str) -> AsyncIterator[Raw]:
        path = resource.path(self.namespace)
        async for page in self.api.pages(path, params):
            for item in page.items:
                yield item

    def _bodies(self, nodes: list[str]) -> Iterator[tuple[Resource, Raw]]:
        for service, node in zip(range(self.services), cycle(nodes), strict=False):
            yield SERVICES, a_service(service)
            yield DEPLOYMENTS, a_deployment(service, replicas=self.replicas, node=node)


def name_of(service: int) -> str:
    return f"model-{service:05d}"


def a_service(service: int) -> Raw:
    name = name_of(service)
    return {
        "metadata": {"name": name, "labels": OURS},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, **_TARGET}]},
    }


def a_deployment(service: int, *, replicas: int, node: str) -> Raw:
    name = name_of(service)
    return {
        "metadata": {"name": name, "labels": OURS, "annotations": ANNOTATIONS},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name, **OURS}},
                "spec": {
                    "nodeName": node,
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": False,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [
                        {
                            "name": "model",
                            "image": "registry.k8s.io/pause:3.10",
                            "ports": [{"name": "http", "containerPort": 8080}],
                        }
                    ],
                },
            },
        },
    }


_TARGET: Final = {"targetPort": 8080}
