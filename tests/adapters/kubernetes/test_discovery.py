# SPDX-License-Identifier: Apache-2.0
"""EndpointSlices as the activator reads them, and the Lease by which it finds the leader."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.discovery import (
    OURS,
    KubernetesDiscovery,
    Service,
    found_in,
    parse_slice,
)
from autoscaler.adapters.kubernetes.election import Holder
from autoscaler.adapters.kubernetes.leader import (
    CHANNEL_ANNOTATION,
    channel_of,
    leading_controller,
)
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES, LEASES
from autoscaler.core.found import Found
from autoscaler.core.routes import Backend
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

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


@asynccontextmanager
async def discovering(api: KubeApi) -> AsyncIterator[tuple[KubernetesDiscovery, list[Service]]]:
    changes: list[Service] = []
    async with KubernetesDiscovery(api) as discovery:
        discovery.on_change = changes.append
        yield discovery, changes


def at(name: str, namespace: str = "ns") -> str:
    return ENDPOINT_SLICES.path(namespace, name)


async def test_endpoints_are_found_and_followed(server: FakeApiServer, api: KubeApi) -> None:
    await server.put(at("s"), a_slice("s", an_endpoint("10.0.0.1")))
    told: list[tuple[Found, ...] | None] = []
    async with KubernetesDiscovery(api) as discovery:
        discovery.on_change = lambda service: told.append(discovery.found(BACKEND))
        discovery.follow([BACKEND])
        one = Found("pod-1", "10.0.0.1", 8080)
        await until(lambda: told and told[-1] == (one,), "news of it")
        await server.put(at("s"), a_slice("s", an_endpoint("10.0.0.1", ready=False)))
        unready = Found("pod-1", "10.0.0.1", 8080, ready=False)
        await until(lambda: told[-1] == (unready,), "news of the change")
        await server.remove(at("s"))
        await until(lambda: told[-1] == (), "news of its end")


async def test_what_was_found_stays_while_the_api_server_is_away(
    server: FakeApiServer, api: KubeApi
) -> None:
    await server.put(at("s"), a_slice("s", an_endpoint("10.0.0.1")))
    async with discovering(api) as (discovery, _):
        discovery.follow([BACKEND])
        await until(lambda: discovery.found(BACKEND), "finding it")
        await server.until_watched()
        await server.down()
        assert discovery.found(BACKEND) == (Found("pod-1", "10.0.0.1", 8080),)
        await server.put(at("s"), a_slice("s", an_endpoint("10.0.0.2")))
        await server.up()
        moved = Found("pod-1", "10.0.0.2", 8080)
        await until(lambda: discovery.found(BACKEND) == (moved,), "what changed meanwhile")


async def test_before_the_first_list_nothing_is_known_and_then_that_there_is_nothing_is_told(
    server: FakeApiServer, api: KubeApi
) -> None:
    server.held.clear()
    async with discovering(api) as (discovery, changes):
        discovery.follow([BACKEND])
        await until(lambda: server.asked, "asking")
        assert discovery.found(BACKEND) is None
        server.held.set()
        await until(lambda: changes == [("ns", "m")], "news")
        assert discovery.found(BACKEND) == ()


async def test_only_namespaces_with_routes_are_watched(server: FakeApiServer, api: KubeApi) -> None:
    async with discovering(api) as (discovery, _):
        other = Backend("other", "m", "http")
        discovery.follow([BACKEND, other])
        await server.until_watched(2)
        discovery.follow([other])
        await until(lambda: server.watched == 1, "leaving one")
        assert discovery.found(BACKEND) is None
        assert discovery.found(other) == ()
        assert {path for _, path, _ in server.asked} == {
            ENDPOINT_SLICES.path("ns"),
            ENDPOINT_SLICES.path("other"),
        }


async def test_our_own_slices_are_not_even_asked_for(server: FakeApiServer, api: KubeApi) -> None:
    await server.put(at("ours"), a_slice("ours", an_endpoint("10.9.9.9"), managed_by=OURS))
    await server.put(at("s"), a_slice("s", an_endpoint("10.0.0.1")))
    async with discovering(api) as (discovery, _):
        discovery.follow([BACKEND])
        await until(lambda: discovery.found(BACKEND), "finding it")
        assert [found.host for found in discovery.found(BACKEND) or ()] == ["10.0.0.1"]
    (query,) = server.asked_for("list")
    assert query["labelSelector"].endswith("!=tidegate.dev")


async def test_a_service_that_nobody_routes_changes_in_silence(
    server: FakeApiServer, api: KubeApi
) -> None:
    async with discovering(api) as (discovery, changes):
        discovery.follow([BACKEND])
        await server.put(at("o"), a_slice("o", an_endpoint("10.0.0.7"), service="other"))
        await server.put(at("s"), a_slice("s", an_endpoint("10.0.0.1")))
        await until(lambda: discovery.found(BACKEND), "finding it")
        assert set(changes) == {("ns", "m")}


@pytest.mark.parametrize(
    ("identity", "channel", "address"),
    [
        ("controller-1", "10.0.0.5:8071", ("10.0.0.5", 8071)),
        ("controller-1", "[fd00::5]:8071", ("fd00::5", 8071)),
        ("", "10.0.0.5:8071", None),
        ("controller-1", "", None),
        ("controller-1", "10.0.0.5:http", None),
        ("controller-1", "10.0.0.5:70000", None),
    ],
)
def test_the_lease_says_where_its_holder_is(
    identity: str, channel: str, address: tuple[str, int] | None
) -> None:
    assert channel_of(Holder(identity, {CHANNEL_ANNOTATION: channel})) == address


async def test_the_leader_is_followed_from_place_to_place(
    server: FakeApiServer, api: KubeApi
) -> None:
    path = LEASES.path("ns", "tidegate-controller")
    async with (
        leading_controller(api, namespace="ns", lease="tidegate-controller") as leader,
        asyncio.timeout(15),
    ):
        await server.until_watched()
        moved = asyncio.create_task(leader.moves(None))
        await server.put(path, a_lease("controller-1", "10.0.0.5:8071"))
        await moved
        first = leader.address
        assert first == ("10.0.0.5", 8071)
        moved = asyncio.create_task(leader.moves(first))
        await server.put(path, a_lease("", "10.0.0.5:8071"))
        await until(lambda: leader.address is None, "the release")
        assert not moved.done()
        await server.put(path, a_lease("controller-2", "10.0.0.6:8071"))
        await moved
        assert leader.address == ("10.0.0.6", 8071)


def a_lease(holder: str, channel: str) -> dict[str, Any]:
    return {
        "metadata": {"annotations": {CHANNEL_ANNOTATION: channel}},
        "spec": {"holderIdentity": holder},
    }
