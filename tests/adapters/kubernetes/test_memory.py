# SPDX-License-Identifier: Apache-2.0
"""What was learned survives the controller; what went wrong with it never stops one."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.memory import KEY, SHARDS, ConfigMapMemoryStore
from autoscaler.adapters.kubernetes.resources import CONFIG_MAPS
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.signals import ServiceId
from autoscaler.errors import RetryLater
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

MANY = {ServiceId("here", f"service-{n}"): LeadTimes((float(n), n + 0.12345)) for n in range(40)}
ONE = ServiceId("here", "service-0")
Make = Callable[..., ConfigMapMemoryStore]


@pytest.fixture
async def store(api: KubeApi) -> AsyncIterator[Make]:
    """Makes stores over the same config maps: one a life of the controller."""
    async with AsyncExitStack() as ends:

        def make(every_s: float = 0.0) -> ConfigMapMemoryStore:
            made = ConfigMapMemoryStore(api, namespace="here", every_s=every_s)
            ends.push_async_callback(made.stop)
            return made

        yield make


def maps(server: FakeApiServer) -> dict[str, dict[str, Any]]:
    return {key[3]: raw for key, raw in server.objects.items() if key[1] == "configmaps"}


async def test_what_was_learned_is_there_for_the_next(store: Make, server: FakeApiServer) -> None:
    first = store()
    await first.save(MANY)
    await first.flush()
    assert set(maps(server)) == {f"tidegate-state-{n}" for n in range(SHARDS)}
    found = await store().load()
    assert found.keys() == MANY.keys()
    assert found[ONE].observed_s == (0.0, 0.123)


async def test_it_is_written_without_being_asked_to(store: Make, server: FakeApiServer) -> None:
    await store().save(MANY)
    await until(lambda: len(maps(server)) == SHARDS, "all config maps")


async def test_only_what_changed_is_written(store: Make, server: FakeApiServer) -> None:
    first = store()
    await first.save(MANY)
    await first.flush()
    before = len(server.asked)
    await first.save({**MANY, ONE: LeadTimes((7.0,))})
    await first.flush()
    await first.save({**MANY, ONE: LeadTimes((7.0,))})
    await first.flush()
    assert len(server.asked) == before + 1


async def test_a_config_map_is_not_written_more_often_than_said(
    store: Make, server: FakeApiServer
) -> None:
    first = store(every_s=3600.0)
    await first.save(MANY)
    await until(lambda: len(maps(server)) == SHARDS, "the first time")
    before = len(server.asked)
    for n in range(5):
        await first.save({**MANY, ONE: LeadTimes((float(n),))})
    assert len(server.asked) == before
    await first.flush()
    assert len(server.asked) == before + 1
    assert (await store().load())[ONE].observed_s == (4.0,)


async def test_corrupt_words_cost_their_part_only(store: Make, server: FakeApiServer) -> None:
    first = store()
    await first.save(MANY)
    await first.flush()
    await server.put(CONFIG_MAPS.path("here", "tidegate-state-0"), {"data": {KEY: '{"version'}})
    await server.put(CONFIG_MAPS.path("here", "tidegate-state-1"), {"data": {"else": "?"}})
    await server.put(CONFIG_MAPS.path("here", "tidegate-state-2"), {})
    second = store()
    found = await second.load()
    assert 0 < len(found) < len(MANY)
    await second.save(MANY)
    await second.flush()
    assert (await store().load()).keys() == MANY.keys()


async def test_a_config_map_that_was_deleted_is_made_anew(
    store: Make, server: FakeApiServer
) -> None:
    first = store()
    await first.save(MANY)
    await first.flush()
    for name in maps(server):
        await server.remove(CONFIG_MAPS.path("here", name))
    changed = {service: LeadTimes((1.0,)) for service in MANY}
    await first.save(changed)
    await first.flush()
    assert await store().load() == changed


async def test_a_config_map_that_another_made_meanwhile_is_taken(
    store: Make, server: FakeApiServer
) -> None:
    server.fail(404, verb="patch")
    await server.put(CONFIG_MAPS.path("here", "tidegate-state-0"), {"metadata": {"labels": {}}})
    first = store()
    await first.save(MANY)
    await first.flush()
    assert (await store().load()).keys() == MANY.keys()


async def test_a_server_that_is_away_is_not_an_empty_memory(
    store: Make, server: FakeApiServer
) -> None:
    await server.down()
    with pytest.raises(RetryLater):
        await store().load()
    await server.up()


async def test_a_write_that_failed_is_made_good(store: Make, server: FakeApiServer) -> None:
    server.fail(500, verb="patch", times=3)
    first = store(every_s=0.05)
    await first.save(MANY)
    await until(lambda: len(maps(server)) == SHARDS, "all config maps")


async def test_a_flush_that_failed_says_so_and_can_be_repeated(
    store: Make, server: FakeApiServer
) -> None:
    first = store(every_s=3600.0)
    await server.down()
    await first.save(MANY)
    with pytest.raises(RetryLater):
        await first.flush()
    await server.up()
    await first.flush()
    assert (await store().load()).keys() == MANY.keys()


async def test_five_thousand_services_fit(store: Make, server: FakeApiServer) -> None:
    """Each config map stays below half of the MiB that etcd takes."""
    first = store()
    long = LeadTimes(tuple(123.456 + n for n in range(64)))
    await first.save({ServiceId("a-namespace", f"a-service-{n}"): long for n in range(5000)})
    await first.flush()
    sizes = [len(raw["data"][KEY]) for raw in maps(server).values()]
    assert max(sizes) < 2**19
