# SPDX-License-Identifier: Apache-2.0
"""A head that is read by its likeness to another means exactly what parsing it would have said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.activator.wire import (
    RequestHead,
    ResponseHead,
    WireError,
    parse_request,
    parse_response,
    request_like,
    response_like,
)

CLIENT = b"10.0.0.9"
REQUEST = (
    b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n"
    b"X-Request-Id: 1\r\nContent-Length: 200\r\n\r\n"
)
ANSWER = b"HTTP/1.1 200 OK\r\nDate: now\r\nX-Request-Id: 1\r\nContent-Length: 150\r\n\r\n"

names = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"content-length",
        b"Transfer-Encoding",
        b"Connection",
        b"TE",
        b"Expect",
        b"Upgrade",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"Date",
        b"X-Request-Id",
        b"Accept",
        b"",
        b"X Y",
    ]
)
values = st.one_of(
    st.sampled_from(
        [
            b"a",
            b"b",
            b"5",
            b"6",
            b"0x5",
            b"+5",
            b" 5",
            b"5 ",
            b"5, 5",
            b"chunked",
            b"Chunked",
            b"identity",
            b"close",
            b"keep-alive",
            b"host",
            b"100-continue",
            b"websocket",
            b"",
        ]
    ),
    st.binary(max_size=6),
)
separators = st.sampled_from([b": ", b":", b":  ", b" : "])
lines = st.lists(st.tuples(names, separators, values), max_size=5)
starts = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"POST /a?c HTTP/1.1", b"GET / HTTP/1.0"]
)
statuses = st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.0 200 OK"])


def written(start: bytes, headers: list[tuple[bytes, bytes, bytes]]) -> bytes:
    return b"\r\n".join([start, *(b"".join(parts) for parts in headers)]) + b"\r\n\r\n"


def said(head: RequestHead | ResponseHead) -> dict[str, object]:
    return {name: getattr(head, name) for name in head.__slots__ if name != "mould"}


@given(starts, lines, st.data())
def test_a_request_read_by_likeness_is_what_parsing_says(
    start: bytes, headers: list[tuple[bytes, bytes, bytes]], data: st.DataObject
) -> None:
    """Whatever changes between two requests: the shortcut agrees with the parser, or declines."""
    try:
        known = parse_request(written(start, headers), client=CLIENT)
    except WireError:
        return
    raw = written(data.draw(starts), [
        (name, data.draw(separators), data.draw(values)) if data.draw(st.booleans()) else
        (name, separator, value)
        for name, separator, value in headers
    ])  # fmt: skip
    quick = request_like(known, raw)
    if quick is not None:
        assert said(quick) == said(parse_request(raw, client=CLIENT))


@given(statuses, lines, st.data())
def test_an_answer_read_by_likeness_is_what_parsing_says(
    start: bytes, headers: list[tuple[bytes, bytes, bytes]], data: st.DataObject
) -> None:
    """The same for answers."""
    try:
        known = parse_response(written(start, headers))
    except WireError:
        return
    raw = written(data.draw(statuses), [
        (name, separator, data.draw(values) if data.draw(st.booleans()) else value)
        for name, separator, value in headers
    ])  # fmt: skip
    quick = response_like(known, raw)
    if quick is not None:
        assert said(quick) == said(parse_response(raw))


def test_another_id_and_another_length_are_read_without_parsing() -> None:
    """The shortcut is taken for what it is meant for; else the properties above prove nothing."""
    known = parse_request(REQUEST, client=CLIENT)
    head = request_like(known, REQUEST.replace(b"Id: 1", b"Id: 22").replace(b"200", b"1999"))
    assert head is not None
    assert head.length == 1999
    again = request_like(head, REQUEST)
    assert again is not None
    assert said(again) == said(known)
    answer = response_like(parse_response(ANSWER), ANSWER.replace(b"now", b"then"))
    assert answer is not None
    assert answer.length == 150


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Id: 1", b"Id: 1\x00"),
        (b"Id: 1", b"Id: 1\n"),
        (b"Id: 1", b"Id: 1\nTransfer-Encoding: chunked"),
        (b"Content-Length: 200", b"Content-Length: 2 00"),
        (b"Content-Length: 200", b"Content-Length: " + b"9" * 19),
        (b"Content-Length: 200", b"Content-Length:200 "),
        (b"Host: a", b"Host: b"),
        (b"X-Request-Id: 1", b"Transfer-Encoding: chunked"),
        (b"X-Request-Id: 1", b" folded"),
        (b"/v1/models/m:predict", b"/v1/models/n:predict"),
        (b"POST", b"HEAD"),
        (b"Accept: */*\r\n", b""),
        (b"Accept: */*\r\n", b"Accept: */*\r\nExpect: 100-continue\r\n"),
    ],
    ids=lambda part: repr(part),
)
def test_what_could_mean_something_else_is_left_to_the_parser(old: bytes, new: bytes) -> None:
    """Anything but a plain value in a header of no consequence, or plain digits, is parsed."""
    known = parse_request(REQUEST, client=CLIENT)
    assert request_like(known, REQUEST.replace(old, new)) is None
