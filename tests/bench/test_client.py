# SPDX-License-Identifier: Apache-2.0
"""The client counts what is right and calls everything else an error, by kind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from autoscaler.bench.backend import connections
from autoscaler.bench.client import measure
from autoscaler.bench.phases import Phase, Seen
from autoscaler.bench.workloads import (
    END_OF_CHUNKS,
    SMALL_JSON,
    SSE,
    WORKLOADS,
    Workload,
    chunk,
)

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def backend(workload: Workload) -> AsyncIterator[int]:
    """The benchmark's own backend, in this process; its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connections(workload), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def seen_of(
    workload: Workload, port: int, *, for_latency: bool = False, duration_s: float = 0.05
) -> Seen:
    return await measure(
        Phase(
            workload=workload.name,
            port=port,
            connections=2,
            warm_s=0.01,
            duration_s=duration_s,
            for_latency=for_latency,
            cpu_of={},
        )
    )


async def seen_with(answer: bytes, *, workload: Workload = SMALL_JSON) -> Seen:
    """What the client makes of a server that answers the first request so and then hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(workload.request_body)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
    async with server:
        return await seen_of(workload, server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("for_latency", [False, True], ids=["full speed", "latency"])
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
async def test_a_good_backend_is_measured_without_an_error(
    workload: Workload, for_latency: bool
) -> None:
    async with backend(workload) as port:
        seen = await seen_of(workload, port, for_latency=for_latency, duration_s=0.5)
    assert seen.errors == {}
    assert seen.requests > 0
    assert seen.p50_s is not None
    assert seen.p99_s is not None
    assert 0 < seen.p50_s <= seen.p99_s


async def test_paced_events_are_timed_from_the_backends_write_to_their_arrival() -> None:
    async with backend(SSE) as port:
        seen = await seen_of(SSE, port, for_latency=True, duration_s=0.5)
    assert seen.paced_events > 0
    assert seen.first_p50_s is not None


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 150\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503"),
        (HEAD + SMALL_JSON.answer_body[:-1], "cut"),
        (b"", "cut"),
        (b"HTTP/1.1 200 OK\r\nConte", "cut"),
        (HEAD + b"x" * 150, "other bytes"),
        (HEAD + SMALL_JSON.answer_body + b"x", "more bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + SMALL_JSON.answer_body, "length"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "without end"),
    ],
    ids=[
        "a status other than 200",
        "a body cut short",
        "a connection closed without an answer",
        "a head cut short",
        "a body of other bytes",
        "more bytes than promised",
        "a wrong content-length",
        "a head without end",
    ],
)
async def test_a_bad_answer_is_an_error_of_its_kind(answer: bytes, kind: str) -> None:
    seen = await seen_with(answer)
    assert sum(seen.errors.values()) == 2  # one a connection
    assert all(kind in told for told in seen.errors), seen.errors


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "502"),
        (STREAM + chunk(SSE.answer_body), "cut"),
        (STREAM + chunk(SSE.answer_body[:100]) + END_OF_CHUNKS, "lacks events"),
        (STREAM + chunk(SSE.answer_body[::-1]) + END_OF_CHUNKS, "other events"),
        (STREAM + SSE.answer_body + b"\r\n" + END_OF_CHUNKS, "broken chunks"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + SSE.answer_body + END_OF_CHUNKS,
            "not chunked",
        ),
    ],
    ids=[
        "a status other than 200",
        "a stream that ends before its end",
        "a stream with too few events",
        "a stream with other events",
        "a stream with broken chunks",
        "a stream that is not chunked",
    ],
)
async def test_a_bad_stream_is_an_error_of_its_kind(answer: bytes, kind: str) -> None:
    seen = await seen_with(answer, workload=SSE)
    assert sum(seen.errors.values()) == 2
    assert all(kind in told for told in seen.errors), seen.errors


async def test_an_answer_in_many_pieces_is_one_answer() -> None:
    """The head and the body may be cut anywhere."""
    whole = HEAD + SMALL_JSON.answer_body

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await reader.readuntil(SMALL_JSON.request_body)
            except asyncio.IncompleteReadError:
                writer.close()
                return
            for at in range(0, len(whole), 7):
                writer.write(whole[at : at + 7])
                await asyncio.sleep(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        seen = await seen_of(SMALL_JSON, server.sockets[0].getsockname()[1], duration_s=0.2)
    assert seen.errors == {}
    assert seen.requests > 0


async def test_the_backend_refuses_a_request_with_other_bytes() -> None:
    async with backend(SMALL_JSON) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 200\r\n\r\n" + b"x" * 200)
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
