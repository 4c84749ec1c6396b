# SPDX-License-Identifier: Apache-2.0
"""What a request asks for in tokens, told from its first bytes; and what is told of it on."""

import asyncio

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.activator.tokens import (
    LOOK_BYTES,
    MOST_KEYS,
    MOST_OUTPUT_TOKENS,
    asked_output_tokens,
    generates,
)
from tests.activator.peers import Front, Peers, get, post, until

CHAT = "/v1/chat/completions"


def asked(body: bytes) -> int | None:
    return asked_output_tokens(body, 0, len(body))


@pytest.mark.parametrize(
    ("path", "generative"),
    [
        ("/v1/completions", True),
        ("/v1/chat/completions", True),
        ("/v1/chat/completions/", True),
        ("/openai/v1/chat/completions", True),
        ("/v1/responses", True),
        ("/v1/messages", True),
        ("/generate", True),
        ("/generate_stream", True),
        ("/v2/models/m/generate", True),
        ("/v2/models/m/versions/3/generate_stream", True),
        ("/v2/models/m/infer", False),
        ("/v1/models/m:predict", False),
        ("/v1/embeddings", False),
        ("/v1/completions/x", False),
        ("/x/generate", False),
        ("/generated", False),
        ("", False),
    ],
)
def test_only_requests_for_generated_text_are_looked_at(path: str, generative: bool) -> None:
    """By path, and only where a body comes with it."""
    assert generates("POST", path) is generative
    assert not generates("GET", path)


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        pytest.param(b'{"max_tokens": 16}', 16, id="completions"),
        pytest.param(b'{"max_tokens":16,"stream":true}', 16, id="without blanks"),
        pytest.param(b'{"max_tokens"\n :\t 16\n}', 16, id="over several lines"),
        pytest.param(b'{"max_completion_tokens": 77}', 77, id="chat completions"),
        pytest.param(b'{"max_output_tokens": 5}', 5, id="responses"),
        pytest.param(b'{"parameters":{"max_new_tokens":20}}', 20, id="TGI"),
        pytest.param(b'{"text_input":"x","parameters":{"max_tokens":21}}', 21, id="KServe V2"),
        pytest.param(b'{"max_tokens": 0}', 0, id="none at all"),
        pytest.param(b'{"prompt":"x"}', None, id="not said"),
        pytest.param(b"", None, id="no body"),
        pytest.param(b'{"max_tokens": 1000000}', MOST_OUTPUT_TOKENS, id="as good as no limit"),
        pytest.param(
            b'{"max_tokens": ' + b"9" * 5000 + b"}", MOST_OUTPUT_TOKENS, id="5,000 digits"
        ),
        pytest.param(b'{"max_tokens": -5}', None, id="negative"),
        pytest.param(b'{"max_tokens": "16"}', None, id="in quotes"),
        pytest.param(b'{"max_tokens": null}', None, id="null"),
        pytest.param(b'{"max_tokens": 1.5}', None, id="a fraction"),
        pytest.param(b'{"max_tokens": 1e3}', None, id="an exponent"),
        pytest.param(b'{"max_tokens": 12', None, id="cut off within the number"),
        pytest.param(b'{"max_tokens_per_doc": 9}', None, id="another key"),
        pytest.param(b'{"max_retries": 9, "max_tokens": 3}', 3, id="after a key like it"),
        pytest.param(b'{"stop": "max_tokens", "n": 2}', None, id="a value"),
        pytest.param(b'{"stop": ["max_tokens", 2]}', None, id="in a list"),
        pytest.param(
            b'{"tools":[{"properties":{"max_tokens":{"type":"integer"}}}],"max_tokens":8}',
            8,
            id="described to a tool",
        ),
        pytest.param(
            b'{"max_tokens": 8, "tools": [{"properties": {"max_tokens": {}}}]}',
            8,
            id="described to a tool after it",
        ),
        pytest.param(b'{"max_tokens": 8, "max_completion_tokens": 9}', 9, id="the last of two"),
    ],
)
def test_what_an_answer_may_take_is_found_where_the_client_says_it(
    body: bytes, allowed: int | None
) -> None:
    """Whole numbers alone; everything else says nothing."""
    assert asked(body) == allowed


@pytest.mark.parametrize(
    "prompt",
    [
        'set "max_tokens": 5 please',
        '{"max_tokens": 5}',
        '\\"max_tokens": 5,',
        "ends in a backslash \\",
        '"max_tokens": 5}',
    ],
)
def test_a_prompt_that_speaks_of_limits_sets_none(prompt: str) -> None:
    """Whatever text is in a string of the body, as any JSON library writes it."""
    body = {"messages": [{"role": "user", "content": prompt}]}
    assert asked(orjson.dumps(body)) is None
    assert asked(orjson.dumps(body | {"max_tokens": 11})) == 11


@given(st.text(), st.integers(0, MOST_OUTPUT_TOKENS))
def test_no_prompt_hides_or_changes_the_limit(prompt: str, limit: int) -> None:
    """Any text at all, before and after."""
    assert asked(orjson.dumps({"prompt": prompt, "max_tokens": limit, "suffix": prompt})) == limit


pieces = st.sampled_from(
    [b'"max_tokens"', b'"max_', b"tokens", b'"', b"\\", b":", b" ", b"7", b"-", b"}", b",", b"\xff"]
)


@given(st.lists(pieces | st.binary(max_size=4), max_size=40).map(b"".join), st.data())
def test_any_bytes_are_taken(body: bytes, data: st.DataObject) -> None:
    """Nothing raises, and what is found is a number that stands there."""
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    found = asked_output_tokens(body, start, end)
    assert found is None or (0 <= found <= MOST_OUTPUT_TOKENS and b"max_" in body[start:end])


