# SPDX-License-Identifier: Apache-2.0
"""What outlives the controller: one contract for every store, then the faults of the file."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from autoscaler.adapters.memory import FileMemoryStore, InMemoryStore
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.signals import ServiceId
from autoscaler.errors import RetryLater
from autoscaler.ports import MemoryStore

IRIS, GEMMA = ServiceId("local", "iris"), ServiceId("team-a", "gemma")
LEARNED = {IRIS: LeadTimes((0.5, 2.0)), GEMMA: LeadTimes()}


@pytest.fixture(params=["in memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore:
    """Each kind of store in turn, with nothing in it."""
    if request.param == "file":
        return FileMemoryStore(tmp_path / "state" / "memory.json")
    return InMemoryStore()


async def test_a_store_begins_empty(store: MemoryStore) -> None:
    """Nothing was learned before the first save."""
    assert await store.load() == {}


async def test_what_was_saved_is_loaded(store: MemoryStore) -> None:
    """Every service with all its lead times."""
    await store.save(LEARNED)
    assert await store.load() == LEARNED


async def test_a_save_replaces_everything(store: MemoryStore) -> None:
    """A service that is left out is forgotten."""
    await store.save(LEARNED)
    await store.save({IRIS: LeadTimes((3.0,))})
    assert await store.load() == {IRIS: LeadTimes((3.0,))}


async def test_what_was_loaded_is_not_changed_by_a_later_save(store: MemoryStore) -> None:
    """A loaded mapping is the caller's own."""
    await store.save(LEARNED)
    loaded = await store.load()
    await store.save({})
    assert loaded == LEARNED


async def test_of_saves_at_once_the_last_stays(store: MemoryStore) -> None:
    """Saves that overlap are carried out in the order they were asked for."""
    await asyncio.gather(*(store.save({IRIS: LeadTimes((float(n),))}) for n in range(20)))
    assert await store.load() == {IRIS: LeadTimes((19.0,))}


async def test_a_file_outlives_its_store(tmp_path: Path) -> None:
    """Another process reads what this one saved, and no part of a file is left beside it."""
    await FileMemoryStore(tmp_path / "memory.json").save(LEARNED)
    assert await FileMemoryStore(tmp_path / "memory.json").load() == LEARNED
    assert os.listdir(tmp_path) == ["memory.json"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"version": 1, "lead_ti', id="cut off"),
        pytest.param("[]", id="a list"),
        pytest.param('{"lead_times_s": {}}', id="no version"),
        pytest.param('{"version": 2, "lead_times_s": {}}', id="a later version"),
        pytest.param('{"version": 1}', id="nothing learned"),
        pytest.param('{"version": 1, "lead_times_s": {"iris": [1]}}', id="no namespace"),
        pytest.param('{"version": 1, "lead_times_s": {"local/iris": 1}}', id="no list"),
        pytest.param(
            '{"version": 1, "lead_times_s": {"local/iris": ["1"]}}', id="text for seconds"
        ),
        pytest.param('{"version": 1, "lead_times_s": {"local/iris": [true]}}', id="a truth"),
        pytest.param('{"version": 1, "lead_times_s": {"local/iris": [NaN]}}', id="NaN"),
        pytest.param('{"version": 1, "lead_times_s": {"local/iris": [-1]}}', id="negative"),
        pytest.param("\udcff\udcfe", id="not UTF-8"),
    ],
)
async def test_a_broken_file_is_said_once_moved_aside_and_forgotten(
    tmp_path: Path, text: str
) -> None:
    """It costs what was learned and nothing else; the next save works."""
    path = tmp_path / "memory.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    store = FileMemoryStore(path)
    with capture_logs() as logs:
        assert await store.load() == {}
        assert await store.load() == {}
    assert [entry["event"] for entry in logs] == [
        "what was learned cannot be read; starting without it"
    ]
    aside = tmp_path / "memory.json.broken"
    assert aside.read_bytes() == text.encode(errors="surrogateescape")
    await store.save(LEARNED)
    assert await store.load() == LEARNED


async def test_a_save_that_fails_keeps_the_old_file_and_says_what_to_do(tmp_path: Path) -> None:
    """A folder where the new file should go stands for any disk that refuses."""
    path = tmp_path / "memory.json"
    store = FileMemoryStore(path)
    await store.save(LEARNED)
    (tmp_path / "memory.json.part").mkdir()
    with pytest.raises(RetryLater, match="mend its permissions"):
        await store.save({})
    assert await store.load() == LEARNED


async def test_the_file_can_be_read_by_a_person(tmp_path: Path) -> None:
    """JSON with the unit in the key."""
    path = tmp_path / "memory.json"
    await FileMemoryStore(path).save({IRIS: LeadTimes((0.5,))})
    assert json.loads(path.read_text()) == {"version": 1, "lead_times_s": {"local/iris": [0.5]}}
    assert os.stat(path).st_size < 200
