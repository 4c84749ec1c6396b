# SPDX-License-Identifier: Apache-2.0
"""`tidegate signals parse`: where a page comes from, and how what it says is printed."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from autoscaler.adapters.engines.page import SCRAPE_MAX_BYTES
from autoscaler.app.signals import app
from autoscaler.errors import BadInput

PAGE = (
    "vllm:num_requests_running 8\nvllm:num_requests_waiting 3\nvllm:kv_cache_usage_perc 0.62\n"
    "vllm:prompt_tokens_total 100\nvllm:generation_tokens_total 50\nvllm:request_success_total 4\n"
    'vllm:time_to_first_token_seconds_bucket{le="1"} 4\n'
    'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 4\n'
    "vllm:time_to_first_token_seconds_sum 2\nvllm:time_to_first_token_seconds_count 4\n"
    "vllm:num_preemptions_total NaN\n"
)
SAID = {
    "engine": "vllm",
    "readings": {
        "queue_depth": 3,
        "running": 8,
        "kv_used_ratio": 0.62,
        "prompt_tokens_total": 100,
        "generation_tokens_total": 50,
        "requests_total": 4,
    },
    "histograms": {"ttft_s": {"count": 4, "sum": 2.0, "p50": 0.5, "p95": 0.95}},
    "absent": {
        "preemptions_total": "vllm:num_preemptions_total is nan",
        "itl_s": "vllm:inter_token_latency_seconds is not exposed",
        "e2e_s": "vllm:e2e_request_latency_seconds is not exposed",
        "queue_s": "vllm:request_queue_time_seconds is not exposed",
    },
    "devices": [],
}
DCGM = (
    'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-1",Hostname="n1",pod="p",namespace="ns"} 45\n'
    'DCGM_FI_DEV_POWER_USAGE{UUID="GPU-1",Hostname="n1",pod="p",namespace="ns"} 120.5\n'
)


def parse(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["parse", *map(str, arguments)], input=stdin)


def refused(*arguments: str | Path, stdin: bytes | None = None) -> str:
    """What is said instead; the command line exits with 2 on it."""
    wrong = parse(*arguments, stdin=stdin).exception
    assert isinstance(wrong, BadInput), wrong
    [line] = wrong.problems
    assert "\n" not in line
    return line


@contextmanager
def serving(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """A server that answers every GET with this; its address."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing: tests print no log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


def test_a_file_standard_input_and_an_address_say_the_same(tmp_path: Path) -> None:
    """In the form that programs read: what is there, and why the rest is not."""
    page = tmp_path / "page.txt"
    page.write_text(PAGE)
    assert json.loads(parse(page, "--json").stdout) == SAID
    assert json.loads(parse("-", "--json", stdin=PAGE.encode()).stdout) == SAID
    with serving(200, PAGE.encode()) as address:
        assert json.loads(parse(address, "--json").stdout) == SAID


def test_a_gpu_that_does_not_say_something_has_null_there() -> None:
    """And all that is asked of requests is absent."""
    document = json.loads(parse("-", "--json", stdin=DCGM.encode()).stdout)
    assert (document["engine"], document["readings"], document["histograms"]) == ("dcgm", {}, {})
    assert len(document["absent"]) == 11
    assert document["devices"] == [
        {
            "uuid": "GPU-1",
            "mig_profile": None,
            "mig_id": None,
            "node": "n1",
            "namespace": "ns",
            "pod": "p",
            "utilization_ratio": 0.45,
            "engine_active_ratio": None,
            "memory_used_bytes": None,
            "memory_total_bytes": None,
            "power_w": 120.5,
            "temperature_c": None,
        }
    ]


def test_a_person_reads_a_table() -> None:
    """With the reasons for what is not in it, once each."""
    shown = parse("-", stdin=PAGE.encode()).stdout
    assert "vLLM tells" in shown
    for row in (["queue_depth", "3"], ["kv_used_ratio", "0.62"]):
        assert row in [line.split() for line in shown.splitlines()]
    assert ["ttft_s", "4", "0.5", "0.5", "0.95"] in [line.split() for line in shown.splitlines()]
    assert "vllm:num_preemptions_total is nan" in shown
    gpus = parse("-", stdin=DCGM.encode()).stdout
    assert gpus.count("tells of GPUs, not of requests") == 1
    assert "ns/p" in gpus
    assert "45%" in gpus


def test_an_engine_may_be_named() -> None:
    """Where a page could be more than one's."""
    page = b"num_requests_running 2\nvllm:num_requests_running 1\n"
    document = json.loads(parse("-", "--json", "--engine", "nim", stdin=page).stdout)
    assert (document["engine"], document["readings"]) == ("nim", {"running": 2})
    assert refused("-", "--engine", "vlm", stdin=page) == (
        "--engine vlm: no such engine, did you mean 'vllm'? (one of auto, dcgm, kserve, llamacpp,"
        " nim, ray, sglang, tgi, tidegate, torchserve, triton, trtllm, vllm)"
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "standard input: no metric in it", id="nothing"),
        pytest.param(b"<html>", "it is HTML", id="HTML"),
        pytest.param(gzip.compress(PAGE.encode()), "not text (UTF-8)", id="compressed"),
        pytest.param(b"node_load1 1\n", "no metric of a known engine (dcgm, ", id="another's"),
        pytest.param(PAGE.encode()[:-3], "cut off: it does not end with a newline", id="cut off"),
        pytest.param(b"\n" * (SCRAPE_MAX_BYTES + 1), "more than 1 MiB", id="too long"),
    ],
)
def test_what_is_no_page_of_metrics_is_refused_in_one_line(body: bytes, why: str) -> None:
    """With what it is."""
    assert why in refused("-", stdin=body)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file, a folder, an address."""
    assert refused(tmp_path / "none").startswith(f"{tmp_path}/none: cannot be read: No such file")
    assert "Is a directory" in refused(tmp_path)
    assert "cannot be asked: " in refused("http://127.0.0.1:1/metrics")
    with serving(404, b"") as address:
        assert refused(address) == f"{address}: answered 404; is the path right?"


def test_an_answer_that_unpacks_to_more_than_a_page_is_not_read_to_its_end() -> None:
    """A few kilobytes can be gigabytes."""
    bomb = gzip.compress(b"\n" * (64 * SCRAPE_MAX_BYTES))
    with serving(200, bomb, Content_Encoding="gzip") as address:
        assert "more than 1 MiB" in refused(address)
