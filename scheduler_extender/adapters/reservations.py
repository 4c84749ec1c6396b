# SPDX-License-Identifier: Apache-2.0
"""Reservation pods in the cluster: made from a template, deleted by UID; nothing else."""

from collections.abc import Mapping
from typing import Any

from scheduler_extender.adapters.api import Api, pod_path, pods_path
from scheduler_extender.binding import BIND_S
from scheduler_extender.core.annotations import TERMINAL
from scheduler_extender.errors import NotFound, Refused
from scheduler_extender.reservations.pod import name_of, reservation_pod


class KubernetesReservations:
    def __init__(self, api: Api, template: Mapping[str, Any], *, namespace: str) -> None:
        self._api = api
        self._template = template
        self._namespace = namespace

    async def create(self, node: str, number: int) -> None:
        pod = reservation_pod(self._template, node=node, number=number)
        try:
            await self._api.ask("POST", pods_path(self._namespace), body=pod, timeout_s=BIND_S)
        except Refused as refused:
            await self._look(name_of(node, number), refused)

    async def delete(self, name: str, uid: str) -> None:
        """The API server is told to give up when we do: it is not deleted long after."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        try:
            await self._api.ask(
                "DELETE",
                pod_path(self._namespace, name),
                params={"timeout": f"{BIND_S:g}s"},
                body=body,
                timeout_s=BIND_S,
            )
        except NotFound:
            return

    async def _look(self, name: str, refused: Refused) -> None:
        """One of that name may be there: from an earlier try, or a former one that has ended."""
        try:
            raw = await self._api.ask("GET", pod_path(self._namespace, name), timeout_s=BIND_S)
        except NotFound:
            raise refused from None
        status = raw.get("status") or {}
        if status.get("phase") in TERMINAL:
            await self.delete(name, raw["metadata"]["uid"])
            said = status.get("message") or status.get("reason") or status["phase"]
            raise Refused(f"{name} has ended: {said}; it is cleared away") from refused
