# SPDX-License-Identifier: Apache-2.0
"""GETs on a connection that is kept: what it saves, and that it never costs an answer."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from autoscaler.adapters.plain_http import Answer, At, Kept, NoAnswer
from tests.adapters.kubernetes.waiting import until


@dataclass
class Peer:
    """A server of pages; `answer` writes what a request is answered with."""

    answer: Callable[[asyncio.StreamWriter], None]
    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writes)
        try:
            while not writes.is_closing():
                self.requests.append(await reads.readuntil(b"\r\n\r\n"))
                self.answer(writes)
        except (asyncio.IncompleteReadError, ConnectionError):
            writes.close()


def page(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")


def last_page(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\npage")


def half_a_page(writes: asyncio.StreamWriter) -> None:
    writes.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\npage")


PAGE = Answer(200, b"page", whole=True)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer(page)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    yield peer
    server.close()
    for writer in peer.writers:
        writer.close()
    await server.wait_closed()


@pytest.fixture
async def kept(peer: Peer) -> AsyncIterator[Kept]:
    kept = Kept(At("127.0.0.1", peer.port, "/metrics"))
    yield kept
    kept.close()


async def ask(kept: Kept, *, close: bool = False) -> Answer | NoAnswer:
    return await kept.get(timeout_s=0.5, max_bytes=1000, close=close)


async def test_a_connection_serves_one_get_after_another(peer: Peer, kept: Kept) -> None:
    """A handshake a second for each of a thousand pods is saved."""
    assert [await ask(kept) for _ in range(3)] == [PAGE] * 3
    assert (peer.connections, len(peer.requests)) == (1, 3)
    assert b"Connection: close" not in peer.requests[0]


async def test_a_connection_that_the_peer_closed_meanwhile_is_made_anew(
    peer: Peer, kept: Kept
) -> None:
    """A server may close what is idle; that says nothing about the server."""
    assert await ask(kept) == PAGE
    peer.writers[0].transport.abort()
    assert await ask(kept) == PAGE
    assert peer.connections == 2


async def test_a_connection_is_given_up_when_the_peer_says_so(peer: Peer, kept: Kept) -> None:
    """Its next GET goes over a new one."""
    peer.answer = last_page
    assert await ask(kept) == PAGE
    assert not kept.open
    assert await ask(kept) == PAGE
    assert peer.connections == 2


async def test_the_last_get_says_that_it_is_the_last(peer: Peer, kept: Kept) -> None:
    """For a server that serves one connection at a time."""
    assert await ask(kept, close=True) == PAGE
    assert b"Connection: close" in peer.requests[0]
    assert not kept.open


async def test_a_late_answer_is_never_taken_for_that_of_the_next_get(
    peer: Peer, kept: Kept
) -> None:
    """After a timeout the connection is not used again."""
    assert await ask(kept) == PAGE
    peer.answer = half_a_page
    assert await ask(kept) == NoAnswer("was not answered within 0.5s")
    peer.answer = page
    assert await ask(kept) == PAGE
    assert peer.connections == 2


async def test_nothing_listens(peer: Peer) -> None:
    """A failure is a value, on a first connection and on one that was kept."""
    assert await ask(Kept(At("127.0.0.1", 1, "/"))) == NoAnswer("failed: nothing listens there")


async def test_a_page_in_gzip_is_read_though_nobody_asked_for_it(peer: Peer, kept: Kept) -> None:
    """Some proxies compress whatever the client says."""
    body = gzip.compress(b"page")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    peer.answer = lambda writes: writes.write(head + body)
    assert await ask(kept) == PAGE
    assert b"Accept-Encoding: identity" in peer.requests[0]


async def test_what_was_not_asked_for_ends_the_connection(peer: Peer, kept: Kept) -> None:
    """It is never taken for the answer to the next GET."""
    assert await ask(kept) == PAGE
    peer.writers[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold")
    await until(peer.writers[0].is_closing, "the other end hangs up")
    assert await ask(kept) == PAGE
    assert peer.connections == 2


async def test_chunks_are_put_together_and_leave_the_connection_usable(
    peer: Peer, kept: Kept
) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\npa\r\n2\r\nge\r\n0\r\n\r\n"
    )
    peer.answer = lambda writes: writes.write(chunked)
    assert [await ask(kept) for _ in range(2)] == [PAGE, PAGE]
    assert peer.connections == 1


async def test_a_body_that_is_too_long_is_cut_and_its_connection_closed(
    peer: Peer, kept: Kept
) -> None:
    peer.answer = lambda writes: writes.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"#" * 5000
    )
    answer = await ask(kept)
    assert isinstance(answer, Answer)
    assert (answer.whole, answer.cut) == (False, "more than 1000 bytes came")
    assert not kept.open


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_a_pod_with_an_ipv6_address_is_asked() -> None:
    """Its address stands in brackets, in what is asked and in what is told."""
    peer = Peer(page)
    server = await asyncio.start_server(peer.serve, "::1", 0)
    port = server.sockets[0].getsockname()[1]
    kept = Kept(At("::1", port, "/metrics"))
    assert await ask(kept) == PAGE
    assert f"Host: [::1]:{port}\r\n".encode() in peer.requests[0]
    assert str(kept.at) == f"http://[::1]:{port}/metrics"
    kept.close()
    server.close()
    for writer in peer.writers:
        writer.close()
        await writer.wait_closed()


async def test_a_path_cannot_smuggle_in_a_header(peer: Peer) -> None:
    """It comes from an annotation, which anybody may write who may make a pod."""
    kept = Kept(At("127.0.0.1", peer.port, "/metrics HTTP/1.1\r\nAuthorization: x"))
    answer = await ask(kept)
    assert isinstance(answer, NoAnswer)
    assert "a path with a blank in it" in answer.why
    assert peer.requests == []
