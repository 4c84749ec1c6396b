# SPDX-License-Identifier: Apache-2.0
"""What `kubectl describe` shows: Events on objects. Nobody ever waits for one, or fails by one.

Written as `events.k8s.io/v1`: there a repeated Event is a series whose count alone changes, and the
API server checks the rest. `kubectl` shows them as it shows those of the core's older API.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi, Raw
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.resources import EVENTS, Resource
from autoscaler.errors import RetryLater, TidegateError

log = structlog.get_logger(__name__)

NOTE_BYTES: Final = 1024  # the API server refuses more
REASON_CHARS: Final = 128  # likewise
CLUSTER_EVENTS: Final = "default"  # the namespace of Events on objects that have none


class Kind(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Names an object. Without its `uid`, `kubectl describe` does not find its Events."""

    resource: Resource
    namespace: str
    name: str
    uid: str = ""

    @property
    def path(self) -> str:
        return self.resource.path(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Rates:
    """How many Events an object gets: `burst` at once, and one more each `refill_s`."""

    same_s: float = 600.0  # the same said again within it is counted, not written anew
    burst: int = 10
    refill_s: float = 30.0
    kept: int = 4096  # things said, and objects, that are remembered
    queued: int = 1000


@dataclass(frozen=True, slots=True)
class _Said:
    regarding: ObjectRef
    reason: str
    message: str
    kind: Kind


@dataclass(slots=True)
class _Series:
    """One Event and its repetitions. Only `EventRecorder` changes it."""

    said: _Said
    last_s: float
    count: int = 1
    written: int = 0  # of `count`, what the API server knows
    name: str = ""
    queued: bool = False


class EventRecorder:
    """Writes Events, one after the other, in a task of its own.

    `instance` is this process's pod. What is said too often, or while the API server is away for
    long, is dropped and counted in `dropped`.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        instance: str,
        component: str = "tidegate-controller",
        rates: Rates | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        self._api = api
        self._instance = instance
        self._component = component
        self._rates = rates or Rates()
        self._now_s = now_s
        self._series: OrderedDict[_Said, _Series] = OrderedDict()
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (left, at_s)
        self._queue: asyncio.Queue[_Series] = asyncio.Queue(self._rates.queued)
        self._task: asyncio.Task[None] | None = None

    def record(
        self, regarding: ObjectRef, *, reason: str, message: str, kind: Kind = Kind.NORMAL
    ) -> None:
        """Say something of an object. Returns at once. `reason` is one word in CamelCase."""
        said, now_s = _Said(regarding, reason, message, kind), self._now_s()
        series = self._series.get(said)
        if series is not None and now_s - series.last_s < self._rates.same_s:
            series.count, series.last_s = series.count + 1, now_s
        else:
            series = _Series(said, now_s)
        self._series[said] = series
        self._series.move_to_end(said)
        _shrink(self._series, self._rates.kept)
        if series.queued:
            return
        if self._queue.full() or not self._allowed(regarding.path, now_s):
            self.dropped += 1
            return
        series.queued = True
        self._queue.put_nowait(series)

    def start(self) -> "asyncio.Task[None]":
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="events")
        return self._task

    async def stop(self, *, within_s: float = 2.0) -> None:
        """Write what is still waiting, for a moment; then end."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("events left unwritten", events=self._queue.qsize())
        task.cancel()
        await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            series = await self._queue.get()
            series.queued = False
            try:
                await self._write(series)
            except RetryLater as trouble:
                self._again(series, trouble)
                await asyncio.sleep(trouble.after_s)
            except TidegateError as trouble:
                self.dropped += 1
                log.warning("an event was not written", why=str(trouble))
            finally:
                self._queue.task_done()

    def _again(self, series: _Series, trouble: RetryLater) -> None:
        """Try later, behind what else is waiting, if it still fits and still matters."""
        log.info("an event was not written yet", why=str(trouble))
        if self._queue.full() or self._now_s() - series.last_s > self._rates.same_s:
            self.dropped += 1
        elif not series.queued:
            series.queued = True
            self._queue.put_nowait(series)

    async def _write(self, series: _Series) -> None:
        namespace = series.said.regarding.namespace or CLUSTER_EVENTS
        count = series.count
        if series.name and count == series.written:
            return
        if series.name:
            try:
                await self._api.patch(
                    EVENTS.path(namespace, series.name), {"series": _repeated(count)}
                )
            except NotFound:  # Events live for an hour, and people delete them
                series.name = ""
            else:
                series.written = count
                return
        name = f"{series.said.regarding.name[:200]}.{time.time_ns():x}"
        try:
            await self._api.create(EVENTS.path(namespace), self._event(series, name))
        except Conflict:  # an earlier try got through after all
            log.debug("the event was there already", event=name)
        series.name, series.written = name, count

    def _event(self, series: _Series, name: str) -> Raw:
        said = series.said
        regarding, resource = said.regarding, said.regarding.resource
        event = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name},
            "eventTime": _now(),
            "reportingController": self._component,
            "reportingInstance": self._instance[:128],
            "action": said.reason[:REASON_CHARS],
            "reason": said.reason[:REASON_CHARS],
            "type": said.kind.value,
            "note": _shortened(said.message),
            "regarding": {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
        }
        return event if series.count == 1 else {**event, "series": _repeated(series.count)}

    def _allowed(self, path: str, now_s: float) -> bool:
        """Take one from the object's allowance, if any is left."""
        left, at_s = self._allowance.get(path, (float(self._rates.burst), now_s))
        left = min(left + (now_s - at_s) / self._rates.refill_s, float(self._rates.burst))
        allowed = left >= 1.0
        self._allowance[path] = (left - 1.0 if allowed else left, now_s)
        self._allowance.move_to_end(path)
        _shrink(self._allowance, self._rates.kept)
        return allowed


def _shrink(remembered: OrderedDict[Any, Any], size: int) -> None:
    while len(remembered) > size:
        remembered.popitem(last=False)


def _repeated(count: int) -> Raw:
    return {"count": count, "lastObservedTime": _now()}


def _shortened(message: str) -> str:
    whole = message.encode()
    if len(whole) <= NOTE_BYTES:
        return message
    return whole[: NOTE_BYTES - len("…".encode())].decode(errors="ignore") + "…"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
