# SPDX-License-Identifier: Apache-2.0
"""What there is of one resource, kept current by list and watch. It never forgets on silence.

An API server that is away, refuses us or answers nonsense leaves `objects` as they were; only its
own word (a DELETED event, or a full list without the object) takes one out. How old that word is,
`heard_at_s` tells. Nothing raw is kept: only what `parse` returns.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, Protocol, TypeVar

import orjson
import structlog

from autoscaler.adapters.kubernetes.api import KubeApi, Raw
from autoscaler.adapters.kubernetes.errors import (
    Gone,
    NotFound,
    Refused,
    Unreachable,
    event_refusal,
)
from autoscaler.adapters.kubernetes.resources import Resource, place_of
from autoscaler.errors import RetryLater, TidegateError

log = structlog.get_logger(__name__)

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Key = tuple[str, str]  # namespace (empty for what has none), name

# What a parser may stumble on in an object that is not shaped as expected.
MISSHAPEN: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError)


class OnChange(Protocol[T_contra]):
    """`old` None: it is new; `new` None: it is gone. Called at once, with `objects` up to date.

    Must not raise: that ends the informer, and whoever awaits its task learns of it.
    """

    def __call__(self, key: Key, old: T_contra | None, new: T_contra | None, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """How often and how patiently the API server is asked.

    `watch_s`: how long one watch is asked for, at least; up to a fifth more by chance. After
    `refusals` in a row the version to go on from is given up: of a restored etcd it lies ahead.
    """

    watch_s: float = 270.0
    absent_s: float = 60.0  # until a resource that is not installed is looked for again
    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0
    refusals: int = 8


class Informer(Generic[T]):
    """All objects of a resource, in some namespaces or in all, as `parse` reads them.

    `parse` returns None for what is of no interest. An object that it stumbles on is logged, and
    stays as it was read last.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        *,
        parse: Callable[[Raw], T | None],
        namespaces: tuple[str, ...] = (),
        label_selector: str = "",
        field_selector: str = "",
        on_change: OnChange[T] = lambda key, old, new: None,
        timing: Timing | None = None,
        chance: random.Random | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self._objects: dict[Key, T] = {}
        self.objects: Mapping[Key, T] = MappingProxyType(self._objects)
        self._parse = parse
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        params = {name: value for name, value in selectors.items() if value}
        scopes = namespaces if resource.namespaced and namespaces else ("",)
        self._scopes = [
            _Scope(
                self,
                api,
                resource.path(namespace),
                namespace=namespace,
                params=params,
                timing=timing or Timing(),
                chance=chance or random.Random(),  # noqa: S311 - it only spreads load
                now_s=now_s,
            )
            for namespace in scopes
        ]

    @property
    def synced(self) -> bool:
        """Whether everything was listed once, or is known to be not installed."""
        return all(scope.listed.is_set() for scope in self._scopes)

    @property
    def absent(self) -> bool:
        """Whether the API server does not know this resource: its CRD is not installed."""
        return any(scope.absent for scope in self._scopes)

    @property
    def heard_at_s(self) -> float | None:
        """When the API server last spoke of this, on the clock given; None: not of all of it yet.

        Of a quiet resource it speaks by bookmarks alone, and the first takes up to two minutes;
        `trouble` tells within seconds that the connection is lost.
        """
        heard = [scope.heard_at_s for scope in self._scopes]
        return None if None in heard else min(at for at in heard if at is not None)

    @property
    def recovered_at_s(self) -> float | None:
        """When the API server last spoke again after it was out of reach; None: it never was."""
        recovered = [s.recovered_at_s for s in self._scopes if s.recovered_at_s is not None]
        return max(recovered, default=None)

    @property
    def trouble(self) -> str:
        """Why nothing is heard now; empty when all is well."""
        return "; ".join(scope.trouble for scope in self._scopes if scope.trouble)

    async def wait_synced(self) -> None:
        """Raises what ended the informer, if that comes first."""
        synced = asyncio.gather(*(scope.listed.wait() for scope in self._scopes))
        running = [self._task] if self._task is not None else []
        ends: list[asyncio.Future[Any]] = [synced, *running]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not synced.done():
                for task in running:
                    task.result()
        finally:
            synced.cancel()

    async def run(self) -> None:
        """Stay current until cancelled."""
        async with asyncio.TaskGroup() as scopes:
            for scope in self._scopes:
                scopes.create_task(scope.run())

    def start(self) -> "asyncio.Task[None]":
        """Run in the background. The task ends early only by an error of `on_change`: watch it."""
        if self._task is None:
            self._task = asyncio.create_task(self.run(), name=f"informer {self.resource.plural}")
        return self._task

    async def stop(self) -> None:
        """End; raises what `on_change` raised, if it did. What was seen stays readable."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    def _take(self, raw: Raw) -> Key:
        """Read a raw object, and tell of it if what is kept of it changed."""
        meta = raw["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        old = self._objects.get(key)
        try:
            new = self._parse(raw)
        except MISSHAPEN as error:
            log.warning(
                "an object cannot be read; it stays as it was read last",
                resource=self.resource.plural,
                object="/".join(key),
                why=repr(error),
            )
            return key
        if new is None:
            self._drop(key)
        elif old is None or old != new:
            self._objects[key] = new
            self._on_change(key, old, new)
        return key

    def _drop(self, key: Key) -> None:
        old = self._objects.pop(key, None)
        if old is not None:
            self._on_change(key, old, None)

    def _drop_all_but(self, seen: set[Key], *, namespace: str) -> None:
        within = (key for key in self._objects if not namespace or key[0] == namespace)
        for key in [key for key in within if key not in seen]:
            self._drop(key)


class _Scope:
    """The list and watch of one path."""

    def __init__(
        self,
        informer: Informer[Any],
        api: KubeApi,
        path: str,
        *,
        namespace: str,
        params: Mapping[str, str],
        timing: Timing,
        chance: random.Random,
        now_s: Callable[[], float],
    ) -> None:
        self.listed = asyncio.Event()
        self.absent = False
        self.heard_at_s: float | None = None
        self.recovered_at_s: float | None = None
        self.trouble = ""
        self._cut = False  # it broke off, and was not heard since
        self._unreached = False  # nor could it be reached at once
        self._informer = informer
        self._api = api
        self._path = path
        self._namespace = namespace
        self._params = params
        self._timing = timing
        self._chance = chance
        self._now_s = now_s
        self._version = ""  # where the watch goes on; empty: list first
        self._failures = 0  # in a row
        self._refusals = 0  # of watches, in a row

    async def run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except NotFound as trouble:
                await self._wait_for_install(trouble)
            except TidegateError as trouble:
                await self._back_off(trouble)

    async def _list(self) -> None:
        seen: set[Key] = set()
        async with aclosing(self._api.pages(self._path, self._params)) as pages:
            async for page in pages:
                seen.update(map(self._informer._take, page.items))
                version = page.resource_version
        self._informer._drop_all_but(seen, namespace=self._namespace)
        self._version = version
        self.absent = False
        self.listed.set()
        self._heard()

    async def _watch(self) -> None:
        """Follow the changes until the server ends it; raises when it breaks off."""
        seconds = self._timing.watch_s * self._chance.uniform(1.0, 1.2)
        params: dict[str, str | int | bool] = {
            **self._params,
            "resourceVersion": self._version,
            "allowWatchBookmarks": True,
            "timeoutSeconds": max(round(seconds), 1),
        }
        silent, began_s = True, self._now_s()
        async with aclosing(self._api.watch(self._path, params)) as lines:
            async for line in lines:
                if line:
                    self._event(line)
                    silent, self._failures, self._refusals = False, 0, 0
                self._heard()
        if silent and self._now_s() - began_s < min(1.0, seconds / 2):
            raise Unreachable(f"the watch of {self._path} ended at once", after_s=0.0)

    def _event(self, line: bytes) -> None:
        try:
            event = orjson.loads(line)
            kind, raw = event["type"], event["object"]
            version = raw["metadata"]["resourceVersion"] if kind != "ERROR" else ""
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Unreachable(
                f"the watch of {self._path} said what is no event: {error!r}", after_s=0.0
            ) from error
        if kind == "ERROR":
            raise event_refusal(place_of(self._path), raw)
        if kind == "DELETED":
            meta = raw["metadata"]
            self._informer._drop((meta.get("namespace", ""), meta["name"]))
        elif kind != "BOOKMARK":
            self._informer._take(raw)
        self._version = version

    def _heard(self) -> None:
        self.heard_at_s = self._now_s()
        self.trouble = ""
        self._cut = False
        if self._unreached:
            self._unreached, self.recovered_at_s = False, self.heard_at_s

    async def _wait_for_install(self, trouble: NotFound) -> None:
        """What was seen stays: an API server that just started does not know all its CRDs yet."""
        if not self.absent:
            log.info("not installed; looked for again each minute", path=self._path)
        self.absent, self.trouble, self._version = True, str(trouble), ""
        self.listed.set()
        await asyncio.sleep(self._timing.absent_s * self._chance.uniform(0.8, 1.2))

    async def _back_off(self, trouble: TidegateError) -> None:
        """Wait, longer with each failure, and forget the version where it is at fault."""
        self._failures += 1
        if isinstance(trouble, Unreachable):
            # A watch that is cut and taken up again says nothing of others' connections: what
            # stands between us and the API server may do that to each of ours every minute.
            self._cut, self._unreached = True, self._unreached or self._cut
        if isinstance(trouble, Refused) and self._version:
            self._refusals += 1
            if isinstance(trouble, Gone) or self._refusals >= self._timing.refusals:
                self._version = ""
        if isinstance(trouble, Gone) and self._failures == 1:
            log.info("listing anew", path=self._path, why=str(trouble))
            return
        if str(trouble) != self.trouble:
            log.warning("not heard; trying again", path=self._path, why=str(trouble))
        self.trouble = str(trouble)
        await asyncio.sleep(self._wait_s(trouble))

    def _wait_s(self, trouble: TidegateError) -> float:
        timing = self._timing
        doubled = timing.first_wait_s * 2.0 ** min(self._failures - 1, 16)
        asked = trouble.after_s if isinstance(trouble, RetryLater) else 0.0
        return max(min(doubled, timing.longest_wait_s) * self._chance.uniform(0.5, 1.0), asked)
