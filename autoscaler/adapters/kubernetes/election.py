# SPDX-License-Identifier: Apache-2.0
"""Which of several controllers acts: the holder of a Lease, and nobody once that is in doubt.

Only this file writes the Lease. The election of the `kubernetes` package is not used: it does not
release on stop, writes local time as UTC, measures by the wall clock, and has no annotations.

No two machines' clocks are compared. A candidate measures, on its own clock, how long the Lease has
not changed; a leader, how long ago it began its last successful renewal. It steps back after
`renew_deadline_s` of that, before anybody else may take the Lease over after `lease_s`.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from random import uniform
from typing import Any

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi, Raw
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.informer import Informer, Key, Timing
from autoscaler.adapters.kubernetes.resources import LEASES
from autoscaler.errors import TidegateError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a Lease, and what it says of itself. `identity` empty: nobody."""

    identity: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """`renew_deadline_s` is below `lease_s`: between the two nobody leads."""

    lease_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0


async def _nothing() -> None:
    """What a callback does that was not given."""


class LeaderElection:
    """A candidate for one Lease.

    `identity` is unique among living processes: the pod's name. `annotations` are put on the Lease
    with the claim to it. `on_start` runs when leading begins, beside the renewals; it is cancelled
    if leading ends before it does. `on_stop` follows once leading has ended; a graceful stop
    releases the Lease only after it, so that two never act at once.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        annotations: Mapping[str, str] | None = None,
        on_start: Callable[[], Coroutine[Any, Any, None]] = _nothing,
        on_stop: Callable[[], Coroutine[Any, Any, None]] = _nothing,
        timing: LeaseTiming | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.timing = timing or LeaseTiming()
        self._api = api
        self._path = LEASES.path(namespace, name)
        self._all = LEASES.path(namespace)
        self._name = name
        self._annotations = dict(annotations or {})
        self._on_start = on_start
        self._on_stop = on_stop
        self._now_s = now_s
        self._lease: Raw | None = None  # as written last; None: read it first
        self._seen: Raw | None = None  # its spec as read last
        self._changed_at_s = 0.0  # when that was first seen
        self._renewed_at_s: float | None = None  # None: not leading
        self.handed_over = True  # whether the leader before us left the Lease of its own will
        self._starting: asyncio.Task[None] | None = None
        self._freed = asyncio.Event()
        self._holder = LeaseHolder(api, namespace, name, on_change=self._holder_changed)
        self._task: asyncio.Task[None] | None = None

    @property
    def leading(self) -> bool:
        """Whether this process may act now; false at once after it was stopped for long."""
        since = self._renewed_at_s
        return since is not None and self._now_s() - since < self.timing.renew_deadline_s

    @property
    def holder(self) -> Holder:
        """Who leads, as far as is known here."""
        return self._holder.holder

    async def run(self) -> None:
        """Stand for election until cancelled; then stop acting and release."""
        self._holder.start()
        try:
            while True:
                await self._once()
                await self._wait()
        finally:
            await self._end_leading(why="stopping")
            await self._release()
            await self._holder.stop()

    def start(self) -> "asyncio.Task[None]":
        if self._task is None:
            self._task = asyncio.create_task(self.run(), name=f"election {self._name}")
        return self._task

    async def stop(self) -> None:
        """Stop acting, then let the next one take over at once."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    async def _once(self) -> None:
        """Take or renew the Lease; step back where another has it, or where too long none could."""
        began_s = self._now_s()
        try:
            async with asyncio.timeout(self._patience_s()):
                held = await self._claim()
        except (TidegateError, TimeoutError) as trouble:
            self._lease = None  # whether it was written is not known: read it first
            if not isinstance(trouble, Conflict):
                log.warning("the lease was not reached", lease=self._name, why=_reason(trouble))
            if not self.leading:
                await self._end_leading(why="the lease was not renewed in time")
            return
        if not held:
            await self._end_leading(why="another holds the lease")
            return
        begins, self._renewed_at_s = self._renewed_at_s is None, began_s
        if begins:
            log.info("leading", lease=self._name, identity=self.identity)
            self._starting = asyncio.create_task(self._on_start())

    async def _claim(self) -> bool:
        """Write the Lease in our name if that is allowed; false if another holds it."""
        lease = self._lease or await self._read()
        if self._renewed_at_s is None:
            self.handed_over = not ((lease or {}).get("spec") or {}).get("holderIdentity")
        if lease is None:
            self._lease = await self._api.create(self._all, self._claimed(None))
        elif self._free(lease):
            self._lease = await self._api.replace(self._path, self._claimed(lease))
        else:
            return False
        return True

    async def _read(self) -> Raw | None:
        try:
            lease = await self._api.get(self._path)
        except NotFound:
            return None
        if lease.get("spec") != self._seen:
            self._seen, self._changed_at_s = lease.get("spec"), self._now_s()
        return lease

    def _free(self, lease: Raw) -> bool:
        """Whether we may write it: it is nobody's, ours, or was not renewed for its duration."""
        spec = lease.get("spec") or {}
        if (spec.get("holderIdentity") or "") in {"", self.identity}:
            return True
        lasts_s = spec.get("leaseDurationSeconds") or self.timing.lease_s
        return self._now_s() - self._changed_at_s >= float(lasts_s)

    def _claimed(self, lease: Raw | None) -> Raw:
        """The Lease as we would write it; what is read with it guards it against other writers."""
        now = _now()
        spec = dict((lease or {}).get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = spec.get("leaseTransitions", -1) + 1
        spec["holderIdentity"] = self.identity
        spec["leaseDurationSeconds"] = ceil(self.timing.lease_s)
        spec["renewTime"] = now
        return _lease(self._name, lease, spec=spec, annotations=self._annotations)

    async def _wait(self) -> None:
        """Until the next try. Raises what `on_start` raised: who cannot start must not lead."""
        if self._starting is not None and self._starting.done():
            self._starting.result()
        if self._renewed_at_s is not None:
            left_s = self._renewed_at_s + self.timing.renew_deadline_s - self._now_s()
            await asyncio.sleep(min(self.timing.retry_s, max(left_s, 0.0)))
            return
        self._lease = None  # only the leader knows it without reading
        retry_s = self.timing.retry_s * uniform(1.0, 1.2)  # noqa: S311 - it only spreads load
        with suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), retry_s)
        self._freed.clear()

    def _patience_s(self) -> float:
        """For one try: half the deadline, so that a second one fits, and never beyond its end."""
        half_s = self.timing.renew_deadline_s / 2
        if self._renewed_at_s is None:
            return half_s
        left_s = self._renewed_at_s + self.timing.renew_deadline_s - self._now_s()
        return max(min(half_s, left_s), 0.0)

    async def _end_leading(self, *, why: str) -> None:
        if self._renewed_at_s is None:
            return
        self._renewed_at_s = None
        log.info("no longer leading", lease=self._name, identity=self.identity, why=why)
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
            self._starting = None
        await self._on_stop()

    async def _release(self) -> None:
        """Leave the Lease to whoever comes first; without this they wait until it has expired."""
        try:
            async with asyncio.timeout(self.timing.renew_deadline_s / 2):
                lease = await self._read()
                spec = dict((lease or {}).get("spec") or {})
                if spec.get("holderIdentity") != self.identity:
                    return
                spec.update(holderIdentity="", leaseDurationSeconds=1, renewTime=_now())
                nothing = dict.fromkeys(self._annotations)
                freed = _lease(self._name, lease, spec=spec, annotations=nothing)
                await self._api.replace(self._path, freed)
        except (TidegateError, TimeoutError) as trouble:
            log.warning("the lease was not released", lease=self._name, why=_reason(trouble))

    def _holder_changed(self, holder: Holder) -> None:
        if not holder.identity:
            self._freed.set()


