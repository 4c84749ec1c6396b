# SPDX-License-Identifier: Apache-2.0
"""The rules of batching and admission, and the codec of tensors, as properties."""

from collections import deque

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.core.admission import Pace, refusal
from serving.core.batching import Send, Wait, Waiting, join, next_batch, rows_of, split
from serving.core.tensors import DTYPES, Array, TensorSpec, datatype_of, misfit
from serving.errors import BadRequest
from serving.protocols.elements import from_binary, from_json, raw_shape, to_binary, to_json_value
from serving.protocols.http import to_json

REQUESTS = st.lists(
    st.builds(
        Waiting,
        rows=st.integers(1, 12),
        key=st.sampled_from(["a", "b", None]),
        since_s=st.floats(0, 10),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize(
    ("queue", "max_rows", "max_delay_s", "decision"),
    [
        pytest.param([(1, "a", 0)], 4, 0.0, Send(1), id="without a delay what is there goes"),
        pytest.param([(1, "a", 0)], 4, 2.0, Wait(1.0), id="with a delay it waits for more"),
        pytest.param([(1, "a", 0)], 4, 1.0, Send(1), id="once the delay is over it goes"),
        pytest.param([(2, "a", 1), (2, "a", 1)], 4, 9.0, Send(2), id="a full batch goes at once"),
        pytest.param([(3, "a", 1), (2, "a", 1)], 4, 9.0, Send(1), id="no room for the next: go"),
        pytest.param([(1, "a", 1), (1, "b", 1)], 4, 9.0, Send(1), id="another shape behind: go"),
        pytest.param([(9, "a", 1), (1, "a", 1)], 4, 9.0, Send(1), id="too wide goes alone"),
        pytest.param([(1, None, 1), (1, None, 1)], 4, 9.0, Send(1), id="no rows goes alone"),
        pytest.param([(1, "a", 5)], 4, 2.0, Wait(2.0), id="a clock gone back waits, but no longer"),
        pytest.param([(1, "a", 1), (1, "a", 1)], 1, 0.0, Send(1), id="a largest batch of 1 is off"),
    ],
)
def test_the_next_batch(
    queue: list[tuple[int, str | None, float]],
    max_rows: int,
    max_delay_s: float,
    decision: Send | Wait,
) -> None:
    waiting = [Waiting(rows, key, float(since_s)) for rows, key, since_s in queue]
    assert next_batch(waiting, now_s=1.0, max_rows=max_rows, max_delay_s=max_delay_s) == decision


@given(REQUESTS, st.integers(1, 16))
def test_every_request_leaves_the_queue_once_in_order_and_no_joined_batch_is_too_large(
    requests: list[Waiting], max_rows: int
) -> None:
    queue = deque(requests)
    left: list[Waiting] = []
    while queue:
        decision = next_batch(queue, now_s=0.0, max_rows=max_rows, max_delay_s=0.0)
        assert isinstance(decision, Send)
        batch = [queue.popleft() for _ in range(decision.count)]
        assert len({r.key for r in batch}) == 1
        assert len(batch) == 1 or (
            batch[0].key is not None and sum(r.rows for r in batch) <= max_rows
        )
        left += batch
    assert left == requests


@given(REQUESTS, st.integers(1, 16), st.floats(0, 20), st.floats(0, 5))
def test_nobody_waits_longer_than_the_delay(
    requests: list[Waiting], max_rows: int, now_s: float, max_delay_s: float
) -> None:
    decision = next_batch(requests, now_s=now_s, max_rows=max_rows, max_delay_s=max_delay_s)
    if isinstance(decision, Wait):
        assert 0 < decision.for_s <= max_delay_s


@given(st.lists(st.integers(1, 5), min_size=1, max_size=10))
def test_joined_rows_split_into_what_each_request_sent(sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    requests = [{"x": rng.random((n, 3)), "y": rng.integers(0, 9, (n,))} for n in sizes]
    parts = split(join(requests), sizes)
    assert parts is not None
    for part, request in zip(parts, requests, strict=True):
        for name in request:
            np.testing.assert_array_equal(part[name], request[name])


@pytest.mark.parametrize("output", [np.zeros(3), np.zeros((1, 4)), np.float64(1)])
def test_an_output_without_one_entry_a_row_cannot_be_split(output: Array) -> None:
    assert split({"y": np.asarray(output)}, [1, 1]) is None


@pytest.mark.parametrize("shapes", [[(2, 1), (3, 1)], [()], [(0, 4)], [(1,), ()]])
def test_inputs_without_common_rows_are_a_reason_and_no_number(
    shapes: list[tuple[int, ...]],
) -> None:
    inputs = {str(i): np.zeros(shape) for i, shape in enumerate(shapes)}
    assert "common first dimension" in str(rows_of(inputs))


@given(st.integers(0, 1000), st.integers(1, 500), st.integers(1, 8), st.floats(0, 1e6))
def test_the_door_is_open_exactly_below_the_limit_and_the_retry_is_bounded(
    queued: int, limit: int, slots: int, batch_s: float
) -> None:
    refused = refusal(
        queued=queued, limit=limit, slots=slots, pace=Pace().after(batch_s, requests=3)
    )
    assert (refused is None) == (queued < limit)
    assert refused is None or 1 <= refused.retry_after_s <= 30


def test_the_retry_is_the_time_that_the_queue_takes_to_empty() -> None:
    pace = Pace().after(0.5, requests=4)
    refused = refusal(queued=80, limit=80, slots=2, pace=pace)
    assert refused is not None
    assert refused.retry_after_s == 5  # 80 / 4 batches, two at a time, half a second each


def test_the_pace_follows_the_latest_batches() -> None:
    pace = Pace()
    for _ in range(50):
        pace = pace.after(2.0, requests=8)
    assert pace == Pace(2.0, 8.0)
    assert 2.0 < pace.after(4.0, requests=8).batch_s < 4.0


SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from([n for n in DTYPES if n != "BYTES"]).flatmap(
    lambda name: arrays.arrays(DTYPES[name], SHAPES)
)


def _objects(elements: list[bytes]) -> Array:
    out = np.empty(len(elements), dtype=object)
    out[:] = elements
    return out


@given(NUMBERS)
def test_numbers_survive_the_binary_form_bit_by_bit(array: Array) -> None:
    datatype = datatype_of(array.dtype)
    assert datatype is not None
    raw = to_binary(array)
    back = from_binary("t", memoryview(raw), datatype=datatype, shape=array.shape)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_survive_the_binary_form(elements: list[bytes]) -> None:
    raw = to_binary(_objects(elements))
    back = from_binary("t", memoryview(raw), datatype="BYTES", shape=[len(elements)])
    assert back.tolist() == elements


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x01\x00\x00", b"\x02\x00\x00\x00a", b"\x01\x00\x00\x00ab", b"\xff\xff\xff\xffa"],
    ids=["nothing", "half a length", "too short", "one byte too many", "a huge length"],
)
def test_bytes_that_are_not_one_whole_element_are_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="are not 1 BYTES elements"):
        from_binary("t", memoryview(raw), datatype="BYTES", shape=[1])


@given(st.binary(max_size=64), st.sampled_from(list(DTYPES)), st.integers(0, 8))
def test_any_bytes_are_a_tensor_or_a_bad_request(raw: bytes, datatype: str, count: int) -> None:
    try:
        array = from_binary("t", memoryview(raw), datatype=datatype, shape=[count])
    except BadRequest:
        return
    assert array.shape == (count,)


@given(st.sampled_from([n for n in DTYPES if n != "BYTES"]), st.data())
def test_finite_numbers_survive_the_json_form(datatype: str, data: st.DataObject) -> None:
    dtype = DTYPES[datatype]
    elements = arrays.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    shapes = arrays.array_shapes(max_dims=3, max_side=3)
    array = data.draw(arrays.arrays(dtype, shapes, elements=elements))
    sent = orjson.loads(to_json(to_json_value("t", array)))
    back = from_json("t", sent, datatype=datatype, shape=array.shape)
    np.testing.assert_array_equal(back, array)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from(list(DTYPES)))
