# SPDX-License-Identifier: Apache-2.0
"""What an informer knows, and what it does not forget, while the API server misbehaves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.informer import Informer, Key, Timing
from autoscaler.adapters.kubernetes.resources import CONFIG_MAPS, LEADER_WORKER_SETS
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

QUICK = Timing(watch_s=60.0, absent_s=0.05, first_wait_s=0.01, longest_wait_s=0.05, refusals=2)
Changes = list[tuple[Key, str | None, str | None]]
Watching = Callable[..., AbstractAsyncContextManager[tuple[Informer[str], Changes]]]


def path(name: str, namespace: str = "here") -> str:
    return CONFIG_MAPS.path(namespace, name)


def watched(server: FakeApiServer, *, times: int) -> bool:
    return len(server.asked_for("watch")) == times


def holding(x: str) -> dict[str, Any]:
    return {"data": {"x": x}}


@pytest.fixture
def watching(api: KubeApi, server: FakeApiServer) -> Watching:
    """A running informer of the `x` of config maps, that has seen all there is."""

    @asynccontextmanager
    async def run(
        *, timing: Timing = QUICK, **more: Any
    ) -> AsyncIterator[tuple[Informer[str], Changes]]:
        changes: Changes = []
        informer: Informer[str] = Informer(
            api,
            CONFIG_MAPS,
            parse=lambda raw: raw["data"].get("x"),
            on_change=lambda key, old, new: changes.append((key, old, new)),
            timing=timing,
            **more,
        )
        informer.start()
        await informer.wait_synced()
        await server.until_watched()
        yield informer, changes
        await informer.stop()

    return run


async def test_all_pages_are_listed_and_all_changes_followed(
    watching: Watching, server: FakeApiServer
) -> None:
    for name in "abcde":  # a page holds two
        await server.put(path(name), holding("1"))
    async with watching() as (informer, changes):
        assert set(informer.objects) == {("here", name) for name in "abcde"}
        del changes[:]
        await server.put(path("a"), holding("2"))
        await server.put(path("new"), holding("3"))
        await server.remove(path("b"))
        await until(lambda: len(changes) == 3, "three changes")
    assert changes == [
        (("here", "a"), "1", "2"),
        (("here", "new"), None, "3"),
        (("here", "b"), "1", None),
    ]


async def test_what_does_not_change_for_us_is_not_told(
    watching: Watching, server: FakeApiServer
) -> None:
    await server.put(path("a"), holding("1"))
    async with watching() as (_, changes):
        await server.put(path("a"), {"data": {"x": "1", "of no interest": "2"}})
        await server.put(path("a"), {"data": {}})
        await until(lambda: len(changes) == 2, "the end of it")
    assert changes == [(("here", "a"), None, "1"), (("here", "a"), "1", None)]


async def test_a_cut_watch_is_resumed_where_it_was(
    watching: Watching, server: FakeApiServer
) -> None:
    """What changed in between is told; nothing is listed again."""
    async with watching() as (informer, _):
        await server.put(path("a"), holding("1"))
        await until(lambda: informer.objects, "the first")
        server.cut_watches()
        await server.put(path("b"), holding("2"))
        await until(lambda: len(informer.objects) == 2, "the second")
    assert len(server.asked_for("list")) == 1


async def test_half_a_line_before_a_cut_does_no_harm(
    watching: Watching, server: FakeApiServer
) -> None:
    async with watching() as (informer, _):
        await server.say(b'{"type":"DELETED","object":{"metadata":{"na')
        server.cut_watches()
        await server.put(path("a"), holding("1"))
        await until(lambda: informer.objects, "what came after")


async def test_a_line_that_is_no_event_does_no_harm(
    watching: Watching, server: FakeApiServer
) -> None:
    async with watching() as (informer, _):
        await server.say(b'<html>proxy\n{"type":"ADDED"}\n')
        await server.put(path("a"), holding("1"))
        await until(lambda: informer.objects, "what came after")


@pytest.mark.parametrize("as_event", [True, False], ids=["as an event", "as a status"])
async def test_410_is_answered_by_a_new_list_that_finds_the_deleted(
    watching: Watching, server: FakeApiServer, as_event: bool
) -> None:
    await server.put(path("a"), holding("1"))
    await server.put(path("b"), holding("1"))
    async with watching() as (informer, changes):
        del changes[:]
        await server.down()
        await server.remove(path("a"))
        await server.put(path("c"), holding("3"))
        server.gone_as_event = as_event
        server.compact()
        await server.up()
        await until(lambda: ("here", "c") in informer.objects, "the new one")
        assert changes == [(("here", "c"), None, "3"), (("here", "a"), "1", None)]
        assert not informer.trouble


async def test_bookmarks_move_the_place_to_resume_from(
    watching: Watching, server: FakeApiServer
) -> None:
    async with watching() as (informer, _):
        await server.put(
            "/api/v1/namespaces/here/pods/p", {}
        )  # others' changes move the version on
        await server.bookmark(CONFIG_MAPS.path("here"))
        await server.put(path("a"), holding("1"))
        await until(lambda: informer.objects, "the object")
        del server.changes[:]
        last = server.version
        server.cut_watches()
        await until(lambda: len(server.asked_for("watch")) == 2, "the second watch")
    assert server.asked_for("watch")[1]["resourceVersion"] == str(last)
    assert server.asked_for("watch")[1]["allowWatchBookmarks"] == "true"


async def test_a_server_that_is_away_leaves_what_was_known(
    watching: Watching, server: FakeApiServer
) -> None:
    await server.put(path("a"), holding("1"))
    async with watching() as (informer, _):
        await server.down()
        await until(lambda: informer.trouble, "the trouble")
        cut_off = informer.trouble
        await until(lambda: informer.trouble != cut_off, "a try to reach it again")
        heard_at_s = informer.heard_at_s
        assert informer.objects == {("here", "a"): "1"}
        assert informer.synced
        await server.put(path("b"), holding("2"))
        assert informer.heard_at_s == heard_at_s
        await server.up()
        await until(lambda: len(informer.objects) == 2, "the news")
        assert informer.heard_at_s is not None
        assert heard_at_s is not None
        assert informer.heard_at_s > heard_at_s
        assert not informer.trouble
        assert informer.recovered_at_s is not None
        assert informer.recovered_at_s > heard_at_s


async def test_a_watch_that_is_cut_and_taken_up_again_is_no_outage(
    watching: Watching, server: FakeApiServer
) -> None:
    """Something between us and the API server that cuts what is quiet cuts nobody else by that."""
    async with watching() as (informer, _):
        for count in (2, 3, 4):
            server.cut_watches()
            await until(partial(watched, server, times=count), "the next watch")
            await server.until_watched()
            await until(lambda: not informer.trouble, "its beginning")
        assert informer.recovered_at_s is None


async def test_a_list_that_fails_halfway_deletes_nothing(
    watching: Watching, server: FakeApiServer
) -> None:
    for name in "abcde":
        await server.put(path(name), holding("1"))
    async with watching() as (informer, changes):
        del changes[:]
        await server.down()
        server.compact()
        await server.up()
        server.fail(200, verb="list", body=b'{"metadata":{"resourceVersion":"7","continue":"2@1"}}')
        lists = len(server.asked_for("list"))
        await until(lambda: len(server.asked_for("list")) >= lists + 3, "the list after that")
        await server.put(path("f"), holding("1"))
        await until(lambda: len(informer.objects) == 6, "the news")
    assert changes == [(("here", "f"), None, "1")]


async def test_errors_within_a_watch_lead_to_a_new_list_in_the_end(
    watching: Watching, server: FakeApiServer
) -> None:
    """A version that the server never takes again must not be asked for forever."""
    await server.put(path("a"), holding("1"))
    async with watching() as (informer, _):
        server.fail(500, verb="watch", times=2)
        server.cut_watches()
        await until(lambda: len(server.asked_for("list")) == 2, "the second list")
        assert informer.objects == {("here", "a"): "1"}


async def test_each_namespace_is_watched_for_itself(
    watching: Watching, server: FakeApiServer
) -> None:
    for namespace in ("one", "two", "other"):
        await server.put(path("a", namespace), holding("1"))
    async with watching(namespaces=("one", "two")) as (informer, _):
        await server.until_watched(2)
        assert set(informer.objects) == {("one", "a"), ("two", "a")}
        await server.down()
        await server.remove(path("a", "two"))
        server.compact()
        await server.up()
        await until(lambda: set(informer.objects) == {("one", "a")}, "the deletion")


async def test_selectors_are_the_servers_to_apply(
    watching: Watching, server: FakeApiServer
) -> None:
    await server.put(path("a"), {**holding("1"), "metadata": {"labels": {"ours": "yes"}}})
    await server.put(path("b"), holding("1"))
    async with watching(label_selector="ours=yes") as (informer, _):
        assert set(informer.objects) == {("here", "a")}


async def test_what_is_not_installed_is_looked_for_again(
    api: KubeApi, server: FakeApiServer
) -> None:
    server.absent.add("leaderworkersets")
    informer: Informer[str] = Informer(
        api, LEADER_WORKER_SETS, parse=lambda raw: raw["metadata"]["name"], timing=QUICK
    )
    informer.start()
    await informer.wait_synced()
    assert informer.absent
    assert not informer.objects
    await server.put(LEADER_WORKER_SETS.path("here", "a"), {})
    server.absent.clear()
    await until(lambda: informer.objects and not informer.absent, "the object")
    await informer.stop()


async def test_what_may_not_be_read_is_tried_until_it_may(
    api: KubeApi, server: FakeApiServer
) -> None:
    server.fail(403, verb="list", times=3)
    informer: Informer[str] = Informer(
        api, CONFIG_MAPS, parse=lambda raw: raw["data"]["x"], timing=QUICK
    )
    informer.start()
    await until(lambda: "verbs [list]" in informer.trouble, "the missing rule")
    assert not informer.synced
    await informer.wait_synced()
    await informer.stop()


async def test_an_object_of_a_strange_shape_stays_as_it_was(
    watching: Watching, server: FakeApiServer
) -> None:
    await server.put(path("a"), holding("1"))
    async with watching() as (informer, _):
        await server.put(path("a"), {"data": None})
        await server.put(path("b"), holding("2"))
        await until(lambda: len(informer.objects) == 2, "what came after")
        assert informer.objects["here", "a"] == "1"


async def test_a_watch_that_ends_in_time_is_taken_up_again(
    watching: Watching, server: FakeApiServer
) -> None:
    timing = Timing(watch_s=1.0, first_wait_s=0.01, longest_wait_s=0.05)
    async with watching(timing=timing) as (informer, _):
        await until(lambda: len(server.asked_for("watch")) == 2, "the second watch")
        assert not informer.trouble
    assert len(server.asked_for("list")) == 1


async def test_a_listener_that_raises_ends_its_informer_and_is_heard(
    api: KubeApi, server: FakeApiServer
) -> None:
    def raising(key: Key, old: str | None, new: str | None) -> None:
        raise RuntimeError("a listener's bug")

    await server.put(path("a"), holding("1"))
    informer: Informer[str] = Informer(
        api, CONFIG_MAPS, parse=lambda raw: raw["data"]["x"], on_change=raising
    )
    task = informer.start()
    with pytest.raises(ExceptionGroup) as ended:
        await informer.wait_synced()
    assert ended.group_contains(RuntimeError, match="a listener's bug")
    assert task.done()


async def test_stopping_ends_its_requests(watching: Watching, server: FakeApiServer) -> None:
    async with watching():
        pass
    await until(lambda: not server.watched, "the end of the watch")
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("informer")]
