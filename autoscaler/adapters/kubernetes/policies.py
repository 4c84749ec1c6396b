# SPDX-License-Identifier: Apache-2.0
"""The ConfigMaps that `tidegate.dev/policy-from` names, and who is to be read again with them.

Each is asked for by its name, again and again: to watch them all, a controller would have to be
allowed to read every ConfigMap of the cluster.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.errors import NotFound
from autoscaler.adapters.kubernetes.resources import CONFIG_MAPS
from autoscaler.errors import RetryLater, TidegateError
from autoscaler.manifests import Wanted, wanted

log = structlog.get_logger(__name__)

EVERY_S: Final = 15.0
RETRY_S: Final = 1.0  # while one of them was never read
AT_ONCE: Final = 16

Raw = Mapping[str, Any]
Name = tuple[str, str]  # namespace, name
Owner = tuple[str, str, str]  # plural, namespace, name of an annotated object


@dataclass(frozen=True, slots=True)
class _Follower:
    """An object whose policy also depends on ConfigMaps, as it was seen last."""

    raw: Raw
    names: frozenset[Name]


class Policies:
    """Reads annotated objects together with their ConfigMaps. To be used within one event loop.

    `on_change(owner, wanted)` is called when another content of a ConfigMap makes another policy.
    """

    def __init__(
        self, api: KubeApi, *, on_change: Callable[[Owner, tuple[Wanted, ...]], None]
    ) -> None:
        self._api = api
        self._on_change = on_change
        self._maps: dict[Name, Mapping[str, object] | None] = {}  # None: there is none
        self._followers: dict[Owner, _Follower] = {}
        self._unread = asyncio.Event()
        self._read = asyncio.Event()
        self._read.set()
        self._asking = asyncio.Semaphore(AT_ONCE)

    def wanted(self, raw: Raw, *, plural: str) -> tuple[Wanted, ...]:
        """What an object asks for; neither policy nor problem while its ConfigMap is unread."""
        meta, names = raw["metadata"], set[Name]()
        owner = (plural, meta["namespace"], meta["name"])

        def look(name: str) -> Mapping[str, object] | None:
            names.add((meta["namespace"], name))
            return self._maps.get((meta["namespace"], name))

        said = wanted(raw, plural=plural, config_map=look)
        if not names:
            self._followers.pop(owner, None)
            return said
        self._followers[owner] = _Follower(raw, frozenset(names))
        if names <= self._maps.keys():
            return said
        self._read.clear()
        self._unread.set()
        return tuple(replace(each, policy=None, problems=()) for each in said)

    def forget(self, owner: Owner) -> None:
        """The object is gone."""
        self._followers.pop(owner, None)

    async def wait_read(self) -> None:
        """Until every ConfigMap that is named has been asked for once."""
        await self._read.wait()

    async def run(self) -> None:
        """Ask for what is named until cancelled: at once for what is new, else now and then."""
        while True:
            names = {name for follower in self._followers.values() for name in follower.names}
            self._maps = {name: data for name, data in self._maps.items() if name in names}
            await self._refresh(names)
            try:
                async with asyncio.timeout(EVERY_S):
                    while True:
                        await self._unread.wait()
                        await self._read_new()
            except TimeoutError:
                continue

    async def _read_new(self) -> None:
        self._unread.clear()
        if not await self._refresh(self._missing()):
            await asyncio.sleep(RETRY_S)
            self._unread.set()

    def _missing(self) -> set[Name]:
        named = {name for follower in self._followers.values() for name in follower.names}
        return named - self._maps.keys()

    async def _refresh(self, names: set[Name]) -> bool:
        """Ask for these, and tell whom it concerns; returns whether none is unread now."""
        found = await asyncio.gather(*(self._fetch(name) for name in names))
        changed = {name for name, is_new in zip(names, found, strict=True) if is_new}
        for owner, follower in list(self._followers.items()):
            if follower.names & changed:
                self._on_change(owner, self.wanted(follower.raw, plural=owner[0]))
        if self._missing():
            return False
        self._read.set()
        return True

    async def _fetch(self, name: Name) -> bool:
        """Whether a ConfigMap is another than before."""
        async with self._asking:
            try:
                raw = await self._api.get(CONFIG_MAPS.path(*name))
                data = dict(raw.get("data") or {})
            except NotFound:
                data = None
            except TidegateError as trouble:  # what was read before stays in force
                log.warning("a ConfigMap was not read", config_map="/".join(name), why=str(trouble))
                if isinstance(trouble, RetryLater) or name in self._maps:
                    return False
                data = None
        is_new = name not in self._maps or self._maps[name] != data
        self._maps[name] = data
        return is_new
