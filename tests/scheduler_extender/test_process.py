# SPDX-License-Identifier: Apache-2.0
"""The whole process against an API server that is faked at the socket: from Lease to Binding."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from autoscaler.adapters.kubernetes.resources import Place
from scheduler_extender.adapters.api import Api
from scheduler_extender.app import VERBS
from scheduler_extender.core import annotations as named
from scheduler_extender.core.node_report import GPUS, write_report
from scheduler_extender.errors import GiveUp
from scheduler_extender.listening import bound
from scheduler_extender.process import Process
from scheduler_extender.settings import Settings
from tests.adapters.kubernetes.fake_api_server import FakeApiServer, _json, _refuse
from tests.scheduler_extender.builders import a_node
from tests.scheduler_extender.fakes import a_pod

LEASE = "/apis/coordination.k8s.io/v1/namespaces/here/leases/tidegate-extender"


class BindingApiServer(FakeApiServer):
    """Binds and evicts pods as the real one does; field selectors of pods are passed by.

    `protected`: names of pods whose disruption budgets allow nothing. An evicted pod is gone at
    once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protected: set[str] = set()

    async def _list(self, place: Place, query: dict[str, str], body: Any) -> web.Response:
        return await super()._list(place, {**query, "fieldSelector": ""}, body)

    async def _watch(
        self, request: web.Request, place: Place, query: dict[str, str]
    ) -> web.StreamResponse:
        return await super()._watch(request, place, {**query, "fieldSelector": ""})

    async def _create(self, place: Place, query: dict[str, str], body: Any) -> web.Response:
        if place.subresource == "eviction":
            return await self._evict(place, body)
        if place.subresource != "binding":
            return await super()._create(place, query, body)
        pod = self.objects.get(("", "pods", place.namespace, place.name))
        if pod is None:
            return _refuse(404)
        meta = pod["metadata"]
        if meta["uid"] != body["metadata"]["uid"] or pod["spec"].get("nodeName"):
            return _refuse(409)
        notes = {**meta.get("annotations", {}), **body["metadata"].get("annotations", {})}
        labels = {**meta.get("labels", {}), **body["metadata"].get("labels", {})}
        spec = {**pod["spec"], "nodeName": body["target"]["name"]}
        at = Place(place.path, "", "pods", place.namespace, place.name)
        bound = {**pod, "metadata": {**meta, "annotations": notes, "labels": labels}, "spec": spec}
        await self._store(at, bound, kind="MODIFIED")
        return _json({"kind": "Status", "status": "Success"}, status=201)

    async def _evict(self, place: Place, body: Any) -> web.Response:
        options = body["deleteOptions"]
        pod = self.objects.get(("", "pods", place.namespace, place.name))
        if pod is None:
            return _refuse(404)
        if pod["metadata"]["uid"] != options["preconditions"]["uid"]:
            return _refuse(409)
        if place.name in self.protected:
            return _refuse(429)
        if options.get("dryRun") != ["All"]:
            await self.remove(place.path.removesuffix("/eviction"))
        return _json({"kind": "Status", "status": "Success"}, status=201)

    async def put_node(self, name: str, *, cards: int = 2, mixed: bool = False) -> None:
        report = a_node(name, cards=cards, mixed=mixed).report
        assert report is not None
        meta = {"name": name, "annotations": {GPUS: write_report(report)}}
        status = {"allocatable": {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": str(cards)}}
        await self.put(f"/api/v1/nodes/{name}", {"metadata": meta, "spec": {}, "status": status})

    async def put_pod(self, pod: dict[str, Any]) -> dict[str, Any]:
        return await self.put(f"/api/v1/namespaces/ns/pods/{pod['metadata']['name']}", pod)

    def granted(self, name: str) -> dict[str, str]:
        notes = self.objects["", "pods", "ns", name]["metadata"]["annotations"]
        return {key: text for key, text in notes.items() if key == named.GRANTED_UUIDS}


@pytest.fixture
async def server() -> AsyncIterator[BindingApiServer]:
    api = BindingApiServer()
    await api.up()
    for name in ("n1", "n2"):
        await api.put_node(name)
    yield api
    await api.down()


@asynccontextmanager
async def a_process(
    server: BindingApiServer,
    folder: Path,
    *,
    ready: bool = True,
    pages: socket.socket | None = None,
    **more: Any,
) -> AsyncIterator["tuple[httpx.AsyncClient, asyncio.Task[None]]"]:
    settings = Settings(port=0, kubeconfig=server.kubeconfig(folder), audit_s=5.0, **more)
    taken = bound(settings.host, settings.port)
    host, port = taken.getsockname()
    async with Api(settings.kubeconfig) as api:
        process = Process(settings, api, taken, pages=pages)
        running = asyncio.create_task(process.run())
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            if ready:
                await until(lambda: is_ready(client))
            yield client, running
        process._stop.set()
        await asyncio.wait([running])


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def until(holds: Callable[[], Awaitable[bool]], *, within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while True:
        try:
            if await holds():
                return
        except httpx.TransportError as error:
            if time.monotonic() > end_s:
                raise TimeoutError from error
        assert time.monotonic() < end_s, "not in time"
        await asyncio.sleep(0.02)


def asked(pod: dict[str, Any], *names: str) -> dict[str, Any]:
    return {"Pod": pod, "Nodes": None, "NodeNames": list(names)}


def binding(pod: dict[str, Any], node: str) -> dict[str, str]:
    meta = pod["metadata"]
    return {"PodName": meta["name"], "PodNamespace": "ns", "PodUID": meta["uid"], "Node": node}


async def test_the_port_of_pages_tells_health_and_answers_no_verb(
    server: BindingApiServer, tmp_path: Path
) -> None:
    pod = await server.put_pod(a_pod("p", annotations={named.COUNT: "1"}))
    pages = bound("127.0.0.1", 0)
    at = f"http://127.0.0.1:{pages.getsockname()[1]}"
    async with a_process(server, tmp_path, pages=pages) as (client, _):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(f"{at}{path}")).status_code == 200
        said = [await client.post(f"{at}/{verb}", json=binding(pod, "n1")) for verb in VERBS]
        assert {answer.status_code for answer in said} == {404}
        assert not server.granted("p")


async def test_a_pod_is_filtered_ranked_and_bound_with_its_cards(
    server: BindingApiServer, tmp_path: Path
) -> None:
    pod = await server.put_pod(a_pod("p", annotations={named.MEMORY: "10Gi", named.CORE: "30%"}))
    async with a_process(server, tmp_path) as (client, _):
        found = (await client.post("/filter", json=asked(pod, "n1", "n2", "n3"))).json()
        assert found["NodeNames"] == ["n1", "n2"]
        assert "node agent" in found["FailedAndUnresolvableNodes"]["n3"]
        ranked = (await client.post("/prioritize", json=asked(pod, "n1", "n2"))).json()
        assert max(one["Score"] for one in ranked) == 10
        assert [one["Score"] for one in ranked].count(10) == 1
        answer = await client.post("/bind", json=binding(pod, "n1"))
        assert answer.json() == {"Error": ""}
        notes = server.objects["", "pods", "ns", "p"]["metadata"]["annotations"]
        assert notes[named.GRANTED_UUIDS] == "GPU-n1-0"
        assert (notes[named.GRANTED_MIB], notes[named.GRANTED_CORE]) == ("10240", "30")
        metrics = (await client.get("/metrics")).text
        assert "tidegate_extender_bound_pods 1.0" in metrics
        assert 'tidegate_extender_calls_total{status="200",verb="bind"} 1.0' in metrics


async def test_a_process_that_is_started_anew_knows_what_is_taken(
    server: BindingApiServer, tmp_path: Path
) -> None:
    first = await server.put_pod(a_pod("first", annotations={named.COUNT: "2"}))
    second = await server.put_pod(a_pod("second", annotations={named.COUNT: "1"}))
    async with a_process(server, tmp_path) as (client, _):
        await client.post("/bind", json=binding(first, "n1"))
    async with a_process(server, tmp_path) as (client, _):
        found = (await client.post("/filter", json=asked(second, "n1", "n2"))).json()
        assert found["NodeNames"] == ["n2"]
        assert found["FailedNodes"] == {"n1": "not enough unused GPUs"}
        answer = await client.post("/bind", json=binding(second, "n1"))
        assert "not enough unused GPUs" in answer.json()["Error"]
        await server.remove("/api/v1/namespaces/ns/pods/first")

        async def is_free() -> bool:
            found = (await client.post("/filter", json=asked(second, "n1"))).json()
            return bool(found["NodeNames"] == ["n1"])

        await until(is_free)


async def test_only_the_holder_of_the_lease_answers(
    server: BindingApiServer, tmp_path: Path
) -> None:
    pod = await server.put_pod(a_pod("p", annotations={named.COUNT: "1"}))
    async with a_process(server, tmp_path) as (leader, _):
        (tmp_path / "other").mkdir()
        async with a_process(server, tmp_path / "other", ready=False) as (standby, _):
            await until(lambda: is_alive(standby))
            refused = await standby.post("/filter", json=asked(pod, "n1"))
            assert refused.status_code == 503
            assert "Lease" in refused.text
            assert (await leader.post("/filter", json=asked(pod, "n1"))).status_code == 200


async def test_a_leader_whose_lease_is_taken_away_ends_and_says_so(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with a_process(server, tmp_path) as (_, running):
        lease = server.objects["coordination.k8s.io", "leases", "here", "tidegate-extender"]
        spec = {**lease["spec"], "holderIdentity": "another"}
        await server.put(LEASE, {**lease, "spec": spec})
        await asyncio.wait([running], timeout=20)
        with pytest.raises(GiveUp, match="lost the Lease"):
            running.result()


async def test_a_refused_binding_is_told_and_its_cards_are_free_again(
    server: BindingApiServer, tmp_path: Path
) -> None:
    gone = a_pod("gone", annotations={named.COUNT: "2"})
    pod = await server.put_pod(a_pod("p", annotations={named.COUNT: "2"}))
    async with a_process(server, tmp_path) as (client, _):
        await client.post("/filter", json=asked(gone, "n1"))
        answer = await client.post("/bind", json=binding(gone, "n1"))
        assert "404" in answer.json()["Error"]
        assert (await client.post("/bind", json=binding(pod, "n1"))).json() == {"Error": ""}
        assert server.granted("p") == {named.GRANTED_UUIDS: "GPU-n1-0,GPU-n1-1"}


async def test_a_body_that_is_not_the_protocol_is_a_400_and_an_unknown_path_a_404(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with a_process(server, tmp_path) as (client, _):
        answer = await client.post("/filter", content=b"{")
        assert (answer.status_code, "ExtenderArgs" in answer.text) == (400, True)
        assert (await client.get("/filter")).status_code == 404


async def test_a_pod_of_high_priority_gets_the_card_of_a_lower_one(
    server: BindingApiServer, tmp_path: Path
) -> None:
    """Not that of the pod that its budget protects, though it costs less."""
    for name, node, priority in (("least", "n1", 0), ("low", "n2", 1)):
        notes = {named.GRANTED_UUIDS: f"GPU-{node}-0,GPU-{node}-1"}
        notes |= {named.GRANTED_MIB: "40000", named.GRANTED_CORE: "100"}
        await server.put_pod(a_pod(name, annotations=notes, node=node, priority=priority))
    server.protected = {"least"}
    high = await server.put_pod(a_pod("high", annotations={named.COUNT: "1"}, priority=9))
    late = a_pod("late", annotations={named.COUNT: "2"}, priority=0)
    async with a_process(server, tmp_path) as (client, _):
        found = (await client.post("/filter", json=asked(high, "n1", "n2"))).json()
        assert found["NodeNames"] == []

        async def is_nominated() -> bool:
            pod = server.objects["", "pods", "ns", "high"]
            return bool(pod["status"].get("nominatedNodeName") == "n2")

        await until(is_nominated)
        assert ("", "pods", "ns", "least") in server.objects
        refused = (await client.post("/filter", json=asked(late, "n1", "n2"))).json()
        assert "kept for a pod" in refused["FailedNodes"]["n2"]
        assert (await client.post("/bind", json=binding(high, "n2"))).json() == {"Error": ""}
        metrics = (await client.get("/metrics")).text
        assert "tidegate_extender_preemptions_total 1.0" in metrics
        assert "tidegate_extender_victims_total 1.0" in metrics

        async def is_told() -> bool:
            events = [raw for key, raw in server.objects.items() if key[1] == "events"]
            return {(one["reason"], one["regarding"]["name"]) for one in events} == {
                ("Preempted", "low"),
                ("Preempting", "high"),
            }

        await until(is_told)


async def is_alive(client: httpx.AsyncClient) -> bool:
    return (await client.get("/healthz")).status_code == 200
