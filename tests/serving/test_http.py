# SPDX-License-Identifier: Apache-2.0
"""What the worker answers on the wire: V1, V2 by hand, refusals, metrics."""

import gzip
import zlib

import httpx
import numpy as np
import orjson
import pytest

from tests.serving.models import SAMPLES
from tests.serving.processes import RunningWorker, tensor

IRIS = "/v1/models/sklearn-iris:predict"
ECHO = "/v2/models/echo-FP32/infer"
HEADER = "Inference-Header-Content-Length"


def _infer(worker: RunningWorker, model: str, **request: object) -> httpx.Response:
    return worker.http.post(f"/v2/models/{model}/infer", content=orjson.dumps(request))


def _binary(
    worker: RunningWorker, request: object, tail: bytes, *, length: int | None = None
) -> httpx.Response:
    head = orjson.dumps(request)
    size = len(head) if length is None else length
    return worker.http.post(ECHO, content=head + tail, headers={HEADER: str(size)})


def _error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    return str(body["error"])


def test_v1_predicts_the_species_of_two_irises(worker: RunningWorker) -> None:
    instances = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
    response = worker.http.post(IRIS, json={"instances": instances})
    assert response.content == b'{"predictions":[1,1]}'


def test_v1_lists_models_and_says_that_one_is_ready(worker: RunningWorker) -> None:
    assert "sklearn-iris" in worker.http.get("/v1/models").json()["models"]
    assert worker.http.get("/v1/models/add").json() == {"name": "add", "ready": True}


def test_v1_takes_and_gives_objects_for_a_model_with_several_inputs_and_outputs(
    worker: RunningWorker,
) -> None:
    instances = [{"a": [1, 2], "b": [3, 5]}, {"a": [0, 0], "b": [1, 1]}]
    response = worker.http.post("/v1/models/add:predict", json={"instances": instances})
    assert response.json() == {
        "predictions": [
            {"sum": [4.0, 7.0], "difference": [-2.0, -3.0]},
            {"sum": [1.0, 1.0], "difference": [-1.0, -1.0]},
        ]
    }


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"[]", '{"instances": [...]}'),
        (b'{"instances": {}}', '{"instances": [...]}'),
        (b'{"instances": []}', "at least one"),
        (b'{"instances": [[1,2,3,4],[1,2]]}', "no array of FP64"),
        (b'{"instances": [[1,2,3]]}', "has shape [1, 3], the model takes [-1, 4]"),
        (b'{"instances": [[1,2,3,null]]}', "LogisticRegression refuses the instances"),
        (b'{"instances": [["a","b","c","d"]]}', "LogisticRegression refuses the instances"),
        (b'{"instances": [[1,2,3,NaN]]}', "not JSON"),
    ],
)
def test_v1_says_what_is_wrong_with_a_request(
    worker: RunningWorker, body: bytes, says: str
) -> None:
    assert says in _error(worker.http.post(IRIS, content=body), 400)


def test_v2_says_who_is_speaking(worker: RunningWorker) -> None:
    about = worker.http.get("/v2").json()
    assert about["name"] == "tidegate"
    assert "binary_tensor_data" in about["extensions"]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/add/ready", {"name": "add", "ready": True}),
        ("/v2/models/add/versions/1/ready", {"name": "add", "ready": True}),
    ],
)
def test_v2_health_has_a_status_and_a_body(
    worker: RunningWorker, path: str, answer: object
) -> None:
    response = worker.http.get(path)
    assert (response.status_code, response.json()) == (200, answer)


def test_the_index_takes_an_empty_body_and_a_filter(worker: RunningWorker) -> None:
    everything = worker.http.post("/v2/repository/index").json()
    ready = worker.http.post("/v2/repository/index", json={"ready": True}).json()
    assert everything == ready
    assert everything[0] == {
        "name": "sklearn-iris",
        "version": "1",
        "state": "READY",
        "reason": "",
    }


def test_v2_echoes_the_id_and_keeps_the_shape(worker: RunningWorker) -> None:
    response = _infer(
        worker, "echo-INT32", id="42", inputs=[tensor("in", "INT32", [[1, 2], [3, 4]])]
    )
    assert response.json() == {
        "model_name": "echo-INT32",
        "model_version": "1",
        "id": "42",
        "outputs": [{"name": "out", "datatype": "INT32", "shape": [2, 2], "data": [1, 2, 3, 4]}],
    }


def test_flat_data_takes_the_declared_shape(worker: RunningWorker) -> None:
    flat = {"name": "in", "datatype": "FP32", "shape": [2, 1], "data": [1, 2]}
    assert _infer(worker, "echo-FP32", inputs=[flat]).json()["outputs"][0]["shape"] == [2, 1]


@pytest.mark.parametrize("datatype", SAMPLES)
def test_every_datatype_travels_as_json(worker: RunningWorker, datatype: str) -> None:
    values = [e.decode() if isinstance(e, bytes) else e for e in SAMPLES[datatype][0].tolist()]
    response = _infer(worker, f"echo-{datatype}", inputs=[tensor("in", datatype, [values])])
    (output,) = response.json()["outputs"]
    assert output["data"] == pytest.approx(values) if datatype == "FP32" else values


