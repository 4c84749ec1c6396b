# SPDX-License-Identifier: Apache-2.0
"""Whose a count is: ours, somebody else's, or an earlier leader's."""

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.cluster import HANDED_OVER_S, KubernetesCluster
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.objects import Workload, workload
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS
from autoscaler.core.signals import ServiceId
from autoscaler.core.zero import SWITCHED_OFF
from autoscaler.ports import ServiceView
from tests.adapters.kubernetes.fake_api_server import FakeApiServer, Raw
from tests.fakes import FakeClock

IRIS = ServiceId("shop", "iris")


def a_deployment(replicas: int, *, version: int = 1, status: str = "", **ours: str) -> Raw:
    keys = {"enabled": "true", "max-replicas": "5", "status": status, **ours}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "shop",
            "name": "iris",
            "uid": "u",
            "resourceVersion": str(version),
            "annotations": {f"tidegate.dev/{key}": value for key, value in keys.items()},
        },
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "iris"}}},
    }


class Watched:
    """A cluster of one Deployment, with what its watch tells."""

    def __init__(self, api: KubeApi, server: FakeApiServer) -> None:
        self.clock = FakeClock()
        self.cluster = KubernetesCluster(api, Inventory(), clock=self.clock)
        self.cluster.synced = lambda: True
        self.cluster.scales(DEPLOYMENTS)
        self._server = server
        self._seen: Workload | None = None

    async def shows(self, raw: Raw) -> ServiceView:
        before, self._seen = self._seen, workload(raw, plural="deployments")
        self.cluster.workload_changed(before, self._seen)
        return (await self.cluster.services())[IRIS]

    async def settled(self, raw: Raw) -> ServiceView:
        """The first look, and the time that an earlier leader's last write may take to be seen."""
        view = await self.shows(raw)
        self.clock.at_s += HANDED_OVER_S
        return view

    async def scale(self, replicas: int, *, from_: int) -> int:
        """Write a count; returns the version that it made."""
        path = DEPLOYMENTS.path("shop", "iris", "scale")
        await self._server.put(path, {"spec": {"replicas": from_}})
        view = (await self.cluster.services())[IRIS]
        refused = await self.cluster.scale(IRIS, replicas, generation=view.generation)
        assert refused is None, refused
        return self._server.version


@pytest.fixture
def watched(api: KubeApi, server: FakeApiServer) -> Watched:
    return Watched(api, server)


@pytest.mark.parametrize("count", [0, 2])
async def test_a_count_that_we_did_not_write_is_somebody_elses(
    watched: Watched, count: int
) -> None:
    await watched.settled(a_deployment(1))
    view = await watched.shows(a_deployment(count, version=2))
    assert (view.scale, view.written_by) == (count, "somebody else")


async def test_our_own_zero_is_ours_however_late_the_watch_shows_it(watched: Watched) -> None:
    """An older state that comes in between, by an edited annotation, is not a new one."""
    await watched.settled(a_deployment(1))
    version = await watched.scale(0, from_=1)
    view = await watched.shows(a_deployment(1, version=version - 1, slots="4"))
    assert (view.scale, view.written_by) == (0, "")
    view = await watched.shows(a_deployment(0, version=version, slots="4"))
    assert (view.scale, view.written_by) == (0, "")
    view = await watched.shows(a_deployment(1, version=version + 1, slots="4"))
    assert view.written_by == "somebody else"
    view = await watched.shows(a_deployment(0, version=version + 2, slots="4"))
    assert view.written_by == "somebody else"


async def test_a_zero_whose_answer_was_lost_is_ours(
    watched: Watched, server: FakeApiServer
) -> None:
    """The API server failed after it had written: nobody switched the service off."""
    await watched.settled(a_deployment(1))
    server.fail(500, verb="patch")
    with pytest.raises(AssertionError, match="500"):
        await watched.scale(0, from_=1)
    view = await watched.shows(a_deployment(0, version=2))
    assert (view.scale, view.written_by) == (0, "")


async def test_a_new_leader_knows_what_was_switched_off_by_the_status_line(
    watched: Watched,
) -> None:
    view = await watched.shows(a_deployment(0, status=f"asleep: 0 replicas; {SWITCHED_OFF}"))
    assert view.written_by == "somebody else"


async def test_a_new_leader_takes_no_late_news_for_a_person(watched: Watched) -> None:
    """What an earlier leader wrote last may reach the watch after the first look."""
    await watched.shows(a_deployment(1))
    view = await watched.shows(a_deployment(0, version=2))
    assert (view.scale, view.written_by) == (0, "")
