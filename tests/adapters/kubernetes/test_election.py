# SPDX-License-Identifier: Apache-2.0
"""Who leads, and that two never do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.election import (
    Holder,
    LeaderElection,
    LeaseHolder,
    LeaseTiming,
)
from autoscaler.adapters.kubernetes.resources import LEASES
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

QUICK = LeaseTiming(lease_s=2.0, renew_deadline_s=1.5, retry_s=0.05)
CHANNEL = "tidegate.dev/channel"
Candidate = Callable[..., LeaderElection]


@pytest.fixture
async def candidate(api: KubeApi) -> AsyncIterator[Candidate]:
    """Makes candidates for one Lease; all end with the test."""
    async with AsyncExitStack() as ends:

        def make(identity: str, **more: Any) -> LeaderElection:
            election = LeaderElection(
                api,
                namespace="here",
                name="tidegate",
                identity=identity,
                annotations={CHANNEL: f"{identity}:8071"},
                **{"timing": QUICK, **more},
            )
            ends.push_async_callback(election.stop)
            election.start()
            return election

        yield make


def lease(server: FakeApiServer) -> dict[str, Any]:
    return server.objects["coordination.k8s.io", "leases", "here", "tidegate"]


async def test_the_first_leads_and_says_where_it_is(
    candidate: Candidate, server: FakeApiServer
) -> None:
    first = candidate("one")
    await until(lambda: first.leading, "the first to lead")
    spec = lease(server)["spec"]
    assert spec["holderIdentity"] == "one"
    assert spec["leaseDurationSeconds"] == 2
    assert spec["leaseTransitions"] == 0
    assert spec["renewTime"].endswith("Z")
    assert len(spec["renewTime"]) == len("2026-01-01T00:00:00.000000Z")
    assert lease(server)["metadata"]["annotations"] == {CHANNEL: "one:8071"}


async def test_a_second_waits_while_the_first_renews(
    candidate: Candidate, server: FakeApiServer
) -> None:
    """For longer than a lease lasts, one leads and the other does not."""
    first = candidate("one")
    await until(lambda: first.leading, "the first to lead")
    second = candidate("two")
    renewals = len(server.asked_for("update"))
    await until(
        lambda: len(server.asked_for("update")) > renewals + 45, "a lease's time of renewals"
    )
    assert first.leading
    assert not second.leading
    assert second.holder == Holder("one", {CHANNEL: "one:8071"})


async def test_a_leader_that_stops_hands_over_at_once(
    candidate: Candidate, server: FakeApiServer
) -> None:
    """Nobody waits for the lease to run out, nor for the next look at it."""
    patient = LeaseTiming(lease_s=3600.0, renew_deadline_s=1800.0, retry_s=600.0)
    first = candidate("one", timing=patient)
    await until(lambda: first.leading, "the first to lead")
    second = candidate("two", timing=patient)
    await until(lambda: second.holder.identity == "one", "the second to know the first")
    await first.stop()
    await until(lambda: second.leading, "the second to lead")
    assert not first.leading
    assert lease(server)["spec"]["leaseTransitions"] >= 1
    assert lease(server)["metadata"]["annotations"] == {CHANNEL: "two:8071"}


async def test_a_leader_that_vanished_is_replaced_once_its_lease_ran_out(
    candidate: Candidate, server: FakeApiServer
) -> None:
    """Its clock does not matter: the lease is dated a day ahead."""
    await server.put(
        LEASES.path("here", "tidegate"),
        {
            "spec": {
                "holderIdentity": "gone",
                "leaseDurationSeconds": 1,
                "renewTime": "2999-01-01T00:00:00.000000Z",
                "leaseTransitions": 4,
            }
        },
    )
    second = candidate("two")
    await until(lambda: len(server.asked_for("get")) > 3, "some looks at it")
    assert not second.leading
    await until(lambda: second.leading, "the second to lead")
    assert lease(server)["spec"]["leaseTransitions"] == 5
    assert not second.handed_over


async def test_a_leader_that_cannot_renew_stops_before_its_lease_ends(
    candidate: Candidate, server: FakeApiServer
) -> None:
    """It stops acting while the Lease still names it, and leads again once it can renew."""
    told: list[str] = []

    async def started() -> None:
        told.append("start")

    async def stopped() -> None:
        told.append(f"stop, leading: {first.leading}")

    first = candidate("one", on_start=started, on_stop=stopped)
    await until(lambda: told == ["start"], "the start")
    server.held.clear()
    await until(lambda: not first.leading, "the end of leading")
    assert lease(server)["spec"]["holderIdentity"] == "one"
    await until(lambda: len(told) == 2, "the stop")
    assert told[1] == "stop, leading: False"
    server.held.set()
    await until(lambda: told[2:] == ["start"], "leading again")


async def test_a_process_that_slept_does_not_think_it_leads(api: KubeApi) -> None:
    """Right after a long pause, before anything else ran, it knows that its time is over."""
    now_s = 0.0
    election = LeaderElection(
        api, namespace="here", name="tidegate", identity="one", now_s=lambda: now_s
    )
    election.start()
    await until(lambda: election.leading, "it to lead")
    now_s = 10.0
    assert not election.leading
    await election.stop()


async def test_of_many_that_come_together_one_leads(candidate: Candidate) -> None:
    all_of_them = [candidate(f"candidate-{n}") for n in range(8)]
    await until(lambda: any(each.leading for each in all_of_them), "one to lead")
    for _ in range(50):
        await asyncio.sleep(0)
        assert sum(each.leading for each in all_of_them) == 1


async def test_on_stop_is_over_before_the_lease_is_released(
    candidate: Candidate, server: FakeApiServer
) -> None:
    seen: list[str] = []

    async def stopped() -> None:
        await asyncio.sleep(0)
        seen.append(lease(server)["spec"]["holderIdentity"])

    first = candidate("one", on_stop=stopped)
    await until(lambda: first.leading, "the first to lead")
    await first.stop()
    assert seen == ["one"]
    assert lease(server)["spec"]["holderIdentity"] == ""
    assert CHANNEL not in lease(server)["metadata"]["annotations"]


async def test_others_annotations_on_the_lease_stay(
    candidate: Candidate, server: FakeApiServer
) -> None:
    """And a change by somebody else costs one renewal, not the lead."""
    first = candidate("one")
    await until(lambda: first.leading, "the first to lead")
    mine = lease(server)
    await server.put(
        LEASES.path("here", "tidegate"),
        {**mine, "metadata": {**mine["metadata"], "annotations": {CHANNEL: "one:8071", "a": "b"}}},
    )
    renewals = len(server.asked_for("update"))
    await until(lambda: len(server.asked_for("update")) > renewals + 3, "some renewals")
    assert first.leading
    assert lease(server)["metadata"]["annotations"] == {CHANNEL: "one:8071", "a": "b"}


async def test_who_cannot_start_does_not_keep_the_lead(
    candidate: Candidate, server: FakeApiServer
) -> None:
    async def fails() -> None:
        raise RuntimeError("no memory of what was learned")

    first = candidate("one", on_start=fails)
    with pytest.raises(RuntimeError, match="no memory"):
        await first.start()
    assert lease(server)["spec"]["holderIdentity"] == ""
    with pytest.raises(RuntimeError):
        await first.stop()


async def test_a_follower_is_told_of_each_leader_but_not_of_renewals(
    candidate: Candidate, api: KubeApi, server: FakeApiServer
) -> None:
    told: list[Holder] = []
    watched = LeaseHolder(api, "here", "tidegate", on_change=told.append)
    watched.start()
    await watched.wait_synced()
    first = candidate("one")
    await until(lambda: first.leading, "the first to lead")
    await until(lambda: len(server.asked_for("update")) > 3, "some renewals")
    await first.stop()
    await until(lambda: len(told) == 2, "both changes")
    assert told == [Holder("one", {CHANNEL: "one:8071"}), Holder()]
    assert watched.holder == Holder()
    await watched.stop()
