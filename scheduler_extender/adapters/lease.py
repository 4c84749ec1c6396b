# SPDX-License-Identifier: Apache-2.0
"""Which of several extenders may bind: the holder of a Lease, and nobody once that is in doubt.

No two machines' clocks are compared. A candidate measures, on its own clock, how long the Lease has
not changed; a leader, how long ago it began its last renewal. `identity` must be new with every
process: one that is started anew waits for the Lease of its former self to expire, and with it for
requests of that self that may still land.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import structlog

from scheduler_extender.adapters.api import Api, Raw
from scheduler_extender.errors import NotFound, Refused, Unreachable

log = structlog.get_logger(__name__)

LEASE_S: Final = 15
DEADLINE_S: Final = 10.0  # with BIND_S no more than LEASE_S: see binding.py
RETRY_S: Final = 2.0


class KubernetesLease:
    """Only this class writes the Lease."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._api = api
        self._name = name
        self._all = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace, safe='')}/leases"
        self._now_s = now_s
        self._renewed_at_s: float | None = None
        self._spec: Raw = {}  # as read last
        self._changed_at_s = 0.0

    @property
    def leading(self) -> bool:
        """Whether this process may act now; false at once after it was stopped for long."""
        since = self._renewed_at_s
        return since is not None and self._now_s() - since < DEADLINE_S

    async def won(self) -> None:
        """Return once we lead."""
        while not self.leading:
            await self._try()
            if not self.leading:
                await asyncio.sleep(RETRY_S)

    async def lost(self) -> str:
        """Renew; return why that is over."""
        while True:
            await asyncio.sleep(RETRY_S)
            if not await self._try() or not self.leading:
                self._renewed_at_s = None
                return "another holds it, or it could not be renewed in time"

    async def release(self) -> None:
        """Leave it to whoever comes first. Only when nothing of ours can land any more."""
        self._renewed_at_s = None
        try:
            lease = await self._api.ask("GET", self._path, timeout_s=DEADLINE_S / 2)
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"].update(holderIdentity="", leaseDurationSeconds=1)
                await self._api.ask("PUT", self._path, body=lease, timeout_s=DEADLINE_S / 2)
        except (Refused, Unreachable) as trouble:
            log.warning("the lease was not released", lease=self._name, why=str(trouble))

    async def _try(self) -> bool:
        """Take or renew it; false where it is another's. A failure to reach it is not decided."""
        began_s = self._now_s()
        try:
            held = await self._claim()
        except (Refused, Unreachable) as trouble:
            log.warning("the lease was not reached", lease=self._name, why=str(trouble))
            return True
        if held:
            self._renewed_at_s = began_s
        return held

    async def _claim(self) -> bool:
        timeout_s = DEADLINE_S / 2
        try:
            lease = await self._api.ask("GET", self._path, timeout_s=timeout_s)
        except NotFound:
            lease = {"metadata": {"name": self._name}}
        spec = lease.get("spec") or {}
        if spec != self._spec:
            self._spec, self._changed_at_s = dict(spec), self._now_s()
        if not self._free(spec):
            return False
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if spec.get("holderIdentity") != self.identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = spec.get("leaseTransitions", -1) + 1
        spec.update(holderIdentity=self.identity, leaseDurationSeconds=LEASE_S, renewTime=now)
        lease.update(apiVersion="coordination.k8s.io/v1", kind="Lease", spec=spec)
        # Its resourceVersion guards it: a write between the two requests refuses ours.
        new = "resourceVersion" not in lease["metadata"]
        method, path = ("POST", self._all) if new else ("PUT", self._path)
        await self._api.ask(method, path, body=lease, timeout_s=timeout_s)
        return True

    def _free(self, spec: Raw) -> bool:
        if (spec.get("holderIdentity") or "") in {"", self.identity}:
            return True
        lasts_s = float(spec.get("leaseDurationSeconds") or LEASE_S)
        return self._now_s() - self._changed_at_s >= lasts_s

    @property
    def _path(self) -> str:
        return f"{self._all}/{quote(self._name, safe='')}"
