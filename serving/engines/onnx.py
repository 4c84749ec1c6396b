# SPDX-License-Identifier: Apache-2.0
"""Only this file touches onnxruntime. Models run on the CPU.

Inputs and outputs are the session's own. An output that is no tensor (the list of maps that
converters write for class probabilities) is left out: neither protocol can carry it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serving.core.tensors import Array, Tensors, TensorSpec
from serving.engines import LoadOptions
from serving.errors import BadRequest, InferenceFailed, ModelNotLoaded

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
)


def load(path: Path, options: LoadOptions) -> "OnnxEngine":
    """Make a session whose threads are bounded by `options.threads` and do not spin while idle."""
    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = options.threads
    wanted.inter_op_num_threads = 1
    wanted.log_severity_level = 3  # errors; its warnings speak to the author of the graph
    wanted.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), wanted, providers=["CPUExecutionProvider"]
        )
    except (*_ORT_ERRORS, ort_errors.InvalidArgument) as e:
        raise ModelNotLoaded(
            f"{path} is not a model that onnxruntime {onnxruntime.__version__} can run: {_line(e)}"
        ) from e
    return OnnxEngine(session, path)


class OnnxEngine:
    """A session of onnxruntime as a model."""

    platform = "onnxruntime_onnx"

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        foreign = [i.name for i in session.get_inputs() if i.type not in DATATYPES]
        self.inputs = tuple(_specs(session.get_inputs()))
        self.outputs = tuple(_specs(session.get_outputs()))
        if foreign or not self.outputs:
            raise ModelNotLoaded(
                f"{path} cannot be served: "
                + (
                    f"inputs {foreign} are no tensors"
                    if foreign
                    else "none of its outputs is a tensor"
                )
            )
        self.default_outputs = tuple(o.name for o in self.outputs)
        tensors = (*self.inputs, *self.outputs)
        self.by_row = all(len(t.shape) > 0 and t.shape[0] == -1 for t in tensors)
        self._text = {i.name for i in self.inputs if i.datatype == "BYTES"}

    def infer(self, inputs: Tensors, outputs: Sequence[str]) -> Tensors:
        """Run the session."""
        feed = {n: _as_text(n, t) if n in self._text else t for n, t in inputs.items()}
        try:
            values = self._session.run(list(outputs), feed)
        except ort_errors.InvalidArgument as e:
            raise BadRequest(f"onnxruntime refuses the inputs: {_line(e)}") from e
        except _ORT_ERRORS as e:
            raise InferenceFailed(f"onnxruntime failed: {_line(e)}") from e
        return dict(zip(outputs, values, strict=True))


def _specs(nodes: Sequence[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            node.name,
            DATATYPES[node.type],
            tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape),
        )
        for node in nodes
        if node.type in DATATYPES
    ]


def _as_text(name: str, tensor: Array) -> Array:
    """Strings as onnxruntime takes them: objects of type str."""
    out = np.empty(tensor.shape, dtype=object)
    try:
        out.reshape(-1)[:] = [e.decode() if isinstance(e, bytes) else e for e in tensor.flat]
    except UnicodeDecodeError as e:
        raise BadRequest(f"input {name!r} holds bytes that are not UTF-8: {e}") from e
    return out


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
