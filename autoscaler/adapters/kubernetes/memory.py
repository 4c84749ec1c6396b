# SPDX-License-Identifier: Apache-2.0
"""What was learned, in ConfigMaps: it outlives the controller's pod. Losing it never stops a start.

Services are spread over a fixed number of ConfigMaps by their names, so that each stays far below
the 1 MiB that etcd takes, and learning about one service rewrites a part of all.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final
from zlib import crc32

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.resources import CONFIG_MAPS
from autoscaler.adapters.memory import from_json, to_json
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.signals import ServiceId
from autoscaler.errors import TidegateError

log = structlog.get_logger(__name__)

KEY: Final = "learned.json"
SHARDS: Final = 8


class ConfigMapMemoryStore:
    """A `MemoryStore` in the ConfigMaps `PREFIX-0` to `PREFIX-7` of one namespace.

    `save` only takes note; each ConfigMap is written at most once in `every_s`. Call `flush` before
    the end. Only the leader may save: the last writer's words stay.
    """

    def __init__(
        self,
        api: KubeApi,
        *,
        namespace: str,
        prefix: str = "tidegate-state",
        every_s: float = 30.0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._prefix = prefix
        self._every_s = every_s
        self._now_s = now_s
        self._shards: list[dict[ServiceId, LeadTimes]] = [{} for _ in range(SHARDS)]
        self._changed: set[int] = set()
        self._written_at_s: dict[int, float] = {}
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def load(self) -> Mapping[ServiceId, LeadTimes]:
        """What was saved last. Raises if the API server cannot be asked: that is not "nothing"."""
        parts = await asyncio.gather(*(self._read(shard) for shard in range(SHARDS)))
        learned = {service: times for part in parts for service, times in part.items()}
        self._shards = _spread(learned)
        return learned

    async def save(self, learned: Mapping[ServiceId, LeadTimes]) -> None:
        """Take note of everything learned; returns at once. What is not in it is forgotten."""
        for shard, part in enumerate(_spread(learned)):
            if part != self._shards[shard]:
                self._shards[shard] = part
                self._changed.add(shard)
        if self._changed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._write_when_due(), name="what was learned")

    async def flush(self) -> None:
        """Write all that was noted, now. Raises the first error, after all were tried."""
        await self.stop()
        results = await asyncio.gather(
            *(self._write(shard) for shard in sorted(self._changed)), return_exceptions=True
        )
        for error in results:
            if error is not None:
                raise error

    async def stop(self) -> None:
        """Write no more by itself, until the next `save`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _write_when_due(self) -> None:
        """Until everything is written. A failure costs a period, never the controller."""
        while self._changed:
            shard = min(self._changed, key=self._due_s)
            await asyncio.sleep(max(self._due_s(shard) - self._now_s(), 0.0))
            try:
                await self._write(shard)
            except TidegateError as trouble:
                log.warning("what was learned is not saved; trying again", why=str(trouble))
                self._written_at_s[shard] = self._now_s()

    def _due_s(self, shard: int) -> float:
        return self._written_at_s.get(shard, self._now_s() - self._every_s) + self._every_s

    async def _write(self, shard: int) -> None:
        async with self._writing:
            part = self._shards[shard]
            await self._put(self._name(shard), to_json(part, compact=True))
            self._written_at_s[shard] = self._now_s()
            if self._shards[shard] is part:  # else something was learned meanwhile
                self._changed.discard(shard)

    async def _put(self, name: str, text: str) -> None:
        data = {"data": {KEY: text}}
        path = CONFIG_MAPS.path(self._namespace, name)
        try:
            await self._api.patch(path, data)
        except NotFound:  # the first time, or somebody deleted it
            whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **data}
            try:
                await self._api.create(CONFIG_MAPS.path(self._namespace), whole)
            except Conflict:  # another made it meanwhile
                await self._api.patch(path, data)

    async def _read(self, shard: int) -> Mapping[ServiceId, LeadTimes]:
        name = self._name(shard)
        try:
            found = await self._api.get(CONFIG_MAPS.path(self._namespace, name))
        except NotFound:
            return {}
        text = (found.get("data") or {}).get(KEY)
        if text is None:
            return {}
        try:
            return from_json(text)
        except ValueError as error:
            log.warning(
                "what was learned cannot be read; going on without it, the next save replaces it",
                config_map=f"{self._namespace}/{name}",
                why=str(error),
            )
            return {}

    def _name(self, shard: int) -> str:
        return f"{self._prefix}-{shard}"


def _spread(learned: Mapping[ServiceId, LeadTimes]) -> list[dict[ServiceId, LeadTimes]]:
    """By a hash that is the same in every process."""
    shards: list[dict[ServiceId, LeadTimes]] = [{} for _ in range(SHARDS)]
    for service, times in learned.items():
        shards[crc32(str(service).encode()) % SHARDS][service] = times
    return shards
