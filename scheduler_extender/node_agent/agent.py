# SPDX-License-Identifier: Apache-2.0
"""Rounds of one node: read the GPUs, and write what changed. The loop knows neither NVML nor HTTP.

1. Read, on a thread of its own, for so long and no longer.
2. Make the report; of a driver that does not tell, one in which no GPU is healthy.
3. Write it where it differs from what stands on the node, or where that was long ago.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from scheduler_extender.core.annotations import PREFIX
from scheduler_extender.core.node_report import GPUS, Enforcement, NodeReport
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.node_agent.gpus import Machine, NotRead
from scheduler_extender.node_agent.report import (
    Written,
    report_of,
    report_of_silence,
    text_of,
    with_none_well,
)

HEARTBEAT: Final = f"{PREFIX}gpus-heartbeat"  # when the report was written last
READ_S: Final = 30.0  # longer, and the driver counts as silent

Level = Callable[[Machine], tuple[Enforcement, str]]


class NodeObject(Protocol):
    """The node in the cluster."""

    async def write(self, annotations: Mapping[str, str]) -> None:
        """Raises `Refused`, `Unreachable`."""


class Gpus(Protocol):
    def read(self) -> Machine | NotRead: ...


class GpusOnAThread:
    """Reads elsewhere, so that a GPU that dies does not stop us. One reading at a time."""

    def __init__(self, gpus: Gpus, *, limit_s: float = READ_S) -> None:
        self._gpus = gpus
        self._limit_s = limit_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nvml")
        self._reading: asyncio.Future[Machine | NotRead] | None = None

    async def read(self) -> Machine | NotRead:
        if self._reading is None:
            loop = asyncio.get_running_loop()
            self._reading = loop.run_in_executor(self._thread, self._gpus.read)
        await asyncio.wait([self._reading], timeout=self._limit_s)
        if not self._reading.done():
            return NotRead(f"nvml: no answer within {self._limit_s:g} s; restart the node")
        reading, self._reading = self._reading, None
        return reading.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one: `text` is what should stand on the node; `trouble`, why it does not."""

    seen: Machine | NotRead
    report: NodeReport
    text: str
    notes: tuple[str, ...] = ()
    wrote: bool = False
    trouble: str = ""


class Agent:
    """`standing` is the text that an earlier agent wrote, and `earlier` its meaning, if any.

    `node` None: nothing is written. `contested` tells why no GPU may be given to pods; empty: they
    may.

    `level` tells what holds pods to their shares, and why that is less than was stated.
    """

    def __init__(
        self,
        name: str,
        *,
        gpus: GpusOnAThread,
        node: NodeObject | None,
        level: Level,
        boot: str,
        heartbeat_s: float,
        standing: str | None = None,
        earlier: Written | None = None,
        contested: Callable[[], str] = lambda: "",
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._gpus = gpus
        self._node = node
        self._level = level
        self._boot = boot
        self._heartbeat_s = heartbeat_s
        self._contested = contested
        self._now_s = now_s
        self._standing = standing
        self._written_at_s = float("-inf")
        self._driver = ""
        self._known = earlier.report if earlier else None
        self._xids = earlier.xids if earlier else {}

    async def round(self) -> Round:
        seen = await self._gpus.read()
        report, notes = self._told(seen)
        text = text_of(report, boot=self._boot, driver=self._driver, why=notes, xids=self._xids)
        made = Round(seen, report, text, notes)
        now_s = self._now_s()
        due = now_s - self._written_at_s >= self._heartbeat_s
        if self._node is None or (text == self._standing and not due):
            return made
        try:
            await self._node.write({GPUS: text, HEARTBEAT: _now()})
        except (Refused, Unreachable) as trouble:
            return replace(made, trouble=str(trouble))
        self._standing, self._written_at_s = text, now_s
        return replace(made, wrote=True)

    def _told(self, seen: Machine | NotRead) -> tuple[NodeReport, tuple[str, ...]]:
        if isinstance(seen, NotRead):
            return report_of_silence(self._name, seen, self._known), (seen.why,)
        level, less = self._level(seen)
        self._known = report = report_of(self._name, seen, level)
        self._driver = seen.driver
        self._xids = {gpu.uuid: gpu.xid for gpu in seen.gpus if gpu.xid}
        notes = [*seen.unlisted, *([less] if less else [])]
        models = sorted({gpu.model for gpu in seen.gpus})
        if len(models) > 1:
            notes.append(f"GPUs of several models, {', '.join(models)}: none is told to pods")
        if why := self._contested():
            report = with_none_well(report, why)
        return report, tuple(notes)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
