# SPDX-License-Identifier: Apache-2.0
"""Annotations written on other people's objects: few, small, and never waited for.

Of several wishes for one object the last one counts. An annotation on a Deployment's own metadata
rolls nothing; never give this an InferenceService, whose annotations KServe copies to its pods.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.errors import NotFound
from autoscaler.adapters.kubernetes.events import ObjectRef
from autoscaler.errors import RetryLater, TidegateError

log = structlog.get_logger(__name__)

Annotations = Mapping[str, str | None]  # None takes one away


@dataclass(frozen=True, slots=True)
class Pace:
    """`gap_s`: the least time between two writes to one object."""

    gap_s: float = 3.0
    trust_s: float = 60.0  # how long a write is taken to stand, whatever was seen since
    at_once: int = 8


@dataclass(frozen=True, slots=True)
class _Written:
    annotations: Annotations
    at_s: float


class AnnotationWriter:
    """Writes annotations, in a task of its own."""

    def __init__(
        self,
        api: KubeApi,
        *,
        pace: Pace | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._pace = pace or Pace()
        self._now_s = now_s
        self._wishes: dict[str, Annotations] = {}
        self._due_s: dict[str, float] = {}
        self._written: dict[str, _Written] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def annotate(
        self, ref: ObjectRef, annotations: Annotations, *, seen: Annotations | None = None
    ) -> None:
        """Wish `annotations` to stand on an object. Returns at once.

        `seen`: those that it had when last looked at; where they say the same, nothing is written.
        """
        path, now_s = ref.path, self._now_s()
        written = self._written.get(path)
        if written is not None and now_s - written.at_s < self._pace.trust_s:
            seen = {**(seen or {}), **written.annotations}
        if seen is not None and _stands(annotations, seen):
            self._wishes.pop(path, None)
            return
        self._wishes[path] = annotations
        self._due_s.setdefault(path, written.at_s + self._pace.gap_s if written else now_s)
        self._news.set()

    def start(self) -> "asyncio.Task[None]":
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="annotations")
        return self._task

    async def stop(self) -> None:
        """End. What was not written yet is not: it says how things stood under this process."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            await self._wait()
            now_s = self._now_s()
            due = [path for path in self._wishes if self._due_s[path] <= now_s]
            for some in _batches(due, self._pace.at_once):
                await asyncio.gather(*(self._write(path) for path in some))
            self._forget()

    async def _wait(self) -> None:
        """Until a wish comes, or one that waits is due."""
        next_s = min((self._due_s[path] for path in self._wishes), default=inf) - self._now_s()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if next_s == inf else max(next_s, 0.0)):
                await self._news.wait()
        self._news.clear()

    async def _write(self, path: str) -> None:
        wish = self._wishes.pop(path, None)
        if wish is None:
            return
        again_s = self._pace.gap_s
        try:
            await self._api.patch(path, {"metadata": {"annotations": dict(wish)}})
        except NotFound:
            log.debug("not annotated: it is gone", path=path)
        except RetryLater as trouble:
            log.info("not annotated yet", path=path, why=str(trouble))
            self._wishes.setdefault(path, wish)
            self._due_s[path] = self._now_s() + max(trouble.after_s, again_s)
            return
        except TidegateError as trouble:
            log.warning("not annotated", path=path, why=str(trouble))
        self._written[path] = _Written(wish, self._now_s())
        self._due_s[path] = self._now_s() + again_s

    def _forget(self) -> None:
        """Drop what no longer matters, so that objects long gone leave nothing behind."""
        now_s = self._now_s()
        for path in [p for p, at in self._written.items() if now_s - at.at_s > self._pace.trust_s]:
            del self._written[path]
        for path in self._due_s.keys() - self._wishes.keys() - self._written.keys():
            del self._due_s[path]


def _stands(wanted: Annotations, seen: Annotations) -> bool:
    return all(seen.get(key) == text for key, text in wanted.items())


def _batches(paths: list[str], size: int) -> Iterable[list[str]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))
