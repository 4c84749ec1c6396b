# SPDX-License-Identifier: Apache-2.0
"""What passes through: requests and answers in every shape of HTTP/1.1, held or not."""

import asyncio

import orjson
import pytest

from tests.activator.peers import Front, Line, Message, Peers, get, ok, post, say_ok, until


async def test_a_request_passes_through_and_comes_back(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, post(b'{"instances": [1]}'))
    answer = await client.message()
    assert (answer.status, answer.body) == (200, b'{"instances": [1]}')
    assert answer.get("x-tidegate-held-s") is None
    assert replica.requests[0].get("x-forwarded-for") == "127.0.0.1"
    assert replica.requests[0].get("x-forwarded-proto") == "http"


async def test_a_held_request_is_served_when_an_endpoint_comes(front: Front, peers: Peers) -> None:
    client = await peers.client(front, post(b"body"))
    await front.holds(1)
    assert front.waits == [True]
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    answer = await client.message()
    assert (answer.status, answer.body) == (200, b"body")
    assert answer.get("x-cold-start") == "true"
    assert float(answer.get("x-tidegate-held-s") or 0) > 0


async def test_a_request_that_waits_for_a_slot_is_marked_as_not_cold(
    front: Front, peers: Peers
) -> None:
    go = asyncio.Event()

    async def slowly(request: Message, line: Line) -> None:
        await go.wait()
        line.send(ok())

    replica = await peers.replica(slowly)
    front.follow(replica.endpoint(1))
    first = await peers.client(front, get())
    await front.flies(1)
    second = await peers.client(front, get())
    await front.holds(1)
    go.set()
    assert (await first.message()).get("x-cold-start") is None
    assert (await second.message()).get("x-cold-start") == "false"


async def test_held_requests_go_out_oldest_first_within_the_slots(
    front: Front, peers: Peers
) -> None:
    clients = []
    for i in range(4):
        clients.append(await peers.client(front, get(f"/{i}")))
        await front.holds(i + 1)
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    for client in clients:
        assert (await client.message()).status == 200
    assert [r.target for r in replica.requests] == ["/0", "/1", "/2", "/3"]


async def test_one_connection_carries_many_requests_each_way(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front)
    for i in range(20):
        client.send(post(b"%d" % i))
        assert (await client.message()).body == b"%d" % i
    assert len(replica.lines) == 1


