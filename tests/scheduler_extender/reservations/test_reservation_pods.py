# SPDX-License-Identifier: Apache-2.0
"""Reservation pods as objects: what they are made from, and the process that makes and ends them.

The API server is faked at the socket; schedulers, kubelets and the pods' processes are the tests.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner

from autoscaler.adapters.kubernetes.resources import Place
from scheduler_extender.adapters.api import Api
from scheduler_extender.adapters.reservations import KubernetesReservations
from scheduler_extender.cli import app as command
from scheduler_extender.core import annotations as named
from scheduler_extender.core.annotations import Reservation, pod_seen
from scheduler_extender.errors import BadInput, Refused
from scheduler_extender.reservations.pod import name_of, reservation_pod, template_of
from tests.scheduler_extender.fakes import a_pod
from tests.scheduler_extender.reservations.mixed import TEMPLATE
from tests.scheduler_extender.test_process import BindingApiServer, a_process, asked, until

PODS = "/api/v1/namespaces/here/pods"


class ReservingApiServer(BindingApiServer):
    """Keeps what it was told with each deletion, and heeds the UID in it."""

    def __init__(self) -> None:
        super().__init__()
        self.deletions: list[tuple[dict[str, str], Any]] = []

    async def _delete(self, place: Place, query: dict[str, str], body: Any) -> web.Response:
        self.deletions.append((query, body))
        known = self.objects.get((place.group, place.plural, place.namespace, place.name))
        if known and known["metadata"]["uid"] != body["preconditions"]["uid"]:
            return web.Response(status=409, body=orjson.dumps({"message": "another UID"}))
        return await super()._delete(place, query, body)

    def reserved(self) -> list[dict[str, Any]]:
        return [raw for key, raw in self.objects.items() if key[1:3] == ("pods", "here")]

    async def change(self, pod: dict[str, Any], *, notes: dict[str, str], **status: str) -> None:
        meta = {**pod["metadata"], "annotations": {**pod["metadata"]["annotations"], **notes}}
        spec = {**pod["spec"], "nodeName": "n1"}
        path = f"{PODS}/{meta['name']}"
        await self.put(path, {**pod, "metadata": meta, "spec": spec, "status": status})


@pytest.fixture
async def server() -> AsyncIterator[ReservingApiServer]:
    api = ReservingApiServer()
    await api.up()
    await api.put_node("n1", mixed=True)
    yield api
    await api.down()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", **TEMPLATE}))
    return file


async def test_a_share_waits_for_its_card_gets_it_and_leaves_it_to_others_again(
    server: ReservingApiServer, tmp_path: Path, template: Path
) -> None:
    wish = {named.MEMORY: "10Gi"}
    pod = await server.put_pod(a_pod("p", annotations=wish))
    options: Any = {"reservation_pod": template, "reservation_idle_s": 1.0}
    async with a_process(server, tmp_path, **options) as (client, _):

        async def fits() -> bool:
            found = (await client.post("/pick", json=asked(pod, "n1"))).json()
            return bool(found["NodeNames"])

        async def reserves() -> bool:
            return len(server.reserved()) == 1

        async def lets_go() -> bool:
            return not server.reserved()

        assert not await fits()
        await until(reserves)
        (made,) = server.reserved()
        assert made["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        await server.change(made, notes={named.RESERVED_UUID: "GPU-n1-1"}, phase="Running")
        await until(fits)
        body = {"PodName": "p", "PodNamespace": "ns", "PodUID": "uid-p", "Node": "n1"}
        assert (await client.post("/bind", json=body)).json() == {"Error": ""}
        assert server.granted("p") == {named.GRANTED_UUIDS: "GPU-n1-1"}
        await server.remove("/api/v1/namespaces/ns/pods/p")
        await until(lets_go)
    ((query, body),) = server.deletions
    assert query == {"timeout": "5s"}
    assert body["preconditions"] == {"uid": made["metadata"]["uid"]}


async def test_without_a_pod_to_make_nothing_is_reserved_and_nothing_is_given(
    server: ReservingApiServer, tmp_path: Path
) -> None:
    pod = await server.put_pod(a_pod("p", annotations={named.COUNT: "1"}))
    async with a_process(server, tmp_path) as (client, _):
        found = (await client.post("/pick", json=asked(pod, "n1"))).json()
        assert found["FailedNodes"] == {"n1": "GPUs unhealthy, cordoned or not reserved"}
    assert server.reserved() == []


async def test_one_that_is_there_will_do_and_one_that_has_failed_is_cleared_away(
    server: ReservingApiServer, tmp_path: Path
) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        pods = KubernetesReservations(api, TEMPLATE, namespace="here")
        await pods.create("n1", 0)
        await pods.create("n1", 0)
        (made,) = server.reserved()
        await server.change(made, notes={}, phase="Failed", message="OutOfnvidia.com/gpu")
        with pytest.raises(Refused, match=r"OutOfnvidia\.com/gpu"):
            await pods.create("n1", 0)
        assert server.reserved() == []
        await pods.delete(name_of("n1", 0), "gone before")


async def test_a_later_pod_of_the_same_name_is_not_deleted(
    server: ReservingApiServer, tmp_path: Path
) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        pods = KubernetesReservations(api, TEMPLATE, namespace="here")
        await pods.create("n1", 0)
        with pytest.raises(Refused, match="another UID"):
            await pods.delete(name_of("n1", 0), "the former one")
    assert len(server.reserved()) == 1


def test_the_pod_is_pinned_by_affinity_and_tells_its_process_who_it_is() -> None:
    pod = reservation_pod(TEMPLATE, node="n1", number=3)
    assert "nodeName" not in pod["spec"]
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]
    (container,) = pod["spec"]["containers"]
    assert container["args"] == ["node-agent", "reserve"]
    assert {one["name"] for one in container["env"]} == {"POD_NAME", "POD_NAMESPACE", "POD_UID"}
    assert pod["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_the_template_keeps_what_it_says_and_is_not_changed() -> None:
    container = {
        "image": "tidegate", "command": ["hold"], "env": [{"name": "A", "value": "b"}],
        "resources": {"limits": {"memory": "128Mi"}},
    }  # fmt: skip
    spec = {"containers": [container], "priorityClassName": "high", "tolerations": []}
    template = {"metadata": {"labels": {"app": "x"}}, "spec": spec}
    before = orjson.dumps(template)
    pod = reservation_pod(template, node="n1", number=0)
    assert orjson.dumps(template) == before
    (made,) = pod["spec"]["containers"]
    assert made["resources"]["limits"] == {"memory": "128Mi", "nvidia.com/gpu": "1"}
    assert (made["command"], made.get("args"), made["env"][0]["name"]) == (["hold"], None, "A")
    assert pod["metadata"]["labels"]["app"] == "x"
    assert (pod["spec"]["priorityClassName"], pod["spec"]["tolerations"]) == ("high", [])


def test_names_are_told_apart_and_are_short_enough_for_any_node() -> None:
    nodes = ["n1", "n1.example", "x" * 250, "x" * 251]
    names = {name_of(node, number) for node in nodes for number in range(12)}
    assert len(names) == len(nodes) * 12
    assert max(map(len, names)) <= 253


def test_what_a_reservation_says_is_read_from_its_object() -> None:
    raw = {**reservation_pod(TEMPLATE, node="n1", number=3), "status": {"phase": "Pending"}}
    raw["metadata"] |= {"uid": "u", "namespace": "here"}
    assert pod_seen(raw).reservation == Reservation("n1", 3)
    assert pod_seen(raw).plugin == 1
    raw["spec"]["nodeName"] = "n1"
    raw["metadata"]["annotations"][named.RESERVED_UUID] = "GPU-1"
    assert pod_seen(raw).reservation == Reservation("n1", 3, "GPU-1")
    raw["status"]["phase"] = "Running"
    assert pod_seen(raw).reservation == Reservation("n1", 3, "GPU-1", holds=True)
    raw["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z"
    assert pod_seen(raw).reservation == Reservation("n1", 3, "GPU-1", ending=True)


def test_a_reservation_on_another_node_than_it_is_for_is_none() -> None:
    raw = reservation_pod(TEMPLATE, node="n1", number=3)
    raw["metadata"] |= {"uid": "u", "namespace": "here"}
    raw["spec"]["nodeName"] = "n2"
    assert pod_seen(raw).reservation is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "spec: {containers: []}",
        "spec: {containers: [{name: c}]}",
        "a: [",
        "spec: 1",
    ],
)
def test_a_template_that_is_no_pod_is_told_with_its_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"--reservation-pod .*pod\.yaml"):
        template_of(file)


def test_the_command_tells_what_is_wrong_with_its_options_and_exits_with_2(tmp_path: Path) -> None:
    wrong = ["--reservation-idle-s", "0", "--reservation-pod", str(tmp_path / "none.yaml")]
    result = CliRunner().invoke(command, wrong)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert [line.split()[2] for line in lines] == ["--reservation-idle-s", "--reservation-pod"]
