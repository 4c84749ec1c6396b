# SPDX-License-Identifier: Apache-2.0
"""The controller's probe, and how clients move off an activator that is out of their path."""

import asyncio
from time import monotonic

import pytest

from autoscaler.activator.desk import IDLE_PARTING_S
from tests.activator.peers import Front, Line, Message, Peers, get, ok, post, until

PROBE = "X-Tidegate-Probe: 1\r\n"


@pytest.fixture
def named(front: Front) -> Front:
    front.shared.name = "activator-7"
    return front


async def test_a_probe_is_answered_by_the_activator_and_never_held_or_counted(
    named: Front, peers: Peers
) -> None:
    client = await peers.client(named, get("/v1/models/m:predict", PROBE))
    answer = await client.message()
    assert (answer.status, answer.get("x-tidegate-activator")) == (200, "activator-7")
    assert answer.get("x-tidegate-service") == "m"
    await client.closed()
    assert named.demand().requests_total == 0
    assert not named.waits


@pytest.mark.parametrize("header", ["x-tidegate-probe: 1\r\n", "X-TIDEGATE-PROBE:1\r\n"])
async def test_a_probe_is_never_forwarded(named: Front, peers: Peers, header: str) -> None:
    replica = await peers.replica()
    named.follow(replica.endpoint())
    answer = await (await peers.client(named, get("/x", header))).message()
    assert answer.get("x-tidegate-activator") == "activator-7"
    assert not replica.requests


async def test_a_probe_after_other_requests_on_one_connection_is_seen(
    named: Front, peers: Peers
) -> None:
    """A head that resembles the one before is not parsed again; this one must be."""
    replica = await peers.replica()
    named.follow(replica.endpoint())
    client = await peers.client(named, get("/x", "X-Tidegate-Other: 1\r\n"))
    await client.message()
    client.send(get("/x", PROBE))
    assert (await client.message()).get("x-tidegate-activator") == "activator-7"
    assert len(replica.requests) == 1


async def test_a_value_that_names_the_probe_is_no_probe(named: Front, peers: Peers) -> None:
    replica = await peers.replica()
    named.follow(replica.endpoint())
    client = await peers.client(named, get("/x", "X-Note: x-tidegate-probe: 1\r\n"))
    assert (await client.message()).get("x-tidegate-activator") is None
    assert len(replica.requests) == 1


@pytest.mark.parametrize("when", ["the queue is full", "it drains", "it is out of the path"])
async def test_a_probe_is_answered_in_every_state(named: Front, peers: Peers, when: str) -> None:
    if when == "the queue is full":
        named.follow(hold_limit=0)
    elif when == "it drains":
        named.shared.draining = True
    else:
        named.follow(in_path=False)
    answer = await (await peers.client(named, get("/", PROBE))).message()
    assert (answer.status, answer.get("x-tidegate-activator")) == (200, "activator-7")


async def test_out_of_the_path_every_answer_ends_its_connection_and_none_is_refused(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    before = await peers.client(front, get())
    assert (await before.message()).get("connection") is None
    front.follow(replica.endpoint(), in_path=False)
    new = await peers.client(front, get())
    before.send(get())
    for client in (before, new):
        answer = await client.message()
        assert (answer.status, answer.get("connection")) == (200, "close")
        await client.closed()


async def test_out_of_the_path_requests_are_still_held_for_a_replica(
    front: Front, peers: Peers
) -> None:
    front.follow(in_path=False)
    client = await peers.client(front, post(b"late"))
    await front.holds(1)
    replica = await peers.replica()
    front.follow(replica.endpoint())
    answer = await client.message()
    assert (answer.body, answer.get("connection")) == (b"late", "close")


async def test_an_answer_that_had_begun_does_not_end_its_connection_unannounced(
    front: Front, peers: Peers
) -> None:
    """A client that was not told to close may be sending its next request already."""
    go = asyncio.Event()

    async def in_two_parts(request: Message, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await go.wait()
        line.send(b"cd")

    replica = await peers.replica(in_two_parts)
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    await client.head()
    front.follow(replica.endpoint(), in_path=False)
    go.set()
    assert await client.exactly(4) == b"abcd"
    client.send(get())
    assert (await client.message()).get("connection") == "close"


async def test_back_in_the_path_connections_stay_again(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint(), in_path=False)
    client = await peers.client(front)
    await until(lambda: front.desk.clients)
    front.follow(replica.endpoint(), in_path=True)
    for _ in range(2):
        client.send(get())
        assert (await client.message()).get("connection") is None


async def test_idle_connections_are_closed_last_and_busy_ones_are_not(
    front: Front, peers: Peers
) -> None:
    go = asyncio.Event()

    async def slowly(request: Message, line: Line) -> None:
        await go.wait()
        line.send(ok())

    replica = await peers.replica(slowly)
    front.follow(replica.endpoint())
    idle, busy, begun = [await peers.client(front) for _ in range(3)]
    busy.send(get())
    begun.send(b"GET / HT")
    await front.flies(1)
    await until(lambda: any(client._buffer for client in front.desk.clients))
    front.follow(replica.endpoint(), in_path=False)
    now_s = monotonic()
    front.desk.tick(now_s + IDLE_PARTING_S * 0.9)
    await asyncio.sleep(0)
    assert not any(client.transport.is_closing() for client in front.desk.clients)
    front.desk.tick(now_s + IDLE_PARTING_S * 1.1)
    await idle.closed()
    go.set()
    begun.send(b"TP/1.1\r\nHost: m\r\n\r\n")
    for client in (busy, begun):
        answer = await client.message()
        assert (answer.status, answer.get("connection")) == (200, "close")
