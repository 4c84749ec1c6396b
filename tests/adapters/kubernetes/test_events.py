# SPDX-License-Identifier: Apache-2.0
"""Events: said once, counted after that, and never in the way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.events import EventRecorder, Kind, ObjectRef, Rates
from autoscaler.adapters.kubernetes.resources import DEPLOYMENTS, EVENTS, NODES
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until
from tests.fakes import FakeClock

IRIS = ObjectRef(DEPLOYMENTS, "here", "iris", "uid-1")


def events(server: FakeApiServer) -> list[dict[str, Any]]:
    return [raw for (_, plural, *_), raw in server.objects.items() if plural == "events"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def recorder(api: KubeApi, clock: FakeClock) -> AsyncIterator[EventRecorder]:
    rates = Rates(burst=5, refill_s=30.0, queued=20)
    recorder = EventRecorder(api, instance="tidegate-0", rates=rates, now_s=clock.now_s)
    recorder.start()
    yield recorder
    await recorder.stop()


async def test_an_event_says_who_what_and_why(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    recorder.record(IRIS, reason="ScaledUp", message="1 -> 3: 40 waiting", kind=Kind.NORMAL)
    await until(lambda: events(server), "the event")
    (event,) = events(server)
    assert event["regarding"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "namespace": "here",
        "name": "iris",
        "uid": "uid-1",
    }
    assert (event["reason"], event["note"], event["type"]) == (
        "ScaledUp",
        "1 -> 3: 40 waiting",
        "Normal",
    )
    assert (event["reportingController"], event["reportingInstance"]) == (
        "tidegate-controller",
        "tidegate-0",
    )
    assert "series" not in event


async def test_the_same_again_is_counted(
    recorder: EventRecorder, server: FakeApiServer, clock: FakeClock
) -> None:
    recorder.record(IRIS, reason="Refused", message="an HPA is there", kind=Kind.WARNING)
    await until(lambda: events(server), "the event")
    for _ in range(2):
        recorder.record(IRIS, reason="Refused", message="an HPA is there", kind=Kind.WARNING)
    await until(lambda: events(server)[0].get("series", {}).get("count") == 3, "the count")
    assert len(events(server)) == 1
    clock.at_s += 601.0
    recorder.record(IRIS, reason="Refused", message="an HPA is there", kind=Kind.WARNING)
    await until(lambda: len(events(server)) == 2, "a new one, for it is a new story")


async def test_what_was_said_while_the_first_was_under_way_is_not_lost(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    for _ in range(4):
        recorder.record(IRIS, reason="Refused", message="an HPA is there")
    await until(lambda: events(server), "the event")
    assert events(server)[0]["series"]["count"] == 4


async def test_one_object_cannot_flood_the_api(
    recorder: EventRecorder, server: FakeApiServer, clock: FakeClock
) -> None:
    for n in range(9):
        recorder.record(IRIS, reason="ScaledUp", message=f"to {n}")
    other = ObjectRef(DEPLOYMENTS, "here", "other")
    recorder.record(other, reason="ScaledUp", message="to 1")
    await until(lambda: len(events(server)) == 6, "five of one, one of the other")
    assert recorder.dropped == 4
    clock.at_s += 30.0
    recorder.record(IRIS, reason="ScaledUp", message="to 10")
    await until(lambda: len(events(server)) == 7, "one more, later")


async def test_an_event_that_was_deleted_is_written_anew(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    recorder.record(IRIS, reason="Asleep", message="idle")
    await until(lambda: events(server), "the event")
    await server.remove(EVENTS.path("here", events(server)[0]["metadata"]["name"]))
    recorder.record(IRIS, reason="Asleep", message="idle")
    await until(lambda: events(server), "another")


async def test_an_event_waits_for_a_server_that_is_away(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    await server.down()
    recorder.record(IRIS, reason="Asleep", message="idle")
    await server.up()
    await until(lambda: events(server), "the event")


async def test_more_than_fits_is_dropped_and_counted(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    """Whoever records never waits, whatever the API server does."""
    server.held.clear()
    for n in range(100):
        recorder.record(ObjectRef(DEPLOYMENTS, "here", f"d{n}"), reason="Asleep", message="idle")
    assert recorder.dropped == 80
    server.held.set()
    await until(lambda: len(events(server)) == 20, "those that fitted")


async def test_an_event_that_may_not_be_written_harms_nobody(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    server.fail(403, verb="create")
    recorder.record(IRIS, reason="Asleep", message="not allowed")
    recorder.record(IRIS, reason="Asleep", message="allowed")
    await until(lambda: events(server), "the other event")
    assert events(server)[0]["note"] == "allowed"


async def test_a_long_message_is_cut_within_the_limit(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    recorder.record(IRIS, reason="Refused", message="ü" * 1000)
    await until(lambda: events(server), "the event")
    note = events(server)[0]["note"]
    assert note.endswith("ü…")
    assert len(note.encode()) <= 1024


async def test_events_on_what_has_no_namespace_are_in_default(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    recorder.record(ObjectRef(NODES, "", "n1"), reason="Full", message="no GPU left")
    await until(lambda: events(server), "the event")
    assert events(server)[0]["metadata"]["namespace"] == "default"


async def test_stopping_writes_what_is_waiting(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    recorder.record(IRIS, reason="Stopping", message="handing over")
    await recorder.stop()
    assert len(events(server)) == 1


async def test_stopping_does_not_wait_for_a_server_that_is_away(
    recorder: EventRecorder, server: FakeApiServer
) -> None:
    await server.down()
    recorder.record(IRIS, reason="Stopping", message="handing over")
    async with asyncio.timeout(2):
        await recorder.stop(within_s=0.05)
    await server.up()
