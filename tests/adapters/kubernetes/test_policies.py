# SPDX-License-Identifier: Apache-2.0
"""Policies that live in a ConfigMap: read with the object, followed, and never half applied."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from autoscaler.adapters.kubernetes import policies as module
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.policies import Owner, Policies
from autoscaler.adapters.kubernetes.resources import CONFIG_MAPS
from autoscaler.manifests import Wanted
from tests.adapters.kubernetes.fake_api_server import FakeApiServer, Raw
from tests.adapters.kubernetes.waiting import until

OWNER = ("deployments", "shop", "iris")
PATH = CONFIG_MAPS.path("shop", "relaxed")


def a_deployment(**ours: str) -> Raw:
    keys = ours or {"enabled": "true", "policy-from": "relaxed"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "shop",
            "name": "iris",
            "annotations": {f"tidegate.dev/{key}": value for key, value in keys.items()},
        },
    }


def most(wanted: tuple[Wanted, ...]) -> int | None:
    """The largest count that is permitted; None: there is no policy."""
    policy = wanted[0].policy
    return None if policy is None else policy.max_replicas


@pytest.fixture
def told() -> dict[Owner, tuple[Wanted, ...]]:
    return {}


@pytest.fixture
async def policies(
    api: KubeApi, told: dict[Owner, tuple[Wanted, ...]], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Policies]:
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    policies = Policies(api, on_change=told.__setitem__)
    running = asyncio.create_task(policies.run())
    yield policies
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def is_told(told: dict[Owner, tuple[Wanted, ...]], count: int | None) -> Callable[[], bool]:
    return lambda: OWNER in told and most(told[OWNER]) == count


async def test_a_policy_is_read_from_its_config_map_and_followed(
    policies: Policies, server: FakeApiServer, told: dict[Owner, tuple[Wanted, ...]]
) -> None:
    """While it is unread there is neither policy nor problem, so that nothing is said of it."""
    await server.put(PATH, {"data": {"max-replicas": "4"}})
    (first,) = policies.wanted(a_deployment(), plural="deployments")
    assert (first.policy, first.problems, first.policy_from) == (None, (), "relaxed")
    await policies.wait_read()
    assert most(told[OWNER]) == 4
    await server.put(PATH, {"data": {"max-replicas": "5"}})
    await until(is_told(told, 5), "the new content")
    assert most(policies.wanted(a_deployment(), plural="deployments")) == 5


async def test_a_config_map_that_is_missing_or_wrong_is_a_problem(
    policies: Policies, server: FakeApiServer, told: dict[Owner, tuple[Wanted, ...]]
) -> None:
    policies.wanted(a_deployment(), plural="deployments")
    await policies.wait_read()
    assert "there is no ConfigMap 'relaxed'" in str(told[OWNER][0].problems[0])
    await server.put(PATH, {"data": {"max-replicas": "4"}})
    await until(is_told(told, 4), "the ConfigMap")
    await server.put(PATH, {"data": {"max-replica": "4"}})
    await until(is_told(told, None), "what is wrong with it")
    assert "max-replicas" in str(told[OWNER][0].problems[0])


async def test_what_was_read_stays_while_the_api_server_cannot_be_asked(
    policies: Policies, server: FakeApiServer, told: dict[Owner, tuple[Wanted, ...]]
) -> None:
    await server.put(PATH, {"data": {"max-replicas": "4"}})
    server.fail(500, times=3, verb="get")
    policies.wanted(a_deployment(), plural="deployments")
    await policies.wait_read()
    server.fail(500, times=100, verb="get")
    asked = len(server.asked_for("get"))
    await until(lambda: len(server.asked_for("get")) > asked + 3, "it is asked again")
    assert most(policies.wanted(a_deployment(), plural="deployments")) == 4
    assert most(told[OWNER]) == 4


async def test_only_config_maps_that_somebody_names_are_asked_for(
    policies: Policies, server: FakeApiServer
) -> None:
    policies.wanted(a_deployment(enabled="true"), plural="deployments")
    await policies.wait_read()
    assert server.asked_for("get") == []
    policies.wanted(a_deployment(), plural="deployments")
    await policies.wait_read()
    changed = {"enabled": "true", "policy-from": "other"}
    policies.wanted(a_deployment(**changed), plural="deployments")
    await policies.wait_read()
    before = len(server.asked)
    await until(lambda: len(server.asked) >= before + 3, "three more rounds")
    assert {path for _, path, _ in server.asked[before:]} == {CONFIG_MAPS.path("shop", "other")}
    policies.forget(OWNER)