def test_nan_and_infinities_are_null_in_json_and_exact_in_binary(worker: RunningWorker) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1.0]], "<f4")
    head = {
        "inputs": [
            {
                "name": "in",
                "datatype": "FP32",
                "shape": [1, 4],
                "parameters": {"binary_data_size": 16},
            }
        ]
    }
    as_json = _binary(worker, head, values.tobytes())
    assert as_json.json()["outputs"][0]["data"] == [None, None, None, 1.0]
    exact = _binary(worker, {**head, "parameters": {"binary_data_output": True}}, values.tobytes())
    assert exact.content[int(exact.headers[HEADER]) :] == values.tobytes()


def test_a_header_of_zero_takes_the_body_as_the_only_input(worker: RunningWorker) -> None:
    raw = np.array([1.5, 2.5, -3], "<f4").tobytes()
    response = worker.http.post(ECHO, content=raw, headers={HEADER: "0"})
    length = int(response.headers[HEADER])
    assert orjson.loads(response.content[:length])["outputs"] == [
        {
            "name": "out",
            "datatype": "FP32",
            "shape": [1, 3],
            "parameters": {"binary_data_size": 12},
        }
    ]
    assert response.content[length:] == raw


def test_a_raw_body_of_bytes_is_one_element(worker: RunningWorker) -> None:
    response = worker.http.post(
        "/v2/models/echo-BYTES/infer", content=b"a tide", headers={HEADER: "0"}
    )
    assert response.content.endswith(b"\x06\x00\x00\x00a tide")


def test_a_raw_body_needs_a_model_with_one_input(worker: RunningWorker) -> None:
    response = worker.http.post("/v2/models/add/infer", content=b"", headers={HEADER: "0"})
    assert "one input, this one has 2" in _error(response, 400)


ONE = {"name": "in", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}


@pytest.mark.parametrize(
    ("request_", "tail", "says"),
    [
        ({"inputs": [ONE]}, b"abc", "binary_data_size is 4, 3 bytes are left"),
        ({"inputs": [ONE]}, b"abcde", "5 bytes follow the JSON"),
        ({"inputs": [ONE | {"shape": [1, 2]}]}, b"abcd", "needs 8"),
        ({"inputs": [ONE | {"data": [1]}]}, b"abcd", "both data and"),
        ({"inputs": [ONE | {"parameters": {"binary_data_size": -4}}]}, b"", "is -4"),
        ({"inputs": [ONE | {"parameters": {"binary_data_size": True}}]}, b"a", "is True"),
        ({"inputs": [ONE | {"parameters": []}]}, b"abcd", "must be an object"),
        (
            {"inputs": [ONE | {"parameters": {"shared_memory_region": "r"}}]},
            b"",
            "shared_memory_region is not supported",
        ),
    ],
)
def test_a_malformed_binary_request_says_what_is_wrong(
    worker: RunningWorker, request_: object, tail: bytes, says: str
) -> None:
    assert says in _error(_binary(worker, request_, tail), 400)


@pytest.mark.parametrize("header", ["-1", "x", "1e3", "999999", "", "٣", "9" * 40])
def test_a_header_that_is_no_length_of_the_body_is_refused(
    worker: RunningWorker, header: str
) -> None:
    response = worker.http.post(ECHO, content=b"{}", headers=[(HEADER.encode(), header.encode())])
    assert HEADER in _error(response, 400)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, 'no "inputs"'),
        ({"inputs": {}}, "must be a list"),
        ({"inputs": [1]}, 'with a "name"'),
        ({"inputs": [tensor("in", "FP32", [[1]])] * 2}, "given twice"),
        ({"inputs": [tensor("no", "FP32", [[1]])]}, "takes the inputs in, got no"),
        ({"inputs": [tensor("in", "FP64", [[1]])]}, "has datatype FP64, the model takes FP32"),
        ({"inputs": [tensor("in", "BF16", [[1]])]}, "supported are BOOL"),
        ({"inputs": [tensor("in", "FP32", [["x"]])]}, "must be numbers for FP32"),
        ({"inputs": [tensor("in", "FP32", [[1e39]])]}, "too large for FP32"),
        ({"inputs": [tensor("in", "FP32", [[True]])]}, "must be numbers"),
        ({"inputs": [tensor("in", "FP32", [[1, 2]]) | {"shape": [2, 1]}]}, "declared is [2, 1]"),
        ({"inputs": [tensor("in", "FP32", [[1]]) | {"shape": [-1]}]}, "list of sizes"),
        ({"inputs": [tensor("in", "FP32", [[1]]) | {"shape": [2**50, 2**50]}]}, "list of sizes"),
        ({"inputs": [tensor("in", "FP32", [1])]}, "has shape [1], the model takes [-1, -1]"),
        ({"inputs": [{"name": "in", "datatype": "FP32", "shape": [1, 1]}]}, "neither data nor"),
        ({"id": 7, "inputs": [tensor("in", "FP32", [[1]])]}, "id of the request must be a string"),
        (
            {"inputs": [tensor("in", "FP32", [[1]])], "outputs": [{"name": "no"}]},
            "has no output 'no'; it has out",
        ),
        (
            {"inputs": [tensor("in", "FP32", [[1]])], "parameters": {"binary_data_output": 1}},
            "must be true or false",
        ),
        (
            {"inputs": [{"name": "in", "datatype": "FP32", "shape": [0, 1], "data": []}]},
            "at least 1 row",
        ),
    ],
)
def test_a_malformed_json_request_says_what_is_wrong(
    worker: RunningWorker, request_: dict[str, object], says: str
) -> None:
    assert says in _error(_infer(worker, "echo-FP32", **request_), 400)


