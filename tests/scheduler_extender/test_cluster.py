# SPDX-License-Identifier: Apache-2.0
"""Nodes, pods and the Lease are followed through everything that a watch can go through."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler_extender.adapters.api import Api
from scheduler_extender.adapters.cluster import (
    KubernetesBinder,
    KubernetesEvictor,
    KubernetesPodsAndNodes,
)
from scheduler_extender.adapters.events import KubernetesReporter
from scheduler_extender.adapters.lease import DEADLINE_S, LEASE_S, KubernetesLease
from scheduler_extender.binding import BIND_S
from scheduler_extender.core import annotations as named
from scheduler_extender.core.annotations import pod_seen
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.errors import GiveUp, NotFound, Refused, Unreachable
from scheduler_extender.ports import Binding
from scheduler_extender.state import HOLD_S, ClusterState
from scheduler_extender.waiting import Waiting
from tests.scheduler_extender.fakes import Clock, a_pod
from tests.scheduler_extender.test_process import BindingApiServer, until

GRANT = {named.GRANTED_UUIDS: "GPU-n1-0", named.GRANTED_MIB: "1000", named.GRANTED_CORE: "10"}


@pytest.fixture
async def server() -> AsyncIterator[BindingApiServer]:
    api = BindingApiServer()
    await api.up()
    await api.put_node("n1")
    await api.put_pod(a_pod("a", annotations=GRANT, node="n1"))
    yield api
    await api.down()


@asynccontextmanager
async def followed(server: BindingApiServer, folder: Path) -> AsyncIterator[ClusterState]:
    state = ClusterState()
    async with Api(server.kubeconfig(folder)) as api:
        following = asyncio.create_task(KubernetesPodsAndNodes(api).follow(state))
        await until(lambda: holds(state.synced))
        yield state
        following.cancel()
        await asyncio.wait([following])


async def holds(value: bool) -> bool:
    return value


def uids(state: ClusterState) -> set[str]:
    return set(state.pods)


async def test_what_is_listed_and_what_changes_is_known(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with followed(server, tmp_path) as state:
        assert uids(state) == {"uid-a"}
        await server.put_pod(a_pod("b", annotations=GRANT, node="n1"))
        await until(lambda: holds(uids(state) == {"uid-a", "uid-b"}))
        await server.remove("/api/v1/namespaces/ns/pods/a")
        await until(lambda: holds(uids(state) == {"uid-b"}))
        await server.put_node("n2")
        await until(lambda: holds("n2" in state.fleet.row_of))


async def test_the_api_server_is_asked_through_the_proxy_of_the_environment(
    server: BindingApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the environment says that it needs none."""
    asked = list[str]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    proxy = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    for direct, heard in (("", [f"GET {server.url}/api/v1/nodes HTTP/1.1\r\n"]), ("*", [])):
        asked.clear()
        monkeypatch.setenv("no_proxy", direct)
        async with Api(server.kubeconfig(tmp_path)) as api:
            await api.ask("GET", "/api/v1/nodes")
        assert asked == heard
    proxy.close()
    await proxy.wait_closed()


async def test_a_broken_watch_goes_on_where_it_was(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with followed(server, tmp_path) as state:
        await server.until_watched(2)
        lists = len(server.asked_for("list"))
        server.cut_watches()
        await server.put_pod(a_pod("b", annotations=GRANT, node="n1"))
        await until(lambda: holds(uids(state) == {"uid-a", "uid-b"}))
        assert len(server.asked_for("list")) == lists


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_watch_whose_place_is_gone_lists_anew_and_drops_what_is_no_more(
    server: BindingApiServer, tmp_path: Path, as_event: bool
) -> None:
    server.gone_as_event = as_event
    async with followed(server, tmp_path) as state:
        await server.until_watched(2)
        await server.down()
        del server.objects["", "pods", "ns", "a"]
        server.compact()
        await server.up()
        await until(lambda: holds(not uids(state)))
        assert state.fleet.memory_free[state.fleet.row_of["n1"], 0] == 40_000


async def test_an_api_server_that_is_away_takes_nothing_out(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with followed(server, tmp_path) as state:
        await server.until_watched(2)
        await server.down()
        await asyncio.sleep(0.2)
        assert uids(state) == {"uid-a"}
        assert "n1" in state.fleet.row_of
        await server.up()


async def test_a_line_that_is_no_event_or_no_pod_does_not_end_the_watch(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with followed(server, tmp_path) as state:
        await server.until_watched(2)
        await server.say(b'{"type":"MODIFIED","object":{"metadata":{"resourceVersion":"1"}}}\n')
        await server.say(b"nonsense\n")
        await server.put_pod(a_pod("b", annotations=GRANT, node="n1"))
        await until(lambda: holds(uids(state) == {"uid-a", "uid-b"}))


async def test_a_binding_tells_the_api_server_when_to_give_up(
    server: BindingApiServer, tmp_path: Path
) -> None:
    await server.put_pod(a_pod("p"))
    async with Api(server.kubeconfig(tmp_path)) as api:
        await KubernetesBinder(api).bind(Binding("ns", "p", "uid-p", "n1", GRANT))
    _, path, query = server.asked[-1]
    assert (path, query) == ("/api/v1/namespaces/ns/pods/p/binding", {"timeout": f"{BIND_S:g}s"})


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, Refused), (409, Refused), (422, Refused), (429, Refused), (500, Unreachable),
     (503, Unreachable), (504, Unreachable)],
)  # fmt: skip
async def test_only_an_answer_that_nothing_was_changed_is_a_refusal(
    server: BindingApiServer, tmp_path: Path, status: int, error: type[Exception]
) -> None:
    server.fail(status)
    async with Api(server.kubeconfig(tmp_path)) as api:
        with pytest.raises(error, match=str(status)):
            await KubernetesBinder(api).bind(Binding("ns", "p", "u", "n1"))


