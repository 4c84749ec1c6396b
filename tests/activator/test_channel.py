# SPDX-License-Identifier: Apache-2.0
"""The channel's language: what is written is read back, and nonsense is named as such."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.channel import (
    ChannelError,
    Hello,
    Lines,
    Listening,
    Report,
    Routes,
    decode_report,
    decode_routes,
    encode_hello,
    encode_report,
    encode_routes,
)
from autoscaler.core.routes import Backend, Demand, Endpoint, Route

words = st.text(max_size=10)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
endpoints = st.builds(Endpoint, words, words, counts, st.none() | counts, st.booleans())
backends = st.builds(Backend, words, words, words, words, st.none() | counts)
routes = st.builds(
    Route, words, words, counts, st.lists(endpoints, max_size=3).map(tuple), counts, counts,
    seconds, st.lists(words, max_size=3).map(tuple), st.none() | backends, st.booleans(), words,
    words,
)  # fmt: skip
demands = st.builds(
    Demand, words, counts, counts, counts, st.dictionaries(words, counts, max_size=3), counts,
    counts, counts, counts, counts, counts, seconds, seconds,
    counts, counts, counts, counts, counts, counts,
)  # fmt: skip
reports = st.builds(
    Report, counts, st.lists(demands, max_size=3).map(tuple),
    st.lists(st.builds(Listening, words, counts, words), max_size=3).map(tuple),
    st.lists(words, max_size=3).map(tuple), st.dictionaries(words, seconds, max_size=3),
    st.booleans(),
)  # fmt: skip


@given(counts, st.lists(routes, max_size=4).map(tuple), st.integers(1, 100))
def test_routes_are_read_back_as_they_were_written(
    version: int, table: tuple[Route, ...], activators: int
) -> None:
    line = encode_routes(version, table, activators=activators)
    assert line.count(b"\n") == 1
    assert decode_routes(line) == Routes(version, table, activators)


@given(reports)
def test_reports_are_read_back_as_they_were_written(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


def test_an_activator_of_another_version_is_understood() -> None:
    """What an older one does not tell is 0, and what only a newer one tells is left out."""
    line = encode_report(Report(1, (Demand("m", held=3),)))
    older = line.replace(b'"held_output_tokens":0,', b"")
    newer = line.replace(b'"held":3', b'"held":3,"held_images":[7]')
    assert older != line != newer
    assert decode_report(older) == decode_report(newer) == decode_report(line)


def test_a_hello_is_read_back_as_it_was_written() -> None:
    hello = Hello(1, 2, 4711, "abc", "pod-1", "secret")
    assert decode_report(encode_hello(hello)) == hello


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b)), st.data())
def test_lines_are_the_same_wherever_the_bytes_are_cut(
    lines: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    reader, read, at = Lines(), list[bytes](), 0
    while at < len(stream):
        step = data.draw(st.integers(1, 9))
        read += reader.feed(stream[at : at + step])
        at += step
    assert read == lines


def test_a_line_without_end_is_an_error_before_it_fills_the_memory() -> None:
    lines = Lines(limit_bytes=1000)
    assert [lines.feed(b"x" * 100) for _ in range(10)] == [[]] * 10
    with pytest.raises(ChannelError, match="longer than 1000"):
        lines.feed(b"x")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[1]",
        b"{}",
        b'{"version": 1}',
        b'{"version": "x", "routes": [], "demand": [], "listening": [], "waking": []}',
        b'{"version": 1, "routes": [{"surprise": 1}], "demand": [1], "listening": []}',
        b'{"version": 1, "routes": [7], "demand": [], "listening": [], "waking": [], "waits_s": 7}',
        b'{"hello": {"process": 1}}',
    ],
)
def test_what_is_not_of_the_language_is_named_as_such(line: bytes) -> None:
    for decode in (decode_routes, decode_report):
        with pytest.raises(ChannelError):
            decode(line)