async def test_pipelined_requests_are_answered_in_order(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    burst = b"".join(post(b"%d" % i) + get("/health") for i in range(10))
    client = await peers.client(front, burst)
    for i in range(10):
        assert (await client.message()).body == b"%d" % i
        assert (await client.message()).body == b"ok"


async def test_pipelined_requests_cut_anywhere_are_put_together_again(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    chunked = (
        b"POST /c HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    burst = get("/a") + chunked + post(b"body")
    client = await peers.client(front)
    for at in range(0, len(burst), 7):
        client.send(burst[at : at + 7])
        await client.writer.drain()
        await asyncio.sleep(0)
    assert [(await client.message()).body for _ in range(3)] == [b"ok", b"abc", b"body"]


async def test_more_pipelined_than_the_bound_is_served_in_the_end(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    one = post(b"x" * 1000)
    client = await peers.client(front, one * 300)
    for _ in range(300):
        assert (await client.message()).body == b"x" * 1000


async def test_large_bodies_pass_both_ways(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    body = bytes(range(256)) * 20_000  # 5 MB
    client = await peers.client(front, post(body))
    assert (await client.message()).body == body


async def test_of_a_large_held_body_only_the_bound_is_read(front: Front, peers: Peers) -> None:
    body = b"z" * 3_000_000
    client = await peers.client(front, post(body))
    await front.holds(1)
    assert front.desk.holding.held_bytes < 64 * 1024 + 500
    (held,) = front.desk.clients
    await until(lambda: held._reading_paused, "pausing")
    assert len(held._out) + len(held._more or b"") <= 2 * 64 * 1024 + 500
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    assert (await client.message()).body == body


async def test_chunked_bodies_pass_both_ways(front: Front, peers: Peers) -> None:
    async def chunked(request: Message, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        for at in range(0, len(request.body), 5):
            part = request.body[at : at + 5]
            line.send(b"%x;ext=1\r\n%b\r\n" % (len(part), part))
        line.send(b"0\r\nX-Sum: 7\r\n\r\n")

    replica = await peers.replica(chunked)
    front.follow(replica.endpoint())
    head = b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = await peers.client(front, head)
    for part in (b"4\r\nabcd\r\n", b"A\r", b"\n0123456", b"789\r\n0\r\n", b"X-T: 1\r\n\r\n"):
        client.send(part)
        await asyncio.sleep(0.01)
    for _ in range(2):
        assert (await client.message()).body == b"abcd0123456789"
        client.send(head + b"4\r\nabcd\r\na\r\n0123456789\r\n0\r\n\r\n")
    assert len(replica.lines) == 1


async def test_a_held_chunked_request_keeps_its_body(front: Front, peers: Peers) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = await peers.client(front, head + b"3\r\nabc\r\n")
    await front.holds(1)
    client.send(b"3\r\ndef\r\n0\r\n\r\n" + get("/next"))
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    assert (await client.message()).body == b"abcdef"
    assert (await client.message()).body == b"ok"


async def test_expect_continue_is_answered_once_the_request_is_admitted(
    front: Front, peers: Peers
) -> None:
    client = await peers.client(
        front, b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    await front.holds(1)
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    assert (await client.head()).status == 100
    client.send(b"body")
    assert (await client.message()).body == b"body"
    assert replica.requests[0].get("expect") is None


async def test_whoever_expects_and_is_refused_is_not_told_to_continue(
    front: Front, peers: Peers
) -> None:
    front.follow(hold_limit=0)
    client = await peers.client(
        front, b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    answer = await client.message()
    assert (answer.status, answer.get("connection")) == (503, "close")
    await client.closed()


async def test_answers_without_a_body_end_with_their_head(front: Front, peers: Peers) -> None:
    async def bodyless(request: Message, line: Line) -> None:
        if request.start.startswith("HEAD"):
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        elif request.target == "/204":
            line.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        elif request.target == "/304":
            line.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 70\r\n\r\n")
        else:
            line.send(ok(b"end"))

    replica = await peers.replica(bodyless)
    front.follow(replica.endpoint())
    head = b"HEAD /x HTTP/1.1\r\nHost: m\r\n\r\n"
    client = await peers.client(front, head + get("/204") + get("/304") + get("/end"))
    answer = await client.message(to_head=True)
    assert (answer.status, answer.get("content-length")) == (200, "5000")
    assert (await client.message()).status == 204
    assert (await client.message()).status == 304
    assert (await client.message()).body == b"end"
    assert len(replica.lines) == 1


async def test_early_hints_go_on_and_stray_continues_do_not(front: Front, peers: Peers) -> None:
    async def hinting(request: Message, line: Line) -> None:
        line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.01)
        line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok())

    replica = await peers.replica(hinting)
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    assert (await client.head()).status == 103
    assert (await client.message()).status == 200


async def test_an_http_10_client_gets_no_chunks_and_a_close(front: Front, peers: Peers) -> None:
    async def chunked(request: Message, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        line.send(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    replica = await peers.replica(chunked)
    front.follow(replica.endpoint())
    client = await peers.client(front, b"GET /x HTTP/1.0\r\n\r\n")
    answer = await client.message()
    assert (answer.body, answer.get("transfer-encoding")) == (b"abcdef", None)
    assert answer.get("connection") == "close"
    assert replica.requests[0].start == "GET /x HTTP/1.1"
    assert replica.requests[0].get("host") == ""


async def test_an_http_10_client_that_keeps_alive_is_kept(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front)
    for _ in range(2):
        client.send(b"GET /x HTTP/1.0\r\nHost: m\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.message()).get("connection") == "keep-alive"


async def test_a_client_that_asks_for_a_close_gets_it(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, get(headers="Connection: close\r\n"))
    assert (await client.message()).get("connection") == "close"
    await client.closed()
    assert replica.requests[0].get("connection") is None
    assert replica.ended == 0


async def test_an_answer_that_ends_with_the_connection_ends_with_it(
    front: Front, peers: Peers
) -> None:
    async def until_close(request: Message, line: Line) -> bool:
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nfirst ")
        await line.writer.drain()
        await asyncio.sleep(0.01)
        line.send(b"second")
        return False

    replica = await peers.replica(until_close)
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    answer = await client.message()
    assert (answer.body, answer.get("connection")) == (b"first second", "close")
    await until(lambda: front.demand().answered_total == 1)


async def test_a_replica_that_closes_after_each_answer_is_connected_to_anew(
    front: Front, peers: Peers
) -> None:
    async def once(request: Message, line: Line) -> bool:
        line.send(ok(headers="Connection: close\r\n"))
        return False

    replica = await peers.replica(once)
    front.follow(replica.endpoint())
    client = await peers.client(front)
    for _ in range(5):
        client.send(post(b"x"))
        answer = await client.message()
        assert (answer.status, answer.get("connection")) == (200, None)
    assert len(replica.lines) == 5


async def test_every_server_sent_event_goes_out_at_once(front: Front, peers: Peers) -> None:
    go = asyncio.Queue[bytes]()

    async def events(request: Message, line: Line) -> None:
        line.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        while event := await go.get():
            line.send(b"%x\r\n%b\r\n" % (len(event), event))
        line.send(b"0\r\n\r\n")

    replica = await peers.replica(events)
    front.follow(replica.endpoint())
    client = await peers.client(front, post(b'{"stream": true}', "/v1/chat/completions"))
    assert (await client.head()).get("content-type") == "text/event-stream"
    for i in range(5):
        event = b"data: %d\n\n" % i
        go.put_nowait(event)  # the next one is made only after this one has arrived
        assert await client.exactly(len(event) + 5) == b"%x\r\n%b\r\n" % (len(event), event)
    go.put_nowait(b"")
    assert await client.exactly(5) == b"0\r\n\r\n"


async def test_hop_by_hop_headers_stay_on_their_hop(front: Front, peers: Peers) -> None:
    async def hops(request: Message, line: Line) -> None:
        line.send(
            ok(headers="Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n")
        )

    replica = await peers.replica(hops)
    front.follow(replica.endpoint())
    client = await peers.client(
        front,
        get(
            headers="Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nX-Other: 2\r\n"
        ),
    )
    answer = await client.message()
    assert {n.lower() for n, _ in answer.headers} == {"content-length"}
    sent = {n.lower(): v for n, v in replica.requests[0].headers}
    assert sent.pop("te") == "trailers"
    assert sent.pop("connection") == "TE"
    assert set(sent) == {"host", "x-other", "x-forwarded-for", "x-forwarded-proto"}


async def test_forwarding_headers_are_continued(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(
        front, get(headers="X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\n")
    )
    await client.message()
    assert replica.requests[0].get("x-forwarded-for") == "10.0.0.1, 127.0.0.1"
    assert replica.requests[0].get("x-forwarded-proto") == "https"


async def test_requests_spread_over_the_endpoints(front: Front, peers: Peers) -> None:
    first, second = await peers.replica(id="r1"), await peers.replica(id="r2")
    front.follow(first.endpoint(), second.endpoint())
    client = await peers.client(front)
    for _ in range(10):
        client.send(get())
        await client.message()
    assert (len(first.requests), len(second.requests)) == (5, 5)


async def test_a_draining_endpoint_finishes_and_gets_nothing_new(
    front: Front, peers: Peers
) -> None:
    go = asyncio.Event()

    async def slowly(request: Message, line: Line) -> None:
        await go.wait()
        line.send(ok(b"old"))

    old, new = await peers.replica(slowly, id="old"), await peers.replica(id="new")
    front.follow(old.endpoint())
    waiting = await peers.client(front, get())
    await front.flies(1)
    front.follow(old.endpoint(draining=True), new.endpoint())
    client = await peers.client(front)
    for _ in range(3):
        client.send(get())
        assert (await client.message()).body == b"ok"
    assert front.demand().in_flight_by_endpoint == {"old": 1}
    go.set()
    assert (await waiting.message()).body == b"old"
    await until(lambda: old.ended == 1, "closing the drained endpoint's connection")


async def test_idle_connections_to_a_removed_endpoint_are_closed(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, get())
    await client.message()
    front.follow()
    await until(lambda: replica.ended == 1, "closing")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_checks_are_answered_asleep_and_wake_nobody(
    front: Front, peers: Peers, method: str
) -> None:
    client = await peers.client(
        front, f"{method} /v2/health/ready HTTP/1.1\r\nHost: m\r\n\r\n".encode()
    )
    answer = await client.message(to_head=method == "HEAD")
    assert (answer.status, answer.get("x-tidegate-state")) == (200, "asleep")
    if method == "GET":
        assert orjson.loads(answer.body) == {"ready": True, "state": "asleep"}
    assert front.waits == []
    assert front.demand().requests_total == 0


async def test_health_checks_go_to_a_replica_uncounted_when_there_is_one(
    front: Front, peers: Peers
) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint(1))
    client = await peers.client(front, get("/health"))
    answer = await client.message()
    assert (answer.body, answer.get("x-tidegate-state")) == (b"ok", None)
    assert len(replica.requests) == 1
    assert (front.demand().requests_total, front.demand().request_seconds_total) == (0, 0.0)


async def test_what_only_a_replica_knows_is_not_made_up(front: Front, peers: Peers) -> None:
    client = await peers.client(front, get("/v1/models"))
    answer = await client.message()
    assert answer.status == 503
    assert answer.get("retry-after") is not None
    assert orjson.loads(answer.body)["error"]["type"] == "overloaded"
    assert front.demand().requests_total == 0


async def test_an_early_answer_to_a_long_request_arrives(front: Front, peers: Peers) -> None:
    async def too_large(request: Message, line: Line) -> None:
        line.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await line.writer.drain()
        await line.rest()

    replica = await peers.replica(too_large)
    replica.reads_bodies = False
    front.follow(replica.endpoint())
    head = b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 100000000\r\n\r\n"
    client = await peers.client(front, head + b"x" * 100_000)
    answer = await client.message()
    assert (answer.status, answer.body) == (413, b"no")
    client.send(b"x" * 100_000)
    await client.closed()


async def test_a_refused_request_with_a_short_body_leaves_the_connection_usable(
    front: Front, peers: Peers
) -> None:
    front.follow(hold_limit=0)
    head = b"POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 1000\r\n\r\n"
    client = await peers.client(front, head)
    assert (await client.message()).status == 503
    replica = await peers.replica()
    front.follow(replica.endpoint(), hold_limit=10)
    client.send(b"x" * 1000 + get())
    assert (await client.message()).body == b"ok"
    assert len(replica.requests) == 1


async def test_an_absolute_target_becomes_an_ordinary_one(front: Front, peers: Peers) -> None:
    replica = await peers.replica()
    front.follow(replica.endpoint())
    client = await peers.client(front, b"GET http://other:80/p?q=1 HTTP/1.1\r\nHost: m\r\n\r\n")
    await client.message()
    assert replica.requests[0].start == "GET /p?q=1 HTTP/1.1"
    assert replica.requests[0].get("host") == "other:80"


async def test_counters_tell_what_became_of_each_request(front: Front, peers: Peers) -> None:
    front.follow(hold_limit=1, hold_timeout_s=0.05)
    waiting = await peers.client(front, get())
    await front.holds(1)
    refused = await peers.client(front, get())
    assert (await refused.message()).status == 503
    assert (await waiting.message()).status == 504
    replica = await peers.replica(say_ok)
    front.follow(replica.endpoint())
    served = await peers.client(front, get())
    assert (await served.message()).status == 200
    demand = front.demand()
    assert (demand.requests_total, demand.overflow_total, demand.expired_total) == (3, 1, 1)
    assert demand.answered_total == 1