def test_only_the_beginning_of_a_body_is_looked_at() -> None:
    """Beyond it a limit is not found, however large the body."""
    limit = b'"max_tokens": 5}'
    assert asked(b" " * (LOOK_BYTES - len(limit)) + limit) == 5
    assert asked(b" " * LOOK_BYTES + limit) is None


def test_a_body_full_of_keys_is_given_up_on() -> None:
    """The work is bounded by a number of keys, not by what a client sends."""
    assert asked(b'"max_tokens": 5}' + b'"max_' * (MOST_KEYS - 1)) == 5
    assert asked(b'"max_tokens": 5}' + b'"max_' * MOST_KEYS) is None


async def test_held_requests_are_told_in_tokens_until_they_go(front: Front, peers: Peers) -> None:
    body = b'{"prompt": "x", "max_tokens": 30}  '
    clients = [await peers.client(front, post(body, CHAT)) for _ in range(2)]
    clients.append(await peers.client(front, post(b'{"prompt": 1}', CHAT)))
    await front.holds(3)
    told = front.demand()
    assert told.held_prompt_tokens == 2 * (len(body) // 4) + 13 // 4
    assert (told.held_output_tokens, told.held_open_ended) == (60, 1)
    front.follow((await peers.replica()).endpoint())
    for client in clients:
        assert (await client.message()).status == 200
    told = front.demand()
    assert (told.held_prompt_tokens, told.held_output_tokens, told.held_open_ended) == (0, 0, 0)
    assert told.prompt_tokens_total == 2 * (len(body) // 4) + 13 // 4
    assert (told.output_tokens_asked_total, told.open_ended_total) == (60, 1)


async def test_a_client_that_leaves_takes_its_tokens_along(front: Front, peers: Peers) -> None:
    client = await peers.client(front, post(b'{"max_tokens": 30}', CHAT))
    await front.holds(1)
    client.close()
    await front.holds(0)
    told = front.demand()
    assert (told.held_output_tokens, told.output_tokens_asked_total) == (0, 30)


async def test_requests_for_no_text_ask_for_no_tokens(front: Front, peers: Peers) -> None:
    """Whatever their bodies look like; also between two that do, on one connection."""
    client = await peers.client(front)
    front.follow((await peers.replica()).endpoint())
    for path in (CHAT, "/v1/models/m:predict", CHAT):
        client.send(post(b'{"max_tokens": 30}', path))
        await client.message()
    client.send(get("/x"))
    await client.message()
    assert front.demand().output_tokens_asked_total == 60
    assert front.demand().open_ended_total == 0


@pytest.mark.parametrize("held", [True, False], ids=["held", "forwarded"])
@pytest.mark.parametrize(
    ("rest", "output", "open_ended"),
    [(b', "max_tokens": 30}', 30, 0), (b', "temperature":0}', 0, 1)],
    ids=["says it late", "never says it"],
)
async def test_a_body_that_comes_after_its_head_is_looked_at_as_it_comes(
    front: Front, peers: Peers, held: bool, rest: bytes, output: int, open_ended: int
) -> None:
    if not held:
        front.follow((await peers.replica()).endpoint())
    request = post(b'{"prompt": "x"' + rest, CHAT)
    cut = request.index(b"{")
    client = await peers.client(front, request[:cut])
    await (front.holds(1) if held else front.flies(1))
    told = front.demand()
    assert (told.output_tokens_asked_total, told.open_ended_total) == (0, 0)
    client.send(request[cut : -len(rest)])
    await asyncio.sleep(0)
    client.send(rest)
    await until(lambda: _allowed(front) == (output, open_ended))
    told = front.demand()
    assert told.held_output_tokens == (output if held else 0)
    assert told.held_open_ended == (open_ended if held else 0)
    assert told.prompt_tokens_total == len(request[cut:]) // 4
    if held:
        front.follow((await peers.replica()).endpoint())
    assert (await client.message()).body == request[cut:]


def _allowed(front: Front) -> tuple[int, int]:
    told = front.demand()
    return told.output_tokens_asked_total, told.open_ended_total


async def test_chunked_bodies_are_looked_at_too(front: Front, peers: Peers) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b'{"max_tokens": 30}'
    client = await peers.client(front, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    await front.holds(1)
    assert front.demand().held_output_tokens == 30
    front.follow((await peers.replica()).endpoint())
    assert (await client.message()).status == 200


async def test_the_limit_of_one_request_is_not_taken_for_another(
    front: Front, peers: Peers
) -> None:
    """Two on one line: the first says nothing, and what follows it is not its body."""
    both = post(b'{"prompt": "x"}', CHAT) + post(b'{"max_tokens": 30}', CHAT)
    client = await peers.client(front, both)
    await front.holds(1)
    assert (front.demand().held_output_tokens, front.demand().held_open_ended) == (0, 1)
    front.follow((await peers.replica()).endpoint())
    for _ in range(2):
        await client.message()
    assert _allowed(front) == (30, 1)


async def test_a_huge_body_is_open_ended_once_its_beginning_has_gone_by(
    front: Front, peers: Peers
) -> None:
    """Nothing more is looked for, though a limit stands at its end."""
    front.follow((await peers.replica()).endpoint())
    body = b'{"prompt": "' + b"x" * (4 * LOOK_BYTES) + b'", "max_tokens": 30}'
    client = await peers.client(front, post(body, CHAT))
    assert (await client.message()).body == body
    assert _allowed(front) == (0, 1)
    assert front.demand().prompt_tokens_total == len(body) // 4
