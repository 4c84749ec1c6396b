# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: at the client, at the replica, on the line. Each request gets one answer."""

import asyncio
import socket
from time import monotonic

import orjson
import pytest

from autoscaler.activator import proxy
from autoscaler.core.routes import Endpoint
from tests.activator.peers import Front, Line, Message, Peers, get, ok, post, until

# Waiting that ends badly


async def test_whoever_waits_too_long_is_told_how_the_service_stands(
    front: Front, peers: Peers
) -> None:
    front.follow(hold_timeout_s=0.05, state="waking", why="pulling weights, 40 s so far")
    client = await peers.client(front, post(b"{}"))
    answer = await client.message()
    assert answer.status == 504
    assert orjson.loads(answer.body) == {
        "error": "m took no request within 0.05 s: it is waking (pulling weights, 40 s so far)"
    }
    assert front.demand().expired_total == 1


async def test_openai_clients_get_errors_in_openais_shape(front: Front, peers: Peers) -> None:
    front.follow(hold_timeout_s=0.05)
    client = await peers.client(front, post(b"{}", "/v1/chat/completions"))
    error = orjson.loads((await client.message()).body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("timeout", "504", None)
    assert "asleep" in error["message"]


async def test_what_does_not_fit_is_turned_away_with_a_time_to_come_again(
    front: Front, peers: Peers
) -> None:
    front.follow(hold_limit=2)
    waiting = [await peers.client(front, get()) for _ in range(2)]
    await front.holds(2)
    client = await peers.client(front, get())
    answer = await client.message()
    assert (answer.status, answer.get("retry-after")) == (503, "5")
    assert "2 of at most 2" in orjson.loads(answer.body)["error"]
    assert front.demand().overflow_total == 1
    assert len(waiting) == front.demand().held


async def test_bytes_count_as_well_as_requests(front: Front, peers: Peers) -> None:
    front.follow(hold_bytes=100_000)
    first = await peers.client(front, post(b"x" * 60_000))
    await front.holds(1)
    second = await peers.client(front, post(b"x" * 60_000))
    assert (await second.message()).status == 503
    assert front.demand().held_bytes <= 100_000
    replica = await peers.replica()
    front.follow(replica.endpoint())
    assert len((await first.message()).body) == 60_000


async def test_a_service_that_is_no_longer_routed_sends_its_waiters_away(
    front: Front, peers: Peers
) -> None:
    client = await peers.client(front, get())
    await front.holds(1)
    front.desk.dismiss()
    answer = await client.message()
    assert answer.status == 503
    assert "no longer served" in orjson.loads(answer.body)["error"]


# Clients that go away


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_while_held_frees_its_place_at_once(
    front: Front, peers: Peers, how: str
) -> None:
    client = await peers.client(front, get())
    await front.holds(1)
    client.close() if how == "close" else client.reset()
    await front.holds(0)
    assert front.demand().cancelled_total == 1


@pytest.mark.parametrize(("how", "size"), [("close", 90_000), ("reset", 500_000)])
async def test_a_client_that_leaves_while_its_body_is_not_being_read_is_noticed(
    front: Front, peers: Peers, how: str, size: int
) -> None:
    """A close gets through as soon as the kernel has room for what it follows; a reset always."""
    client = await peers.client(front, post(b"x" * size))
    await front.holds(1)
    (held,) = front.desk.clients
    await until(lambda: held._reading_paused, "pausing")
    client.close() if how == "close" else client.reset()
    await front.holds(0)
    assert front.demand().cancelled_total == 1


async def test_a_client_that_leaves_in_flight_cancels_the_replicas_work(
    front: Front, peers: Peers
) -> None:
    async def forever(request: Message, line: Line) -> None:
        await line.rest()
        raise ConnectionError

    replica = await peers.replica(forever)
    front.follow(replica.endpoint(1))
    client = await peers.client(front, get())
    await front.flies(1)
    await until(lambda: replica.requests)
    client.close()
    await until(lambda: replica.ended == 1, "ending the replica's connection")
    assert front.demand().cancelled_total == 1


async def test_a_client_that_leaves_in_mid_answer_cancels_the_replicas_work(
    front: Front, peers: Peers
) -> None:
    async def stream(request: Message, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await line.rest()
        raise ConnectionError

    replica = await peers.replica(stream)
    front.follow(replica.endpoint(1))
    client = await peers.client(front, get())
    await client.head()
    client.close()
    await until(lambda: replica.ended == 1, "ending the replica's connection")


async def test_the_seat_of_a_client_that_left_goes_to_who_waits(front: Front, peers: Peers) -> None:
    async def first_forever(request: Message, line: Line) -> None:
        if request.target == "/first":
            await line.rest()
            raise ConnectionError
        line.send(ok())

    replica = await peers.replica(first_forever)
    front.follow(replica.endpoint(1))
    first = await peers.client(front, get("/first"))
    await front.flies(1)
    second = await peers.client(front, get("/second"))
    await front.holds(1)
    first.close()
    assert (await second.message()).status == 200


# Replicas that fail


async def test_a_replica_that_refuses_connections_costs_no_request(
    front: Front, peers: Peers
) -> None:
    dead, live = await peers.replica(id="dead"), await peers.replica(id="live")
    await dead.stop()
    front.follow(dead.endpoint(), live.endpoint())
    client = await peers.client(front)
    for _ in range(6):
        client.send(post(b"x"))
        assert (await client.message()).status == 200
    assert front.demand().broken_total == 0


async def test_while_every_replica_refuses_requests_wait_and_then_are_served(
    front: Front, peers: Peers
) -> None:
    dead = await peers.replica()
    await dead.stop()
    front.follow(dead.endpoint(1))
    clients = [await peers.client(front, post(b"%d" % i)) for i in range(3)]
    await until(lambda: front.demand().held >= 2)
    risen = await peers.replica(port=dead.port)
    for i, client in enumerate(clients):
        assert (await client.message()).body == b"%d" % i
    assert len(risen.requests) == 3


async def test_a_health_check_of_a_replica_that_refuses_is_answered_503(
    front: Front, peers: Peers
) -> None:
    dead = await peers.replica()
    await dead.stop()
    front.follow(dead.endpoint(1))
    client = await peers.client(front, get("/health"))
    assert (await client.message()).status == 503


async def test_a_replica_that_dies_before_it_answers_gives_one_502(
    front: Front, peers: Peers
) -> None:
    async def die(request: Message, line: Line) -> bool:
        return False

    replica = await peers.replica(die)
    front.follow(replica.endpoint())
    client = await peers.client(front, post(b"x"))
    answer = await client.message()
    assert answer.status == 502
    assert "not known" in orjson.loads(answer.body)["error"]
    assert (len(replica.requests), front.demand().broken_total) == (1, 1)


async def test_the_client_of_a_502_may_go_on_over_its_connection(
    front: Front, peers: Peers
) -> None:
    async def die_once(request: Message, line: Line) -> bool:
        if request.target == "/die":
            return False
        line.send(ok())
        return True

    replica = await peers.replica(die_once)
    front.follow(replica.endpoint())
    client = await peers.client(front, get("/die") + get("/live"))
    assert (await client.message()).status == 502
    assert (await client.message()).status == 200


async def test_a_work_once_begun_is_not_done_twice_after_a_reused_connection_ends(
    front: Front, peers: Peers
) -> None:
    async def die_second(request: Message, line: Line) -> bool:
        if request.body == b"die":
            return False
        line.send(ok())
        return True

    replica = await peers.replica(die_second)
    front.follow(replica.endpoint())
    client = await peers.client(front, post(b"live"))
    await client.message()
    client.send(post(b"die"))  # read whole by the replica, which then closes: a FIN, no reset
    assert (await client.message()).status == 502
    assert [r.body for r in replica.requests] == [b"live", b"die"]


async def test_an_idempotent_request_on_a_connection_that_had_ended_is_sent_again(
    front: Front, peers: Peers
) -> None:
    seen = 0

    async def die_second(request: Message, line: Line) -> bool:
        nonlocal seen
        seen += 1
        if seen == 2:
            return False
        line.send(ok())
        return True

    replica = await peers.replica(die_second)
    front.follow(replica.endpoint())
    client = await peers.client(front, get("/1"))
    await client.message()
    client.send(get("/2"))
    assert (await client.message()).status == 200
    assert [r.target for r in replica.requests] == ["/1", "/2", "/2"]


async def test_a_request_that_meets_a_closed_idle_connection_is_sent_again(
    front: Front, peers: Peers
) -> None:
    """The replica closed while we wrote: its kernel took nothing in, so nobody has read it."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        front.follow(Endpoint("r1", *server.getsockname()))
        client = await peers.client(front, post(b"1"))
        first, _ = await loop.sock_accept(server)
        assert (await loop.sock_recv(first, 1000)).endswith(b"1")
        await loop.sock_sendall(first, ok())
        await client.message()
        (held,) = front.desk.clients
        again = post(b"2")
        # In one go, so that the event loop cannot see the close before the request is written.
        first.close()
        proxy._BUFFER[: len(again)] = again
        held.buffer_updated(len(again))
        second, _ = await loop.sock_accept(server)
        assert (await loop.sock_recv(second, 1000)).endswith(b"2")
        await loop.sock_sendall(second, ok(b"2"))
        assert (await client.message()).body == b"2"
        second.close()


async def test_a_request_that_was_taken_in_is_not_sent_again_after_a_reset(
    front: Front, peers: Peers
) -> None:
    async def reset_second(request: Message, line: Line) -> None:
        if request.body == b"die":
            line.reset()
        line.send(ok())

    replica = await peers.replica(reset_second)
    front.follow(replica.endpoint())
    client = await peers.client(front, post(b"live"))
    await client.message()
    client.send(post(b"die"))
    assert (await client.message()).status == 502
    assert len(replica.requests) == 2


async def test_after_the_first_byte_of_an_answer_the_client_is_cut_off_not_answered_again(
    front: Front, peers: Peers
) -> None:
    async def half(request: Message, line: Line) -> bool:
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await line.writer.drain()
        return False

    replica = await peers.replica(half)
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    assert (await client.head()).status == 200
    assert await client.rest() == b"half"
    assert (len(replica.requests), front.demand().broken_total) == (1, 1)


async def test_a_chunked_answer_that_breaks_off_shows_it(front: Front, peers: Peers) -> None:
    async def half(request: Message, line: Line) -> bool:
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await line.writer.drain()
        return False

    replica = await peers.replica(half)
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    await client.head()
    assert await client.rest() == b"3\r\nabc\r\n"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
async def test_an_answer_that_makes_no_sense_becomes_a_502(
    front: Front, peers: Peers, nonsense: bytes
) -> None:
    async def babble(request: Message, line: Line) -> None:
        line.send(nonsense)

    replica = await peers.replica(babble)
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    assert (await client.message()).status == 502


async def test_bytes_after_an_answer_reach_nobody(front: Front, peers: Peers) -> None:
    async def too_much(request: Message, line: Line) -> None:
        line.send(ok(b"right") + ok(b"poison"))

    replica = await peers.replica(too_much)
    front.follow(replica.endpoint())
    client = await peers.client(front)
    for _ in range(3):
        client.send(get())
        assert (await client.message()).body == b"right"
    assert len(replica.lines) == 3


async def test_bytes_that_nobody_asked_for_end_the_connection(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    await client.message()
    replica.lines[0].send(ok(b"poison"))
    await until(lambda: replica.ended == 1)
    client.send(get())
    assert (await client.message()).body == b"ok"


# Clients that send what is not HTTP


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: m\r\nX: " + b"x" * 66_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 80_000, 431),
        (get(headers="Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_what_is_not_http_is_answered_and_closed(
    front: Front, peers: Peers, data: bytes, status: int
) -> None:
    client = await peers.client(front, data)
    answer = await client.message()
    assert (answer.status, answer.get("connection")) == (status, "close")
    await client.closed()
    assert front.demand().held == 0


async def test_a_smuggled_request_never_reaches_the_replica(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    attacks = (
        b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n",
        b"POST /x HTTP/1.1\r\nHost: m\nContent-Length: 0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\n",
    )
    for attack in attacks:
        client = await peers.client(front, attack + get("/smuggled"))
        assert b"smuggled" not in await client.rest()
    assert [r for r in replica.requests if "smuggled" in r.target] == []


async def test_a_malformed_chunk_in_flight_cuts_both_sides(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(
        front, b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    await until(lambda: replica.requests)
    client.send(b"zz\r\n" + get("/smuggled"))
    assert await client.rest() == b""
    await until(lambda: replica.ended == 1)


async def test_empty_lines_before_a_request_are_overlooked(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, b"\r\n\r\n" + get())
    assert (await client.message()).status == 200


async def test_beyond_the_bound_on_connections_a_client_is_told_so(
    front: Front, peers: Peers
) -> None:
    front.shared.max_clients = 1
    first = await peers.client(front, get())
    await front.holds(1)
    second = await peers.client(front)
    assert (await second.message()).status == 503
    await second.closed()
    front.shared.max_clients = 2
    assert first is not None
    third = await peers.client(front, get("/health"))
    assert (await third.message()).status == 200


# Slow ones


async def test_a_head_that_does_not_get_finished_is_given_up(front: Front, peers: Peers) -> None:
    client = await peers.client(front, b"GET / HTTP/1.1\r\nHost")
    await until(lambda: any(c._buffer for c in front.desk.clients))
    front.desk.tick(monotonic() + proxy.HEAD_TIMEOUT_S - 1)
    front.desk.tick(monotonic() + proxy.HEAD_TIMEOUT_S + 1)
    assert (await client.message()).status == 408
    await client.closed()


async def test_a_body_that_does_not_get_finished_frees_its_slot(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    client = await peers.client(front, b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 9\r\n\r\nx")
    await until(lambda: replica.requests)
    front.desk.tick(monotonic() + proxy.BODY_TIMEOUT_S - 1)
    await front.flies(1)
    front.desk.tick(monotonic() + proxy.BODY_TIMEOUT_S + 1)
    await client.closed()
    await front.flies(0)
    assert front.demand().cancelled_total == 1


async def test_a_client_that_asks_nothing_for_long_is_let_go(front: Front, peers: Peers) -> None:
    client = await peers.client(front, get("/health"))
    await client.message()
    front.desk.tick(monotonic() + proxy.IDLE_CLIENT_S - 1)
    client.send(get("/health"))
    assert (await client.message()).status == 200
    front.desk.tick(monotonic() + proxy.IDLE_CLIENT_S + 1)
    await client.closed()


async def test_a_refused_client_that_does_not_close_is_closed(front: Front, peers: Peers) -> None:
    client = await peers.client(front, b"nonsense\r\n\r\n")
    assert (await client.message()).status == 400
    front.desk.tick(monotonic() + proxy.LINGER_S + 1)
    await until(lambda: not front.desk.clients)


async def test_connections_to_replicas_that_were_idle_for_long_are_closed(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    await client.message()
    front.desk.tick(monotonic() + 60)
    await until(lambda: replica.ended == 1)


async def test_a_client_that_reads_slowly_slows_the_replica_down(
    front: Front, peers: Peers
) -> None:
    sent = 0
    size = 64 * 1024 * 1024

    async def plenty(request: Message, line: Line) -> None:
        nonlocal sent
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            line.send(b"x" * 65536)
            await line.writer.drain()
            sent += 65536

    replica = await peers.replica(plenty)
    front.follow(replica.endpoint())
    client = await peers.client(front)
    client.pause()
    client.send(get())
    before = -1
    while before != sent or sent == 0:  # until the replica has been stopped
        before = sent
        await asyncio.sleep(0.2)
    assert sent < size / 2
    (held,) = front.desk.clients
    assert held.transport.get_write_buffer_size() < 1024 * 1024
    client.resume()
    assert len((await client.message()).body) == size


async def test_a_replica_that_reads_slowly_slows_the_client_down(
    front: Front, peers: Peers
) -> None:
    go = asyncio.Event()

    async def lazily(request: Message, line: Line) -> None:
        line.pause()
        await go.wait()
        line.resume()
        body = await line.reader.readexactly(int(request.get("content-length") or 0))
        line.send(ok(b"%d" % len(body)))

    replica = await peers.replica(lazily)
    replica.reads_bodies = False
    front.follow(replica.endpoint())
    client = await peers.client(front, post(b"x" * 30_000_000))
    (held,) = front.desk.clients
    await until(lambda: held._reading_paused, "pausing the client")
    (pool,) = front.desk.pools.values()
    assert all(u.transport.get_write_buffer_size() < 1024 * 1024 for u in pool.connections)
    go.set()
    assert (await client.message()).body == b"30000000"
