# SPDX-License-Identifier: Apache-2.0
"""A V2 client that is not ours speaks to the worker."""

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.serving.models import SAMPLES
from tests.serving.processes import RunningWorker


@pytest.fixture
def client(worker: RunningWorker) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(worker.address)
    yield client
    client.close()


def _input(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def test_the_client_sees_a_live_and_ready_server_and_model(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add")
    assert client.is_model_ready("add", "1")
    assert client.get_server_metadata()["name"] == "tidegate"


def test_the_client_reads_metadata(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("add")
    assert metadata["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "b", "datatype": "FP32", "shape": [-1, 2]},
    ]
    assert [o["name"] for o in metadata["outputs"]] == ["sum", "difference"]


def test_the_client_lists_the_repository(client: triton.InferenceServerClient) -> None:
    states = {row["name"]: row["state"] for row in client.get_model_repository_index()}
    assert states["add"] == states["sklearn-iris"] == "READY"


def test_the_client_reads_statistics(client: triton.InferenceServerClient) -> None:
    rows = np.ones((3, 2), np.float32)
    client.infer("add", [_input(n, rows, "FP32", binary=True) for n in ("a", "b")])
    (stats,) = client.get_inference_statistics("add")["model_stats"]
    assert stats["inference_count"] >= 3
    assert stats["execution_count"] >= 1


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_both_outputs_come_back_for_every_way_to_send(
    client: triton.InferenceServerClient, binary: bool, compression: str | None
) -> None:
    a = np.array([[1, 2], [3, 4]], np.float32)
    b = np.array([[10, 20], [30, 40]], np.float32)
    inputs = [_input("a", a, "FP32", binary=binary), _input("b", b, "FP32", binary=binary)]
    result = client.infer(
        "add", inputs, request_id="r-1", request_compression_algorithm=compression
    )
    assert result.get_response()["id"] == "r-1"
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)


@pytest.mark.parametrize(
    ("datatype", "there", "back"),
    [
        pytest.param(datatype, there, back, id=f"{datatype} binary there={there} back={back}")
        for datatype in SAMPLES
        for there in (True, False)
        for back in (True, False)
        if datatype != "FP16" or (there and back)  # the client speaks FP16 in binary only
    ],
)
def test_every_datatype_arrives_and_returns_unchanged(
    client: triton.InferenceServerClient, datatype: str, there: bool, back: bool
) -> None:
    sample = SAMPLES[datatype]
    result = client.infer(
        f"echo-{datatype}",
        [_input("in", sample, datatype, binary=there)],
        outputs=[triton.InferRequestedOutput("out", binary_data=back)],
    )
    got = result.as_numpy("out")
    if datatype == "BYTES" and not back:
        got = np.array([[e.encode() for e in got.flat]], object)
    assert got.shape == sample.shape
    np.testing.assert_array_equal(got, sample)


def test_only_the_output_that_was_asked_for_comes_back(
    client: triton.InferenceServerClient,
) -> None:
    rows = np.ones((1, 2), np.float32)
    inputs = [_input(n, rows, "FP32", binary=True) for n in ("a", "b")]
    result = client.infer("add", inputs, outputs=[triton.InferRequestedOutput("difference")])
    assert [o["name"] for o in result.get_response()["outputs"]] == ["difference"]


def test_class_probabilities_are_an_output_to_ask_for(
    client: triton.InferenceServerClient,
) -> None:
    rows = np.array([[6.8, 2.8, 4.8, 1.4], [5.1, 3.5, 1.4, 0.2]])
    result = client.infer(
        "sklearn-iris",
        [_input("whatever", rows, "FP64", binary=True)],
        outputs=[triton.InferRequestedOutput(n) for n in ("predict_proba", "predict")],
    )
    probabilities = result.as_numpy("predict_proba")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), result.as_numpy("predict"))


def test_an_error_reaches_the_client_as_a_sentence(client: triton.InferenceServerClient) -> None:
    rows = np.ones((1, 3), np.float32)
    inputs = [_input(n, rows, "FP32", binary=True) for n in ("a", "b")]
    with pytest.raises(InferenceServerException, match=r"input 'a' has shape \[1, 3\]"):
        client.infer("add", inputs)
