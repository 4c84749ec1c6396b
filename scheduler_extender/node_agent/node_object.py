# SPDX-License-Identifier: Apache-2.0
"""The agent's node in Kubernetes: two annotations of it, and the pods that run there."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from scheduler_extender.adapters.api import Api
from scheduler_extender.core.annotations import PodSeen, pod_seen
from scheduler_extender.core.node_report import GPUS
from scheduler_extender.errors import NotFound

FIELD_MANAGER: Final = "tidegate-node-agent"
TIMEOUT_S: Final = 10.0
PLUGIN: Final = "nvidia.com/"  # how all resources of NVIDIA's device plugin begin
WHOLE: Final = f"{PLUGIN}gpu"


class KubernetesNode:
    """`contested`: why the device plugin may give this node's GPUs to others; empty: it may not."""

    def __init__(self, api: Api, name: str, *, holds: int = 0) -> None:
        self.contested = ""
        self._holds = holds
        self._api = api
        self._name = name
        self._path = f"/api/v1/nodes/{quote(name, safe='')}"

    async def report(self) -> str | None:
        """What stands on it; `contested` is as it is now, too. Raises `Refused`, `Unreachable`."""
        try:
            raw = await self._api.ask("GET", self._path, timeout_s=TIMEOUT_S)
        except NotFound as error:
            raise NotFound(f"{error}; --node is the name that `kubectl get nodes` shows") from error
        self.contested = why_contested(
            (raw.get("status") or {}).get("allocatable") or {}, holds=self._holds
        )
        text = (raw["metadata"].get("annotations") or {}).get(GPUS)
        return None if text is None else str(text)

    async def write(self, annotations: Mapping[str, str]) -> None:
        """A merge patch: nothing else of the node is touched."""
        await self._api.ask(
            "PATCH",
            self._path,
            params={"fieldManager": FIELD_MANAGER},
            body={"metadata": {"annotations": dict(annotations)}},
            timeout_s=TIMEOUT_S,
        )

    async def pods(self) -> tuple[PodSeen, ...]:
        """Pods of this node that have GPUs, as the API server has them at hand."""
        params = {"fieldSelector": f"spec.nodeName={self._name}", "resourceVersion": "0"}
        page = await self._api.ask("GET", "/api/v1/pods", params=params, timeout_s=TIMEOUT_S)
        seen = (pod_seen(raw) for raw in page.get("items") or ())
        return tuple(pod for pod in seen if pod.granted and not pod.ended)


def why_contested(allocatable: Mapping[str, str], *, holds: int) -> str:
    """Why others may be given GPUs of a node of whose `nvidia.com/gpu` one pod holds so many."""
    given = {
        name: int(amount)
        for name, amount in allocatable.items()
        if name.startswith(PLUGIN) and str(amount).isdecimal() and int(amount)
    }
    if given.get(WHOLE, 0) <= holds:
        given.pop(WHOLE, None)
    if not given:
        return ""
    told = ", ".join(f"{name}: {amount}" for name, amount in sorted(given.items()))
    return (
        f"the device plugin gives out {told} here, and the agent holds {holds}; have the agent's "
        f"group hold all {WHOLE}, or end the device plugin on this node"
    )
