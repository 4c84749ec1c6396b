# SPDX-License-Identifier: Apache-2.0
"""EndpointSlices as the activator reads them, and the Lease by which it finds the leader."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, cast

import orjson
import pytest

from autoscaler.adapters.kubernetes.api import KubeApi, Page, Params
from autoscaler.adapters.kubernetes.discovery import (
    KubernetesDiscovery,
    Service,
    found_in,
    parse_slice,
)
from autoscaler.adapters.kubernetes.leader import leading_controller, parse_address
from autoscaler.core.found import Found
from autoscaler.core.routes import Backend

BACKEND = Backend("ns", "m", "http")


def a_slice(
    name: str,
    *endpoints: dict[str, Any],
    service: str = "m",
    port: int = 8080,
    family: str = "IPv4",
    managed_by: str = "endpointslice-controller.k8s.io",
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "resourceVersion": "1",
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": managed_by,
            },
        },
        "addressType": family,
        "ports": [
            {"name": "http", "port": port, "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ],
        "endpoints": list(endpoints),
    }


def an_endpoint(address: str, pod: str = "pod-1", **conditions: bool | None) -> dict[str, Any]:
    target = {"targetRef": {"kind": "Pod", "name": pod, "namespace": "ns"}} if pod else {}
    return {"addresses": [address], "conditions": conditions, **target}


def found(*raw: dict[str, Any], port_name: str = "http") -> tuple[Found, ...]:
    slices = [parsed for each in raw if (parsed := parse_slice(each)) is not None]
    return found_in(slices, port_name)


@pytest.mark.parametrize(
    ("conditions", "ready", "terminating"),
    [
        pytest.param({"ready": True, "serving": True, "terminating": False}, True, False, id="up"),
        pytest.param({"ready": False, "serving": False}, False, False, id="not ready"),
        pytest.param({"ready": False, "serving": True, "terminating": True}, False, True, id="end"),
        pytest.param({}, True, False, id="what is left open counts as ready"),
        pytest.param({"ready": None, "terminating": None}, True, False, id="also as null"),
    ],
)
def test_conditions_say_ready_or_terminating(
    conditions: dict[str, Any], ready: bool, terminating: bool
) -> None:
    (one,) = found(a_slice("s", an_endpoint("10.0.0.1", **conditions)))
    assert (one.ready, one.terminating) == (ready, terminating)


def test_an_endpoint_is_called_by_its_pod_and_else_by_its_address() -> None:
    ids = [f.id for f in found(a_slice("s", an_endpoint("10.0.0.1"), an_endpoint("10.0.0.2", "")))]
    assert ids == ["10.0.0.2", "pod-1"]


def test_each_slice_has_a_port_number_of_its_own() -> None:
    one = a_slice("s1", an_endpoint("10.0.0.1", "pod-1"), port=8080)
    two = a_slice("s2", an_endpoint("10.0.0.2", "pod-2"), port=9090)
    assert [(f.host, f.port) for f in found(one, two)] == [("10.0.0.1", 8080), ("10.0.0.2", 9090)]


def test_a_slice_without_the_port_and_ports_of_other_protocols_are_passed_over() -> None:
    assert found(a_slice("s", an_endpoint("10.0.0.1")), port_name="grpc") == ()
    assert found(a_slice("s", an_endpoint("10.0.0.1")), port_name="dns") == ()


def test_a_port_without_a_name_is_found_by_the_empty_one() -> None:
    raw = a_slice("s", an_endpoint("10.0.0.1"))
    del raw["ports"][0]["name"]
    assert [f.port for f in found(raw, port_name="")] == [8080]


def test_of_two_families_the_ipv4_address_counts_and_ipv6_alone_will_do() -> None:
    six = a_slice("s6", an_endpoint("fd00::1"), family="IPv6")
    four = a_slice("s4", an_endpoint("10.0.0.1"))
    assert [f.host for f in found(six, four)] == ["10.0.0.1"]
    assert [f.host for f in found(six)] == ["fd00::1"]


def test_of_an_endpoint_in_two_slices_the_ready_one_counts() -> None:
    stale = a_slice("s1", an_endpoint("10.0.0.1", ready=False))
    fresh = a_slice("s2", an_endpoint("10.0.0.1", ready=True))
    assert [f.ready for f in found(stale, fresh)] == [True]
    assert [f.ready for f in found(fresh, stale)] == [True]


def test_slices_that_list_activators_are_never_followed() -> None:
    assert parse_slice(a_slice("s", an_endpoint("10.0.0.9"), managed_by="tidegate.dev")) is None


def test_names_are_no_addresses() -> None:
    assert parse_slice(a_slice("s", an_endpoint("example.org"), family="FQDN")) is None


def test_a_slice_without_endpoints_or_ports_is_an_empty_one() -> None:
    raw = a_slice("s") | {"endpoints": None, "ports": None}
    assert found(raw) == ()


class PlayedApi:
    """An API server as far as informers ask: lists by namespace, and one stream of events each."""

    def __init__(self) -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.watching: dict[str, asyncio.Queue[bytes]] = {}
        self.open = asyncio.Event()
        self.open.set()

    async def pages(self, path: str, params: Params | None = None) -> AsyncGenerator[Page, None]:
        self.asked.append((path, dict(params or {})))
        await self.open.wait()
        yield Page(self.lists.get(path.split("/")[5], []), "1")

    async def watch(self, path: str, params: Params | None = None) -> AsyncGenerator[bytes, None]:
        queue = self.watching[path.split("/")[5]] = asyncio.Queue()
        yield b""
        try:
            while True:
                yield await queue.get()
        finally:
            del self.watching[path.split("/")[5]]

    def say(self, kind: str, raw: dict[str, Any], namespace: str = "ns") -> None:
        self.watching[namespace].put_nowait(orjson.dumps({"type": kind, "object": raw}))


async def until(condition: Any) -> None:
    end_s = monotonic() + 10.0
    while not condition():
        assert monotonic() < end_s, "it did not come about"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def discovering(api: PlayedApi) -> AsyncIterator[tuple[KubernetesDiscovery, list[Service]]]:
    changes: list[Service] = []
    async with KubernetesDiscovery(cast(KubeApi, api)) as discovery:
        discovery.on_change = changes.append
        yield discovery, changes


async def test_endpoints_are_found_and_followed() -> None:
    api = PlayedApi()
    api.lists["ns"] = [a_slice("s", an_endpoint("10.0.0.1"))]
    async with discovering(api) as (discovery, changes):
        discovery.follow([BACKEND])
        await until(lambda: discovery.found(BACKEND) == (Found("pod-1", "10.0.0.1", 8080),))
        await until(lambda: api.watching)
        changes.clear()
        api.say("MODIFIED", a_slice("s", an_endpoint("10.0.0.1", ready=False)))
        await until(lambda: changes == [("ns", "m")])
        assert discovery.found(BACKEND) == (Found("pod-1", "10.0.0.1", 8080, ready=False),)
        api.say("DELETED", a_slice("s"))
        await until(lambda: discovery.found(BACKEND) == ())


async def test_before_the_first_list_nothing_is_known_and_then_that_there_is_nothing_is_told() -> (
    None
):
    api = PlayedApi()
    api.open.clear()
    async with discovering(api) as (discovery, changes):
        discovery.follow([BACKEND])
        await until(lambda: api.asked)
        assert discovery.found(BACKEND) is None
        api.open.set()
        await until(lambda: changes == [("ns", "m")])
        assert discovery.found(BACKEND) == ()


async def test_only_namespaces_with_routes_are_watched_and_our_own_slices_not_asked_for() -> None:
    api = PlayedApi()
    async with discovering(api) as (discovery, _):
        other = Backend("other", "m", "http")
        discovery.follow([BACKEND, other])
        await until(lambda: set(api.watching) == {"ns", "other"})
        discovery.follow([other])
        await until(lambda: set(api.watching) == {"other"})
        assert discovery.found(BACKEND) is None
        assert len(api.asked) == 2, "what goes on is not listed anew"
        assert all(
            asked["labelSelector"].endswith("endpointslice.kubernetes.io/managed-by!=tidegate.dev")
            for _, asked in api.asked
        )


async def test_a_service_that_nobody_routes_changes_in_silence() -> None:
    api = PlayedApi()
    async with discovering(api) as (discovery, changes):
        discovery.follow([BACKEND])
        await until(lambda: api.watching)
        changes.clear()
        api.say("ADDED", a_slice("other", an_endpoint("10.0.0.7"), service="other"))
        api.say("ADDED", a_slice("s", an_endpoint("10.0.0.1")))
        await until(lambda: changes)
        assert changes == [("ns", "m")]


def a_lease(holder: str = "controller-1", channel: str = "10.0.0.5:8071") -> dict[str, Any]:
    return {
        "metadata": {
            "name": "tidegate-controller",
            "namespace": "ns",
            "resourceVersion": "1",
            "annotations": {"tidegate.dev/channel": channel},
        },
        "spec": {"holderIdentity": holder},
    }


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        (a_lease(), ("10.0.0.5", 8071)),
        (a_lease(channel="[fd00::5]:8071"), ("fd00::5", 8071)),
        (a_lease(holder=""), None),
        (a_lease(channel=""), None),
        (a_lease(channel="10.0.0.5:http"), None),
        ({"metadata": {"name": "x"}}, None),
    ],
)
def test_the_lease_says_where_its_holder_is(
    raw: dict[str, Any], address: tuple[str, int] | None
) -> None:
    assert parse_address(raw) == address


async def test_the_leader_is_followed_from_place_to_place() -> None:
    api = PlayedApi()
    async with leading_controller(
        cast(KubeApi, api), namespace="ns", lease="tidegate-controller"
    ) as leader:
        await until(lambda: api.watching)
        assert api.asked[0][1]["fieldSelector"] == "metadata.name=tidegate-controller"
        moved = asyncio.create_task(leader.moves(None))
        await asyncio.sleep(0)
        assert not moved.done()
        api.say("ADDED", a_lease())
        async with asyncio.timeout(10):
            await moved
        assert leader.address == ("10.0.0.5", 8071)
        moved = asyncio.create_task(leader.moves(leader.address))
        api.say("MODIFIED", a_lease(holder=""))
        await until(lambda: leader.address is None)
        assert not moved.done()
        api.say("MODIFIED", a_lease("controller-2", "10.0.0.6:8071"))
        async with asyncio.timeout(10):
            await moved
        assert leader.address == ("10.0.0.6", 8071)