@pytest.mark.parametrize(
    ("datatype", "value", "says"),
    [
        ("INT8", 200, "does not fit INT8: -128 to 127"),
        ("UINT8", -1, "does not fit UINT8"),
        ("UINT64", -1, "does not fit UINT64"),
        ("INT32", 1.5, "must be integers"),
        ("INT32", None, "must be integers"),
        ("BOOL", 1, "must be booleans"),
        ("BYTES", 1, "must be strings"),
    ],
)
def test_json_elements_are_never_bent_to_fit(
    worker: RunningWorker, datatype: str, value: object, says: str
) -> None:
    inputs = [tensor("in", datatype, [[value]])]
    assert says in _error(_infer(worker, f"echo-{datatype}", inputs=inputs), 400)


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/v1/models/nobody", 404),
        ("POST", "/v1/models/nobody:predict", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/models/add/versions/2", 404),
        ("POST", "/v2/models/add/versions/2/infer", 404),
        ("POST", "/v1/models/add:explain", 404),
        ("GET", "/", 404),
        ("GET", "/v2/models/add/infer", 405),
        ("POST", "/v2/health/ready", 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/v2/repository/index", 405),
    ],
)
def test_what_is_not_there_is_named_in_the_answer(
    worker: RunningWorker, verb: str, path: str, status: int
) -> None:
    response = worker.http.request(verb, path)
    named = "nobody" if "nobody" in path else path if "versions" not in path else "version '2'"
    assert named in _error(response, status)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda b: zlib.compress(b, wbits=-15)),
        ("identity", bytes),
    ],
    ids=["gzip", "zlib", "bare deflate", "identity"],
)
def test_packed_bodies_are_unpacked(worker: RunningWorker, encoding: str, pack: object) -> None:
    assert callable(pack)
    body = pack(b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}')
    response = worker.http.post(IRIS, content=body, headers={"Content-Encoding": encoding})
    assert response.json() == {"predictions": [1]}


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}')[:-4], 400),
        ("br", b"", 400),
        ("gzip", gzip.compress(b" " * (1024 * 1024 + 1)), 413),
    ],
    ids=["not gzip", "cut off", "unknown encoding", "a small body that unpacks to a large one"],
)
def test_a_body_that_cannot_be_unpacked_is_refused(
    worker: RunningWorker, encoding: str, body: bytes, status: int
) -> None:
    response = worker.http.post(IRIS, content=body, headers={"Content-Encoding": encoding})
    _error(response, status)


def test_a_body_over_the_limit_is_refused_with_the_limit_and_the_setting(
    worker: RunningWorker,
) -> None:
    huge = b"x" * (3 * 1024 * 1024)
    error = _error(worker.http.post(IRIS, content=huge), 413)
    assert "1048576 bytes" in error
    assert "--max-body" in error


def test_a_body_over_the_limit_without_a_length_is_refused(worker: RunningWorker) -> None:
    pieces = (b"x" * 65536 for _ in range(40))
    _error(worker.http.post(IRIS, content=pieces), 413)


def test_metrics_count_requests_rows_and_bytes(worker: RunningWorker) -> None:
    def count(name: str, **labels: str) -> float:
        return worker.metric(name, model="sklearn-iris", **labels)

    before = [
        count("tidegate_worker_requests_total", protocol="v1", code="200"),
        count("tidegate_worker_requests_total", protocol="v1", code="400"),
        count("nv_inference_count"),
        count("tidegate_worker_batch_rows_sum"),
        worker.metric("tidegate_worker_requests_total", model="-", code="404"),
    ]
    worker.http.post(IRIS, json={"instances": [[6.8, 2.8, 4.8, 1.4]] * 3})
    worker.http.post(IRIS, json={})
    worker.http.post("/v1/models/nobody:predict", json={})
    after = [
        count("tidegate_worker_requests_total", protocol="v1", code="200"),
        count("tidegate_worker_requests_total", protocol="v1", code="400"),
        count("nv_inference_count"),
        count("tidegate_worker_batch_rows_sum"),
        worker.metric("tidegate_worker_requests_total", model="-", code="404"),
    ]
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 3, 3, 1]
    assert count("tidegate_worker_requests_in_flight") == 0
    assert count("tidegate_worker_model_bytes") > 0
    assert count("tidegate_worker_model_load_seconds") > 0
