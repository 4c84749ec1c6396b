# SPDX-License-Identifier: Apache-2.0
"""Only this file knows which numpy type a datatype of the Open Inference Protocol is.

A BYTES tensor is a numpy array of objects that are `bytes` or `str`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Tensors = Mapping[str, Array]

DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def datatype_of(dtype: np.dtype[np.generic]) -> str | None:
    """The protocol's name of a numpy type; None where it has none (complex, dates)."""
    if dtype.kind in "US":
        return "BYTES"
    return _NAMES.get(dtype.newbyteorder("<"))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model. `shape`: -1 is a dimension of any size.

    `lenient`: an input that takes any name and any datatype (an estimator has neither); with the
    shape `(-1,)` it takes any rank too.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    lenient: bool = False


def misfit(spec: TensorSpec, tensor: Array) -> str | None:
    """Why `tensor` cannot be this input; None when it can."""
    datatype = datatype_of(tensor.dtype)
    if not spec.lenient and datatype != spec.datatype:
        return f"input {spec.name!r} has datatype {datatype}, the model takes {spec.datatype}"
    if spec.lenient and spec.shape == (-1,) and tensor.ndim >= 1:
        return None
    fits = tensor.ndim == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if fits:
        return None
    return (
        f"input {spec.name!r} has shape {list(tensor.shape)}, the model takes {list(spec.shape)}"
        " (-1: any size)"
    )