async def test_a_pod_that_is_not_there_is_read_as_none(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        assert await KubernetesBinder(api).read("ns", "ghost") is None
        pod = await KubernetesBinder(api).read("ns", "a")
        assert pod is not None
        assert pod.seen.granted is not None


async def test_a_kubeconfig_that_does_not_work_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "broken"
    bad.write_text("clusters: 5")
    with pytest.raises(GiveUp, match="broken"):
        async with Api(bad):
            pass


async def test_a_lease_of_a_dead_holder_is_taken_only_after_it_expired(
    server: BindingApiServer, tmp_path: Path
) -> None:
    clock = Clock()
    async with Api(server.kubeconfig(tmp_path)) as api:
        first, second = (
            KubernetesLease(api, namespace="here", name="l", identity=who, now_s=clock.now_s)
            for who in ("first", "second")
        )
        await first.won()
        assert not await second._try()
        clock.s += DEADLINE_S
        assert not first.leading
        clock.s += LEASE_S - DEADLINE_S - 0.1
        assert not await second._try()
        clock.s += 0.2
        assert await second._try()
        assert second.leading
        assert not await first._try()


async def test_a_released_lease_is_free_at_once(server: BindingApiServer, tmp_path: Path) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        first, second = (
            KubernetesLease(api, namespace="here", name="l", identity=who)
            for who in ("first", "second")
        )
        await first.won()
        await first.release()
        assert not first.leading
        assert await second._try()


def test_what_a_dead_leader_asked_for_is_over_before_the_next_one_leads() -> None:
    assert DEADLINE_S + BIND_S <= LEASE_S
    assert BIND_S < HOLD_S


async def test_the_same_warning_is_one_event(server: BindingApiServer, tmp_path: Path) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        reporter = KubernetesReporter(api, instance="pod")
        for _ in range(3):
            reporter.warn(node=NodeSeen("n1", "u"), reason="Why", message="so")
        await asyncio.wait(reporter._writing)
    events = [raw for key, raw in server.objects.items() if key[1] == "events"]
    assert [(event["regarding"]["name"], event["note"]) for event in events] == [("n1", "so")]


async def test_a_dry_run_evicts_nobody_and_a_pod_of_another_uid_is_left_alone(
    server: BindingApiServer, tmp_path: Path
) -> None:
    victim = pod_seen(await server.put_pod(a_pod("p", node="n1")))
    async with Api(server.kubeconfig(tmp_path)) as api:
        evictor = KubernetesEvictor(api)
        await evictor.evict(victim, dry_run=True)
        with pytest.raises(Refused, match="409"):
            await evictor.evict(replace(victim, uid="another"))
        server.protected = {"p"}
        with pytest.raises(Refused, match="429"):
            await evictor.evict(victim, dry_run=True)
        assert ("", "pods", "ns", "p") in server.objects
        server.protected = set()
        await evictor.evict(victim)
        assert ("", "pods", "ns", "p") not in server.objects
        with pytest.raises(NotFound):
            await evictor.evict(victim)


async def test_an_event_of_a_pod_lies_beside_the_pod(
    server: BindingApiServer, tmp_path: Path
) -> None:
    victim = pod_seen(a_pod("low", node="n1"))
    async with Api(server.kubeconfig(tmp_path)) as api:
        reporter = KubernetesReporter(api, instance="pod")
        reporter.preempted(victim, by=WAITING, node="n1")
        await asyncio.wait(reporter._writing)
    (event,) = [raw for key, raw in server.objects.items() if key[1] == "events"]
    assert event["metadata"]["namespace"] == "ns"
    assert (event["type"], event["reason"]) == ("Normal", "Preempted")
    assert (event["regarding"]["name"], event["related"]["name"]) == ("low", "high")
    assert "ns/high" in event["note"]


WAITING = Waiting("uid", "ns", "high", Demand(), (), 9, may_preempt=True, since_s=0, asked_s=0)
