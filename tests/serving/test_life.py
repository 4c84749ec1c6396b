# SPDX-License-Identifier: Apache-2.0
"""Queues, batches and endings of real workers under real load."""

import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from tests.serving.processes import RunningWorker, events, ready_worker, tensor, until

LONG = 120  # matrix products: about a second of real work
ENDLESS = 1_000_000


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def _work(worker: RunningWorker, times: int) -> httpx.Response:
    content = orjson.dumps({"inputs": [tensor("times", "INT64", [times])]})
    return worker.http.post("/v2/models/work/infer", content=content)


def _in_flight(worker: RunningWorker) -> float:
    return worker.metric("tidegate_worker_requests_in_flight", model="work")


def _queued(worker: RunningWorker) -> float:
    return worker.metric("tidegate_worker_queue_depth", model="work")


def _running_and_queued(
    worker: RunningWorker, pool: ThreadPoolExecutor, times: int
) -> Sequence[Future[httpx.Response]]:
    """One request that runs, and one that waits behind it."""
    first = pool.submit(_work, worker, times)
    until("the first request runs", lambda: _in_flight(worker) == 1)
    second = pool.submit(_work, worker, times)
    until("the second request waits", lambda: _queued(worker) == 1)
    return first, second


def _worker_of_work(models: Path, tmp_path: Path, *flags: str) -> RunningWorker:
    worker = RunningWorker(
        tmp_path / "stderr", "--model", f"work={models / 'work.onnx'}", "--linger-s", "0", *flags
    )
    worker.until_ready()
    _in_flight(worker)  # the first scrape imports the client library: not while a test waits
    return worker