def test_any_json_is_a_tensor_or_a_bad_request(data: object, datatype: str) -> None:
    try:
        array = from_json("t", data, datatype=datatype, shape=None)
    except BadRequest:
        return
    assert array.dtype == DTYPES[datatype]


def test_bytes_that_are_no_text_ask_for_the_binary_form() -> None:
    with pytest.raises(BadRequest, match="binary_data"):
        to_json_value("y", _objects([b"\xff"]))


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "expected"),
    [
        ("FP32", (-1, 4), 32, (2, 4)),
        ("FP32", (3,), 12, (3,)),
        ("FP32", (-1, -1), 8, (1, 2)),
        ("BYTES", (-1,), 7, (1,)),
        ("BYTES", (-1, 1), 7, (1, 1)),
        ("FP32", (-1, 4), 15, None),
        ("FP32", (-1, -1, -1), 8, None),
        ("BYTES", (-1, 2), 7, None),
        ("FP32", (-1, 0), 0, None),
    ],
)
def test_the_shape_of_a_raw_body_follows_from_its_size(
    datatype: str, shape: tuple[int, ...], size: int, expected: tuple[int, ...] | None
) -> None:
    spec = TensorSpec("x", datatype, shape)
    if expected is None:
        with pytest.raises(BadRequest, match="raw body"):
            raw_shape(spec, size)
    else:
        assert raw_shape(spec, size) == expected


def test_a_lenient_input_takes_any_type_but_not_any_width() -> None:
    spec = TensorSpec("input-0", "FP64", (-1, 4), lenient=True)
    assert misfit(spec, np.zeros((2, 4), np.int8)) is None
    assert "[-1, 4]" in str(misfit(spec, np.zeros((2, 3))))
    assert misfit(TensorSpec("input-0", "FP64", (-1,), lenient=True), np.zeros((2, 3))) is None


def test_what_the_protocol_cannot_carry_has_no_datatype() -> None:
    assert datatype_of(np.dtype(np.complex64)) is None
    assert datatype_of(np.dtype("U3")) == "BYTES"
    assert datatype_of(np.dtype(">f4")) == "FP32"
