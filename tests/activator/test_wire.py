# SPDX-License-Identifier: Apache-2.0
"""Heads and chunks: what is read, what goes on, what is refused because two could differ."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.activator.wire import (
    Chunks,
    RequestHead,
    WireError,
    parse_request,
    parse_response,
    without_chunking,
)


def request(head: str) -> RequestHead:
    return parse_request(head.replace("\n", "\r\n").encode("latin-1"), client=b"1.2.3.4")


def test_an_ordinary_head_goes_on_as_it_came_with_the_forwarding_headers_behind() -> None:
    head = request("POST /a?b HTTP/1.1\nHost: m\nX-One:  1\ncontent-length: 3\n\n")
    assert head.forward == head.raw[:-2] + (
        b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\n\r\n"
    )
    assert (head.method, head.path, head.length, head.chunked) == ("POST", "/a", 3, False)
    assert head.keep_alive


TE, CL = "Transfer-Encoding: chunked", "Content-Length: 3"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((CL, TE), 400),
        ((TE, CL), 400),
        ((CL, "Content-Length: 4"), 400),
        ((CL, CL), 400),
        (("Content-Length: 3, 3",), 400),
        (("Content-Length: +3",), 400),
        (("Content-Length: -3",), 400),
        (("Content-Length: 0x3",), 400),
        (("Content-Length:",), 400),
        (("Content-Length: 9999999999999999999",), 400),
        (("Transfer-Encoding: gzip, chunked",), 501),
        ((TE, TE), 400),
        (("Transfer-Encoding: xchunked",), 400),
        (("Transfer-Encoding: \x0bchunked",), 400),
        (("Transfer-Encoding : chunked",), 400),
        (("Transfer-Encoding:\n chunked",), 400),
        (("X: a\n b",), 400),
        (("X: a\x00b",), 400),
        ((": x",), 400),
        (("X",), 400),
        (("Host: another",), 400),
        ((CL, "Connection: close, content-length"), 400),
        (("Expect: miracles",), 417),
        ((CL, "Connection: upgrade", "Upgrade: websocket"), 400),
    ],
)
def test_headers_that_are_ambiguous_or_malformed_are_refused(
    lines: tuple[str, ...], status: int
) -> None:
    with pytest.raises(WireError) as refusal:
        request("\n".join(("POST / HTTP/1.1", "Host: m", *lines, "", "")))
    assert refusal.value.status == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\n\n", 400),
        ("GET /a b HTTP/1.1\nHost: m\n\n", 400),
        ("get / HTTP/1.1\nHost: m\n\n", 400),
        ("GET / HTTP/1.2\nHost: m\n\n", 400),
        ("GET / HTTP/2.0\nHost: m\n\n", 505),
        ("GET /\nHost: m\n\n", 505),
        ("CONNECT a:1 HTTP/1.1\nHost: a\n\n", 501),
        ("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n", 400),
    ],
)
def test_requests_that_are_not_spoken_here_are_refused(head: str, status: int) -> None:
    with pytest.raises(WireError) as refusal:
        request(head)
    assert refusal.value.status == status


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: m\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m\r\nX: y\n\nGET /admin HTTP/1.1\r\nHost: m\r\n\r\n",
        b"GET / HTTP/1.1\r\r\nHost: m\r\n\r\n",
    ],
)
def test_lines_that_do_not_end_in_cr_lf_are_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        parse_request(raw, client=b"1.2.3.4")


def test_a_line_that_two_could_read_differently_is_written_anew() -> None:
    head = request("GET  /x HTTP/1.1\nHost: m\n\n")
    assert head.forward.startswith(b"GET /x HTTP/1.1\r\n")


def test_upgrades_to_anything_but_a_websocket_are_not_passed_on() -> None:
    head = request(
        "GET / HTTP/1.1\nHost: m\nConnection: Upgrade, HTTP2-Settings\n"
        "Upgrade: h2c\nHTTP2-Settings: x\n\n"
    )
    assert not head.upgrades
    assert b"h2c" not in head.forward
    assert b"HTTP2" not in head.forward


def test_an_answer_with_an_ambiguous_length_is_refused() -> None:
    for lines in (
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 4",
    ):
        with pytest.raises(WireError) as refusal:
            parse_response(f"HTTP/1.1 200 OK\r\n{lines}\r\n\r\n".encode())
        assert refusal.value.status == 502


def test_an_http_10_answer_is_passed_on_as_11_and_its_connection_not_kept() -> None:
    head = parse_response(b"HTTP/1.0 200 Fine\r\nContent-Length: 3\r\n\r\n")
    assert head.forward == b"HTTP/1.1 200 Fine\r\nContent-Length: 3\r\n\r\n"
    assert not head.keep_alive


def test_for_a_client_without_chunks_the_coding_is_dropped_and_nothing_else() -> None:
    head = parse_response(b"HTTP/1.1 200 OK\r\nX: 1\r\nTransfer-Encoding: chunked\r\nY: 2\r\n\r\n")
    assert without_chunking(head) == b"HTTP/1.1 200 OK\r\nX: 1\r\nY: 2\r\n\r\n"


def body_of(parts: list[bytes], trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return chunks + b"0\r\n" + trailers + b"\r\n"


@given(
    parts=st.lists(st.binary(max_size=40), max_size=6),
    trailers=st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: 1\r\nB: 2\r\n"]),
    following=st.binary(max_size=10),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_the_end_of_a_chunked_body_is_found_wherever_the_bytes_are_cut(
    parts: list[bytes], trailers: bytes, following: bytes, cuts: list[int]
) -> None:
    body = body_of(parts, trailers)
    data = body + following
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks, inside, consumed = Chunks(), list[bytes](), 0
    for start, end in pairwise(edges):
        if chunks.done:
            break
        piece = b"??" + data[start:end]  # a head may stand before the body in the same read
        consumed += chunks.feed(piece, 2, into=inside) - 2
    assert chunks.done
    assert consumed == len(body)
    assert b"".join(inside) == b"".join(parts)


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3_0\r\nabc\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\n\n",
        b"fffffffffffffffff\r\n",
        b"1;" + b"x" * 5000,
    ],
)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_chunks_that_two_could_read_differently_are_refused(body: bytes, step: int) -> None:
    chunks = Chunks()
    with pytest.raises(WireError):  # noqa: PT012 - wherever it is cut, one of the feeds refuses
        for at in range(0, len(body), step):
            chunks.feed(body[at : at + step])
        assert chunks.done


@given(st.binary(max_size=200))
def test_no_bytes_whatever_make_the_parsers_fail_in_another_way(data: bytes) -> None:
    for parse in (lambda: parse_request(data, client=b""), lambda: parse_response(data)):
        try:
            parse()
        except WireError:
            continue
