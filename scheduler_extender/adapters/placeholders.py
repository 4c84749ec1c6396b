# SPDX-License-Identifier: Apache-2.0
"""Placeholder pods: only this file says what one looks like to Kubernetes and to autoscalers."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from scheduler_extender.adapters.api import Api, Raw, pod_path, pods_path
from scheduler_extender.core.annotations import HAS_GPUS, PLACEHOLDER, REQUIRED, PodSeen
from scheduler_extender.placeholders.plan import Wanted, pool_key
from scheduler_extender.settings import PlaceholderSettings

ASK_S: Final = 5.0
PODS_NAMED: Final = 20  # in the annotation
HOSTNAME: Final = "kubernetes.io/hostname"
# While one is on a node, the GPU driver and the agent are on their way; nobody should take it away.
KEPT: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


class KubernetesPlaceholders:
    """`owner`: name and UID of our own pod, if we run in one; Kubernetes clears up after it."""

    def __init__(
        self,
        api: Api,
        settings: PlaceholderSettings,
        *,
        namespace: str,
        owner: tuple[str, str] | None = None,
    ) -> None:
        self._api = api
        self._settings = settings
        self._namespace = namespace
        self._owner = owner

    async def make(self, wanted: Wanted) -> None:
        body = placeholder(wanted, self._settings)
        if self._owner is not None:
            name, uid = self._owner
            owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
            body["metadata"]["ownerReferences"] = [owner]
        await self._api.ask("POST", pods_path(self._namespace), body=body, timeout_s=ASK_S)

    async def remove(self, pod: PodSeen) -> None:
        await self._api.ask(
            "DELETE",
            pod_path(self._namespace, pod.name),
            body={"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}},
            timeout_s=ASK_S,
        )

    async def label(self, pod: PodSeen) -> None:
        """The right to write a pod's status is enough, and is less than that to write the pod."""
        await self._api.ask(
            "PATCH",
            f"{pod_path(pod.namespace, pod.name)}/status",
            body={"metadata": {"uid": pod.uid, "labels": {HAS_GPUS: "true"}}},
            timeout_s=ASK_S,
        )


def placeholder(wanted: Wanted, settings: PlaceholderSettings) -> dict[str, Any]:
    """It runs nothing, evicts nobody, and passes Pod Security `restricted`."""
    pool = orjson.loads(wanted.pool)
    named = ", ".join(wanted.pods[:PODS_NAMED])
    others = len(wanted.pods) - PODS_NAMED
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": wanted.name,
            "labels": {
                PLACEHOLDER: pool_key(wanted.pool),
                "app.kubernetes.io/name": "tidegate",
                "app.kubernetes.io/component": "placeholder",
            },
            "annotations": {
                **KEPT,
                "tidegate.dev/placeholder-for": named + (f" and {others} more" * (others > 0)),
            },
        },
        "spec": {
            "containers": [_container(wanted, settings)],
            "priorityClassName": settings.priority_class,
            "nodeSelector": {**dict(settings.node_selector), **pool["nodeSelector"]},
            "tolerations": pool["tolerations"],
            "affinity": _affinity(pool["affinity"]),
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        },
    }


def _container(wanted: Wanted, settings: PlaceholderSettings) -> Raw:
    requests = {"cpu": f"{wanted.cpu_milli}m", "memory": f"{wanted.ram_mib}Mi"}
    return {
        "name": "placeholder",
        "image": settings.image,
        "resources": {"requests": requests},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def _affinity(nodes: Mapping[str, Any] | None) -> Raw:
    """Required of pods alone: Karpenter passes pods by that name hosts or fields of nodes."""
    apart = [
        {
            "labelSelector": {"matchLabels": {HAS_GPUS: "true"}},
            "namespaceSelector": {},  # in all of them
            "topologyKey": HOSTNAME,
        },
        {
            "labelSelector": {"matchExpressions": [{"key": PLACEHOLDER, "operator": "Exists"}]},
            "topologyKey": HOSTNAME,
        },
    ]
    affinity: Raw = {"podAntiAffinity": {REQUIRED: apart}}
    if nodes:
        affinity["nodeAffinity"] = {REQUIRED: nodes}
    return affinity