def test_after_sigterm_everything_in_flight_and_queued_is_answered_and_the_status_is_0(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with _worker_of_work(models, tmp_path) as worker:
        answers = _running_and_queued(worker, pool, LONG)
        worker.signal()
        until("the worker drains", lambda: "draining" in worker.log)
        not_ready = worker.http.get("/v2/health/ready")
        assert not_ready.status_code == 503
        assert not_ready.headers["connection"] == "close"
        for answer in answers:
            assert answer.result().status_code == 200
            assert answer.result().headers["connection"] == "close"
        assert worker.status() == 0
        assert events(worker.log) == ["listening", "model loaded", "ready", "draining", "leaving"]


def test_a_draining_worker_still_answers_what_arrives(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with _worker_of_work(models, tmp_path) as worker:
        first, second = _running_and_queued(worker, pool, LONG)
        worker.signal()
        until("the worker drains", lambda: "draining" in worker.log)
        late = _work(worker, 1)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert {first.result().status_code, second.result().status_code} == {200}
        assert worker.status() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_worker_at_once(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor, number: signal.Signals
) -> None:
    with _worker_of_work(models, tmp_path) as worker:
        answer = pool.submit(_work, worker, ENDLESS)
        until("the request runs", lambda: _in_flight(worker) == 1)
        worker.signal()
        until("the worker drains", lambda: "draining" in worker.log)
        worker.signal(number)
        assert worker.status() == 128 + number
        assert isinstance(answer.exception(), httpx.RemoteProtocolError | httpx.ReadError)


def test_a_request_longer_than_the_grace_is_cut_off_and_the_status_says_so(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with _worker_of_work(models, tmp_path, "--drain-grace", "100ms") as worker:
        answer = pool.submit(_work, worker, ENDLESS)
        until("the request runs", lambda: _in_flight(worker) == 1)
        worker.signal()
        assert worker.status() == 1
        assert '"cut_off":1' in worker.log
        assert isinstance(answer.exception(), httpx.RemoteProtocolError | httpx.ReadError)


def test_a_signal_while_models_load_ends_the_worker_with_0(models: Path, tmp_path: Path) -> None:
    flags = ("--model", f"iris={models / 'iris.skops'}", "--linger-s", "0")
    with RunningWorker(tmp_path / "stderr", *flags) as worker:
        assert worker.http.get("/v2/health/live").status_code == 200
        loading = worker.http.get("/v2/health/ready")
        refused = worker.http.post("/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]})
        worker.signal()
        assert worker.status() == 0
        assert "ready" not in events(worker.log)
        assert (loading.status_code, loading.json()) == (503, {"ready": False})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json() == {"error": "model 'iris' is being loaded; retry after 1 s"}


def test_a_full_queue_answers_503_with_the_seconds_after_which_to_retry(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with _worker_of_work(models, tmp_path, "--max-queue-size", "1") as worker:
        accepted = _running_and_queued(worker, pool, LONG)
        refused = _work(worker, 1)
        assert refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert "1 requests wait already, the limit is 1" in refused.json()["error"]
        assert [a.result().status_code for a in accepted] == [200, 200]
        rejected = worker.metric("nv_inference_request_failure", reason="REJECTED")
        assert rejected == 1


def test_demand_is_counted_while_requests_still_run_and_after_they_came_and_went(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    def arrived() -> float:
        return worker.metric("tidegate_worker_requests_arrived_total", model="work")

    def request_s() -> float:
        return worker.metric("tidegate_worker_request_seconds_total", model="work")

    with _worker_of_work(models, tmp_path) as worker:
        assert (arrived(), request_s()) == (0, 0)
        answers = _running_and_queued(worker, pool, LONG)
        early = request_s()
        until("time spent inside grows while requests run", lambda: request_s() > early)
        assert arrived() == 2
        assert [a.result().status_code for a in answers] == [200, 200]
        until("nothing is left", lambda: _in_flight(worker) == 0)
        inside_s = worker.metric("tidegate_worker_request_duration_seconds_sum", model="work")
        assert request_s() == pytest.approx(inside_s)
        assert arrived() == 2


def test_a_client_that_leaves_while_queued_leaves_the_queue_too(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with _worker_of_work(models, tmp_path) as worker:
        first = pool.submit(_work, worker, LONG)
        until("the first request runs", lambda: _in_flight(worker) == 1)
        body = orjson.dumps({"inputs": [tensor("times", "INT64", [ENDLESS])]})
        with socket.create_connection(("127.0.0.1", worker.port)) as leaving:
            head = f"POST /v2/models/work/infer HTTP/1.1\r\nHost: w\r\nContent-Length: {len(body)}"
            leaving.sendall(head.encode() + b"\r\n\r\n" + body)
            until("the second request waits", lambda: _queued(worker) == 1)
        until("the second request is gone", lambda: _queued(worker) == 0)
        assert first.result().status_code == 200
        until("nothing is left", lambda: _in_flight(worker) == 0)
        assert worker.metric("nv_inference_exec_count", model="work") == 1
        assert worker.metric("tidegate_worker_requests_total", code="499") == 1
        assert worker.metric("nv_inference_request_failure", reason="CANCELED") == 1


def test_requests_that_arrive_together_run_as_one_batch_and_each_gets_its_own_rows(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    flags = ("--model", f"add={models / 'add.onnx'}", "--max-batch-size", "4")
    with ready_worker(tmp_path / "stderr", *flags, "--max-queue-delay", "60s") as worker:

        def add(n: int) -> object:
            rows = [[n, n]]
            inputs = [tensor(name, "FP32", list(rows)) for name in ("a", "b")]
            response = worker.http.post("/v2/models/add/infer", json={"inputs": inputs})
            return response.json()["outputs"][0]["data"]

        assert list(pool.map(add, range(4))) == [[2.0 * n, 2.0 * n] for n in range(4)]
        assert worker.metric("nv_inference_exec_count", model="add") == 1
        assert worker.metric("nv_inference_count", model="add") == 4


def test_a_bad_row_fails_its_own_request_and_not_its_neighbour_in_the_batch(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    flags = ("--model", f"iris={models / 'iris.skops'}", "--max-batch-size", "2")
    with ready_worker(tmp_path / "stderr", *flags, "--max-queue-delay", "60s") as worker:

        def predict(first: float | None) -> httpx.Response:
            instances = [[first, 2.8, 4.8, 1.4]]
            return worker.http.post("/v1/models/iris:predict", json={"instances": instances})

        bad, good = pool.map(predict, [None, 6.8])
        assert bad.status_code == 400
        assert "contains NaN" in bad.json()["error"]
        assert good.json() == {"predictions": [1]}


def test_a_model_that_mixes_rows_is_found_out_and_never_batched_again(
    models: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    flags = ("--model", f"distinct={models / 'distinct.onnx'}", "--max-batch-size", "2")
    with ready_worker(tmp_path / "stderr", *flags, "--max-queue-delay", "60s") as worker:

        def distinct(n: int) -> object:
            inputs = [tensor("x", "FP32", [[n, n]])]
            response = worker.http.post("/v2/models/distinct/infer", json={"inputs": inputs})
            return response.json()["outputs"][0]["data"]

        assert list(pool.map(distinct, [3, 3])) == [[3.0, 3.0], [3.0, 3.0]]
        assert distinct(7) == [7.0, 7.0]  # alone, and without waiting for company


def test_told_to_listen_late_the_port_opens_only_once_the_models_are_loaded(
    models: Path, tmp_path: Path
) -> None:
    """A probe that merely connects finds nobody until requests can be served."""
    with _worker_of_work(models, tmp_path, "--listen-late") as worker:
        said = events(worker.log)
    assert said.index("ready") < said.index("listening")
