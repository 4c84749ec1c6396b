# SPDX-License-Identifier: Apache-2.0
"""What outlives the controller's process: a JSON file on one machine; a dictionary for tests.

A file that cannot be read costs what was learned, never the start of the controller.
"""

import asyncio
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.signals import ServiceId
from autoscaler.errors import RetryLater

log = structlog.get_logger()

VERSION = 1  # of the file's shape


class InMemoryStore:
    """Forgets with its process."""

    def __init__(self) -> None:
        self._learned: dict[ServiceId, LeadTimes] = {}

    async def load(self) -> Mapping[ServiceId, LeadTimes]:
        return dict(self._learned)

    async def save(self, learned: Mapping[ServiceId, LeadTimes]) -> None:
        self._learned = dict(learned)


class FileMemoryStore:
    """One JSON file, replaced whole: a crash at any moment leaves the old one or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saving = asyncio.Lock()

    async def load(self) -> Mapping[ServiceId, LeadTimes]:
        """What was saved last; nothing if there is no file, or none that makes sense."""
        return await asyncio.to_thread(self._read)

    async def save(self, learned: Mapping[ServiceId, LeadTimes]) -> None:
        """On disk once this returns. Raises `RetryLater` when the disk is at fault."""
        text = to_json(learned)
        async with self._saving:  # the later call's words are the ones that stay
            await asyncio.to_thread(self._replace, text)

    def _read(self) -> Mapping[ServiceId, LeadTimes]:
        try:
            return from_json(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            aside = self._path.with_name(f"{self._path.name}.broken")
            with suppress(OSError):  # where even that fails, the next save says so
                self._path.replace(aside)
            log.warning(
                "what was learned cannot be read; starting without it",
                file=str(self._path),
                why=str(error),
                moved_to=str(aside),
            )
            return {}

    def _replace(self, text: str) -> None:
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise RetryLater(
                f"cannot save what was learned to {self._path}: {error}; make room or mend its "
                "permissions",
                after_s=60.0,
            ) from error


def to_json(learned: Mapping[ServiceId, LeadTimes], *, compact: bool = False) -> str:
    """For people to read, or `compact`: to the millisecond and without spaces."""
    lead_times_s = {str(service): list(times.observed_s) for service, times in learned.items()}
    if not compact:
        return json.dumps({"version": VERSION, "lead_times_s": lead_times_s}, indent=1) + "\n"
    rounded = {name: [round(lead_s, 3) for lead_s in seen] for name, seen in lead_times_s.items()}
    return json.dumps({"version": VERSION, "lead_times_s": rounded}, separators=(",", ":"))


def from_json(text: str) -> Mapping[ServiceId, LeadTimes]:
    """Read what `to_json` wrote; raises `ValueError` for anything else."""
    saved = json.loads(text)
    if not isinstance(saved, dict) or saved.get("version") != VERSION:
        raise ValueError(f"it is not of version {VERSION}")
    lead_times_s = saved.get("lead_times_s")
    if not isinstance(lead_times_s, dict):
        raise ValueError("it has no lead_times_s")
    return {_service(name): LeadTimes(_seconds(name, seen)) for name, seen in lead_times_s.items()}


def _service(name: str) -> ServiceId:
    namespace, slash, rest = name.partition("/")
    if not (namespace and slash and rest):
        raise ValueError(f"{name!r} is not NAMESPACE/NAME")
    return ServiceId(namespace, rest)


def _seconds(name: str, seen: object) -> tuple[float, ...]:
    if not isinstance(seen, list):
        raise ValueError(f"{name}: {seen!r} is not a list of seconds")
    for value in seen:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not (known and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: {value!r} is not a number of seconds")
    return tuple(float(value) for value in seen)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
