# SPDX-License-Identifier: Apache-2.0
"""Connections whose bytes are passed on unseen: WebSockets, and HTTP/2 by prior knowledge."""

import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from autoscaler.activator.wire import H2_GO_AWAY, H2_PREFACE
from autoscaler.core.routes import Endpoint
from tests.activator.peers import Front, Line, Message, Peers, get, until


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_a_websocket_is_held_until_the_service_wakes_and_then_speaks_freely(
    front: Front,
) -> None:
    opening = asyncio.create_task(connect(f"ws://127.0.0.1:{front.port}/v1/realtime").__aenter__())
    await front.holds(1)
    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        front.follow(Endpoint("r1", "127.0.0.1", port, slots=1))
        client = await opening
        for message in ("hello", b"\x00" * 300_000, "bye"):
            await client.send(message)
            assert await client.recv() == message
        assert (front.demand().in_flight, front.demand().tunnels) == (1, 1)
        await client.close()
        await front.flies(0)
        assert front.demand().answered_total == 1
        assert (front.demand().tunnels, front.demand().tunnels_total) == (0, 1)


async def test_a_websocket_that_the_replica_closes_is_closed_here(front: Front) -> None:
    async def bye(connection: ServerConnection) -> None:
        await connection.close(4000, "done")

    async with serve(bye, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        front.follow(Endpoint("r1", "127.0.0.1", port))
        client = await connect(f"ws://127.0.0.1:{front.port}/").__aenter__()
        await client.wait_closed()
        assert client.close_code == 4000
        await front.flies(0)
        assert (front.demand().tunnels, front.demand().tunnels_total) == (0, 1)


async def test_a_websocket_that_waits_in_vain_is_refused_with_a_status(front: Front) -> None:
    front.follow(hold_timeout_s=0.05)
    with pytest.raises(InvalidStatus) as refusal:
        await connect(f"ws://127.0.0.1:{front.port}/").__aenter__()
    assert refusal.value.response.status_code == 504


async def test_an_upgrade_that_the_replica_declines_is_an_ordinary_answer(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    client = await peers.client(front, get(headers=upgrade) + get("/next"))
    assert (await client.message()).status == 200
    assert (await client.message()).status == 200
    assert replica.requests[0].get("upgrade") == "websocket"
    assert replica.requests[1].get("upgrade") is None


async def test_http2_by_prior_knowledge_is_held_and_then_passed_on_unseen(
    front: Front, peers: Peers
) -> None:
    async def frames(request: Message, line: Line) -> None:
        assert request.start == "PRI * HTTP/2.0"
        assert await line.exactly(10) == b"SM\r\n\r\n1234"
        line.send(b"settings")
        assert await line.exactly(4) == b"5678"
        line.send(b"bye")
        await line.rest()

    client = await peers.client(front, H2_PREFACE + b"1234")
    await front.holds(1)
    replica = await peers.replica(frames)
    front.follow(replica.endpoint(1))
    assert await client.exactly(8) == b"settings"
    client.send(b"5678")
    assert await client.exactly(3) == b"bye"
    assert (front.demand().in_flight, front.demand().tunnels) == (1, 1)
    client.close()
    await front.flies(0)
    assert (front.demand().tunnels, front.demand().tunnels_total) == (0, 1)


async def test_http2_that_waits_in_vain_is_told_that_nothing_was_touched(
    front: Front, peers: Peers
) -> None:
    front.follow(hold_timeout_s=0.05)
    client = await peers.client(front, H2_PREFACE)
    assert await client.rest() == H2_GO_AWAY
    assert len(H2_GO_AWAY) == 9 + 17


async def test_an_http2_preface_in_pieces_is_known_for_what_it_is(
    front: Front, peers: Peers
) -> None:
    client = await peers.client(front, H2_PREFACE[:9])
    await until(lambda: front.desk.clients)
    client.send(H2_PREFACE[9:])
    await front.holds(1)
