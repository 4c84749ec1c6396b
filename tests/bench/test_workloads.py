# SPDX-License-Identifier: Apache-2.0
"""The bytes that are sent and answered."""

import json

import pytest

from autoscaler.bench.workloads import (
    END_OF_CHUNKS,
    EVENT_BYTES,
    HEADS,
    MIB,
    MIB_BODY,
    SMALL_JSON,
    SMALL_JSON_VARIED,
    STAMP,
    WORKLOADS,
    Workload,
    chunk,
    event,
    unstamped,
    without_chunks,
)


@pytest.mark.parametrize(
    ("workload", "there", "back"), [(SMALL_JSON, 200, 150), (MIB_BODY, MIB, MIB)]
)
def test_bodies_are_json_of_the_promised_size(workload: Workload, there: int, back: int) -> None:
    for body, size in ((workload.request_body, there), (workload.answer_body, back)):
        assert len(body) == size
        json.loads(body)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_a_request_tells_the_length_of_its_body(workload: Workload) -> None:
    head, _, body = workload.requests(8080, for_latency=False)[0].partition(b"\r\n\r\n")
    assert body == workload.request_body
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert b"Host: 127.0.0.1:8080" in head.split(b"\r\n")


def test_varied_heads_are_all_different_and_their_bodies_the_same() -> None:
    requests = SMALL_JSON_VARIED.requests(8080, for_latency=False)
    for messages, body in (
        (requests, SMALL_JSON.request_body),
        (SMALL_JSON_VARIED.answers, SMALL_JSON.answer_body),
    ):
        assert len(set(messages)) == HEADS
        assert all(message.endswith(b"\r\n\r\n" + body) for message in messages)
    assert len(SMALL_JSON.requests(8080, for_latency=False)) == 1


def test_every_event_is_json_of_one_size_and_carries_its_time() -> None:
    for number in (0, 7, 199):
        written = event(number, written_ns=1234567890123456789)
        assert len(written) == EVENT_BYTES
        assert written.endswith(b"\n\n")
        told = json.loads(written.removeprefix(b"data: "))
        assert int(told["event"]) == number
        stamp = STAMP.search(written)
        assert stamp is not None
        assert int(stamp[1]) == 1234567890123456789


def test_events_are_compared_without_their_times() -> None:
    assert unstamped(event(3, written_ns=987654321)) == event(3, written_ns=0)


def test_a_chunked_body_is_its_content_however_it_was_cut() -> None:
    body = b"abcdefghij" * 5
    for size in (1, 3, 16, 50):
        cut = b"".join(chunk(body[at : at + size]) for at in range(0, len(body), size))
        assert without_chunks(cut + END_OF_CHUNKS) == body


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"3\r\nabc\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"x\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\nmore",
        b"3\r\nabc\r\n0\r\n",
        b"\r\nabc\r\n0\r\n\r\n",
    ],
    ids=["empty", "no end", "size too small", "no number", "too much", "half an end", "no size"],
)
def test_a_body_with_broken_chunks_is_none(broken: bytes) -> None:
    assert without_chunks(broken) is None
