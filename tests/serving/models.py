# SPDX-License-Identifier: Apache-2.0
"""Small models for the tests, written by the libraries that users write them with."""

from pathlib import Path

import joblib
import numpy as np
import onnx
import skops.io
from onnx import TensorProto as T
from onnx import helper
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

OPSET = [helper.make_opsetid("", 20)]
IR_VERSION = 10
TYPES = {
    "BOOL": T.BOOL,
    "UINT8": T.UINT8,
    "UINT16": T.UINT16,
    "UINT32": T.UINT32,
    "UINT64": T.UINT64,
    "INT8": T.INT8,
    "INT16": T.INT16,
    "INT32": T.INT32,
    "INT64": T.INT64,
    "FP16": T.FLOAT16,
    "FP32": T.FLOAT,
    "FP64": T.DOUBLE,
    "BYTES": T.STRING,
}


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_add(path: Path) -> None:
    """`sum` and `difference` of `a` and `b`, FP32 [-1, 2]."""
    shape: list[str | int | None] = ["rows", 2]
    ins = [helper.make_tensor_value_info(n, T.FLOAT, shape) for n in ("a", "b")]
    outs = [helper.make_tensor_value_info(n, T.FLOAT, shape) for n in ("sum", "difference")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    _save(helper.make_graph(nodes, "add", ins, outs), path)


def write_echo(path: Path, datatype: str) -> None:
    """`out` is `in`, of one datatype, [-1, -1]."""
    info = [helper.make_tensor_value_info(n, TYPES[datatype], ["r", "c"]) for n in ("in", "out")]
    node = helper.make_node("Identity", ["in"], ["out"])
    _save(helper.make_graph([node], "echo", info[:1], info[1:]), path)


def write_distinct(path: Path) -> None:
    """`y` are the distinct rows of `x`: as many as there are, so they may seem one a row of `x`."""
    x = helper.make_tensor_value_info("x", T.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", T.FLOAT, ["m", 2])
    node = helper.make_node("Unique", ["x"], ["y"], axis=0)
    _save(helper.make_graph([node], "distinct", [x], [y]), path)


def write_work(path: Path) -> None:
    """Real work of any length: a 512 x 512 matrix times itself, `times` [1] times, 10 ms each."""
    size = 512
    names = ("iteration", "go_on", "state", "go_on_out", "state_out")
    kinds: tuple[tuple[int, list[int]], ...] = (
        (T.INT64, []),
        (T.BOOL, []),
        (T.FLOAT, [size, size]),
        (T.BOOL, []),
        (T.FLOAT, [size, size]),
    )
    info = [
        helper.make_tensor_value_info(n, kind, shape)
        for n, (kind, shape) in zip(names, kinds, strict=True)
    ]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("MatMul", ["state", "state"], ["state_out"]),
        ],
        "body",
        info[:3],
        info[3:],
    )
    value = helper.make_tensor("value", T.FLOAT, [1], [1.0 / size])
    nodes = [
        helper.make_node("Squeeze", ["times"], ["count"]),
        helper.make_node("ConstantOfShape", ["size"], ["begin"], value=value),
        helper.make_node("Loop", ["count", "", "begin"], ["end"], body=body),
        helper.make_node("ReduceMean", ["end"], ["mean"], keepdims=1),
        helper.make_node("Identity", ["mean"], ["y"]),
    ]
    times = helper.make_tensor_value_info("times", T.INT64, [1])
    y = helper.make_tensor_value_info("y", T.FLOAT, [1, 1])
    shape = helper.make_tensor("size", T.INT64, [2], [size, size])
    _save(helper.make_graph(nodes, "work", [times], [y], [shape]), path)


def write_sklearn(folder: Path) -> None:
    """`iris.skops`, `iris.joblib`, and `forest.skops` with a type that skops does not trust."""
    features, species = load_iris(return_X_y=True)
    iris = LogisticRegression(max_iter=1000).fit(features, species)
    skops.io.dump(iris, folder / "iris.skops")
    joblib.dump(iris, folder / "iris.joblib")
    skops.io.dump(RandomForestClassifier(3).fit(features, species), folder / "forest.skops")


def write_all(folder: Path) -> None:
    """Every model of the tests."""
    write_add(folder / "add.onnx")
    write_distinct(folder / "distinct.onnx")
    write_work(folder / "work.onnx")
    for datatype in TYPES:
        write_echo(folder / f"echo-{datatype}.onnx", datatype)
    write_sklearn(folder)


SAMPLES: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[0.5, -2.0, 65504.0]], np.float16),
    "FP32": np.array([[0.1, -2.5, 3.4e38]], np.float32),
    "FP64": np.array([[0.1, -2.5, 1e300]], np.float64),
    "BYTES": np.array([[b"tide", b"", "Fluß".encode()]], object),
}