class LeaseHolder:
    """Who holds a Lease, watched. `on_change` is called at each change, never for a renewal."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        *,
        on_change: Callable[[Holder], None] = lambda holder: None,
        timing: Timing | None = None,
    ) -> None:
        self.holder = Holder()
        self._on_change = on_change
        self._informer = Informer(
            api,
            LEASES,
            parse=_holder,
            namespaces=(namespace,),
            field_selector=f"metadata.name={name}",
            on_change=self._changed,
            timing=timing,
        )

    @property
    def heard_at_s(self) -> float | None:
        return self._informer.heard_at_s

    async def wait_synced(self) -> None:
        await self._informer.wait_synced()

    def start(self) -> "asyncio.Task[None]":
        return self._informer.start()

    async def stop(self) -> None:
        await self._informer.stop()

    def _changed(self, _key: Key, _old: Holder | None, new: Holder | None) -> None:
        self.holder = new or Holder()
        self._on_change(self.holder)


def _holder(raw: Raw) -> Holder:
    spec = raw.get("spec") or {}
    return Holder(spec.get("holderIdentity") or "", raw["metadata"].get("annotations") or {})


def _lease(
    name: str, lease: Raw | None, *, spec: Raw, annotations: Mapping[str, str | None]
) -> Raw:
    """A Lease to be written, with `annotations` changed; None takes one away."""
    metadata = dict((lease or {}).get("metadata") or {"name": name})
    changed = {**(metadata.get("annotations") or {}), **annotations}
    metadata["annotations"] = {key: text for key, text in changed.items() if text is not None}
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": metadata,
        "spec": spec,
    }


def _now() -> str:
    """For people to read; nothing here measures by it. To the microsecond, as a Lease wants it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _reason(trouble: BaseException) -> str:
    return str(trouble) or "no answer in time"
