# SPDX-License-Identifier: Apache-2.0
"""Only this file turns the elements of a tensor, in JSON or in bytes, into a numpy array and back.

JSON has no NaN and no infinities: going out they are `null`, and `null` coming in for a floating-
point tensor is NaN. Binary tensors carry them exactly.
"""

import struct
from collections.abc import Sequence
from math import prod

import numpy as np

from serving.core.tensors import DTYPES, Array, TensorSpec, datatype_of
from serving.errors import BadRequest, InferenceFailed

_KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "numbers"}


def dtype_of(name: str, datatype: object) -> np.dtype[np.generic]:
    """The numpy type of a datatype that a client wrote. Raises BadRequest."""
    if isinstance(datatype, str) and datatype in DTYPES:
        return DTYPES[datatype]
    raise BadRequest(
        f"tensor {name!r} has datatype {datatype!r}; supported are {', '.join(DTYPES)}"
    )


def from_json(name: str, data: object, *, datatype: str, shape: Sequence[int] | None) -> Array:
    """Nested or flat lists as an array.

    `shape` None: the shape of the nesting. Raises BadRequest.
    """
    if not isinstance(data, list):
        raise BadRequest(f"the data of tensor {name!r} must be a list")
    array = _text(name, data) if datatype == "BYTES" else _numbers(name, data, datatype)
    if shape is None or array.shape == tuple(shape):
        return array
    if array.ndim == 1 and array.size == prod(shape):
        return array.reshape(shape)
    raise BadRequest(
        f"the data of tensor {name!r} has shape {list(array.shape)}, declared is {list(shape)}"
    )


def _numbers(name: str, data: list[object], datatype: str) -> Array:
    dtype = DTYPES[datatype]
    try:
        array: Array = np.array(data)
        if array.dtype.kind == "O" and dtype.kind == "f":
            array = np.array(data, dtype=np.float64)  # null becomes NaN
        if array.dtype.kind in "Of" and dtype.kind in "iu" and _all_int(data):
            array = np.array(data, dtype=dtype)  # integers beyond INT64 were taken for numbers
    except (ValueError, TypeError, OverflowError) as e:
        raise BadRequest(f"the data of tensor {name!r} is no array of {datatype}: {e}") from e
    if array.size and not _may_become(array.dtype.kind, dtype.kind):
        raise BadRequest(f"the data of tensor {name!r} must be {_KINDS[dtype.kind]} for {datatype}")
    return _cast(name, array, datatype)


def _all_int(data: list[object]) -> bool:
    return all(type(e) is int for e in np.array(data, dtype=object).flat)


def _may_become(kind: str, wanted: str) -> bool:
    return kind == wanted or (kind in "iu" and wanted in "iuf")


def _cast(name: str, array: Array, datatype: str) -> Array:
    """To the datatype, refusing integers that do not fit and numbers that would overflow."""
    dtype = DTYPES[datatype]
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(datatype.lower())
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise BadRequest(
                f"the data of tensor {name!r} does not fit {datatype}: {bounds.min} to {bounds.max}"
            )
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError as e:
        raise BadRequest(f"the data of tensor {name!r} is too large for {datatype}") from e


def _text(name: str, data: list[object]) -> Array:
    shape, flat = _nesting(data)
    if len(flat) != prod(shape) or not all(isinstance(e, str) for e in flat):
        raise BadRequest(f"the data of tensor {name!r} must be strings in a regular nesting")
    return _objects(flat, shape)


def _nesting(data: list[object]) -> tuple[list[int], list[object]]:
    """The shape by the first elements, and all elements in row-major order."""
    shape = [len(data)]
    flat = data
    while flat and all(isinstance(e, list) for e in flat):
        rows = [e for e in flat if isinstance(e, list)]
        if len({len(row) for row in rows}) != 1:
            return shape, flat
        shape.append(len(rows[0]))
        flat = [e for row in rows for e in row]
    return shape, flat


def _objects(flat: Sequence[object], shape: Sequence[int]) -> Array:
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array.reshape(shape)


def from_binary(name: str, raw: memoryview, *, datatype: str, shape: Sequence[int]) -> Array:
    """Row-major little-endian elements as an array of its own memory. Raises BadRequest."""
    count = prod(shape)
    if datatype == "BYTES":
        return _objects(_bytes_elements(name, raw, count), shape)
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise BadRequest(
            f"tensor {name!r} has {len(raw)} bytes, {datatype} of shape {list(shape)} needs"
            f" {count * dtype.itemsize}"
        )
    if datatype == "BOOL":
        return np.frombuffer(raw, np.uint8).reshape(shape).astype(np.bool_)
    # The bytes start anywhere in the body; a copy is aligned, and does not keep the body alive.
    return np.frombuffer(raw, dtype).reshape(shape).copy()


def _bytes_elements(name: str, raw: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at + 4 <= len(raw) and len(elements) < count:
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + size > len(raw):
            break
        elements.append(bytes(raw[at : at + size]))
        at += size
    if len(elements) != count or at != len(raw):
        raise BadRequest(
            f"tensor {name!r}: its {len(raw)} bytes are not {count} BYTES elements, each a"
            " little-endian 32-bit length and that many bytes"
        )
    return elements


def to_binary(array: Array) -> bytes:
    """The inverse of `from_binary`."""
    if array.dtype.kind not in "OUS":
        dtype = array.dtype.newbyteorder("<")
        return np.ascontiguousarray(array, dtype).tobytes()
    parts: list[bytes] = []
    for element in array.flat:
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts += (struct.pack("<I", len(raw)), raw)
    return b"".join(parts)


def to_json_value(name: str, array: Array) -> object:
    """What orjson writes for an array, keeping its nesting.

    Raises BadRequest for bytes that are no text.
    """
    if array.dtype.kind not in "OUS":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    try:
        flat = [e.decode() if isinstance(e, bytes) else e for e in array.flat]
    except UnicodeDecodeError as e:
        raise BadRequest(
            f"output {name!r} holds bytes that are not UTF-8; ask for it with binary_data"
        ) from e
    return _objects(flat, array.shape).tolist()


def datatype_name(name: str, array: Array) -> str:
    """The protocol's datatype of an output. Raises InferenceFailed for one that it cannot carry."""
    datatype = datatype_of(array.dtype)
    if datatype is None:
        raise InferenceFailed(f"output {name!r} is of type {array.dtype}, which V2 cannot carry")
    return datatype


def raw_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape of a raw body of `size` bytes as the input `spec`. Raises BadRequest when it is not
    plain.

    One dimension of any size follows from the bytes; if there are two, the first is one row.
    """
    shape = list(spec.shape)
    free = [i for i, dim in enumerate(shape) if dim == -1]
    if len(free) == 2 and free[0] == 0:
        shape[free.pop(0)] = 1
    fixed = prod(dim for dim in shape if dim != -1)
    itemsize = DTYPES[spec.datatype].itemsize
    if spec.datatype == "BYTES" and fixed == 1:
        return (1,) * len(shape)
    known = fixed * itemsize
    if spec.datatype == "BYTES" or len(free) > 1 or known == 0 or (free and size % known):
        raise BadRequest(
            f"a raw body of {size} bytes cannot be input {spec.name!r}, {spec.datatype} of shape"
            f" {list(spec.shape)}; send JSON with the shape"
        )
    for i in free:
        shape[i] = size // known
    return tuple(shape)
