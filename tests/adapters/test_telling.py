# SPDX-License-Identifier: Apache-2.0
"""What pages of all engines say, in our words and units. Expected values are worked out by hand."""

import os
from collections.abc import Mapping
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.adapters.engines.histograms import Distribution
from autoscaler.adapters.engines.notation import Line
from autoscaler.adapters.engines.table import ENGINES, Times
from autoscaler.adapters.engines.telling import KEYS, READINGS, Told, told
from autoscaler.core.signals import NoReading

SAMPLES = Path(
    os.environ.get("TIDEGATE_METRICS_SAMPLES")
    or Path(__file__).parents[3] / "shared" / "data" / "metrics"
)

QUEUE, RUNS, KV = "queue_depth", "running", "kv_used_ratio"
PROMPTS, TOKENS = "prompt_tokens_total", "generation_tokens_total"
CAME, PREEMPTED = "requests_total", "preemptions_total"
Expected = Mapping[Times, tuple[object, ...]]


def said(page: str, key: str = "auto") -> Told:
    found = told(page, key=key)
    assert isinstance(found, Told), found
    assert {*found.readings, *found.histograms, *found.absent} == {*READINGS, *Times}
    assert not set(found.absent) & {*found.readings, *found.histograms}
    return found


def times(found: Told) -> Expected:
    return {time: (of.count, of.sum_s, of.p50_s, of.p95_s) for time, of in found.histograms.items()}


def near(expected: Expected) -> Expected:
    return {
        time: tuple(v if v is None else pytest.approx(v, rel=1e-5) for v in values)
        for time, values in expected.items()
    }


@pytest.mark.parametrize(
    ("sample", "engine", "readings", "histograms"),
    [
        pytest.param(
            "vllm_v0_real",
            "vllm",
            {
                QUEUE: 5,
                RUNS: 3,
                KV: 0.0026235242675994863,
                PROMPTS: 90,
                TOKENS: 2546,
                CAME: 6,
                PREEMPTED: 0,
            },
            {
                # 4.5 of 9: 3.5 of the 5 between 0.04 and 0.06; 8.55: 2.55 of the 3 up to 0.08.
                Times.TTFT: (9, 0.5106480121612549, 0.054, 0.077),
                # 1268.5 and 2410.15 of 2537, of the 2519 between 0.025 and 0.05.
                Times.ITL: (2537, 98.35070300102234, 0.0375893, 0.0489197),
                # 3 and 5.7 of the 6 between 15 and 20.
                Times.E2E: (6, 93.24844908714294, 17.5, 19.75),
            },
            id="vLLM V0",
        ),
        pytest.param(
            "sglang_v04_real_doc",
            "sglang",
            {QUEUE: 2826, RUNS: 162, KV: 0.28, PROMPTS: 8128902, TOKENS: 7557572, CAME: 11228},
            {
                # More than half lie beyond the last bound.
                Times.TTFT: (11008, 2351897.9474117756, 30, 30),
                Times.ITL: (7400757, 866964.5791549598, 0.0930824, 0.1497914),
                Times.E2E: (11228, 3116093.850019932, 60, 60),
            },
            id="SGLang 0.4, overloaded",
        ),
        pytest.param(
            "tgi_llmtop_fixture",
            "tgi",
            {QUEUE: 3, RUNS: 5, PROMPTS: 18000, TOKENS: 12500, CAME: 150},
            {
                # 75 and 142.5 of 150: 25 of the 70 up to 0.025, 22.5 of the 25 up to 0.05.
                Times.ITL: (150, 2.1, 0.0153571, 0.0475),
                Times.E2E: (150, 22.5, 0.095, 0.65625),
                Times.QUEUE: (150, 3.2, 0.0075, 0.0916667),
            },
            id="TGI",
        ),
        pytest.param(
            "llamacpp_2025_real",
            "llamacpp",
            {QUEUE: 0, RUNS: 0, KV: 0.491063, PROMPTS: 6886, TOKENS: 3469},
            {Times.ITL: (3469, 3544.27, None, None)},
            id="llama.cpp of 2025",
        ),
        pytest.param(
            "triton_trtllm_backend",
            "triton",
            {QUEUE: 1, RUNS: 1, KV: 0.4875},
            {},
            id="Triton with TensorRT-LLM",
        ),
        pytest.param(
            "triton_queue_summary_doc",
            "triton",
            {},
            {Times.QUEUE: (161, 0.01111, 0.000055, 0.000098)},
            id="Triton with summaries, in microseconds",
        ),
        pytest.param(
            "torchserve",
            "torchserve",
            {CAME: 3},
            {
                Times.E2E: (3, 0.290371129, None, None),
                Times.QUEUE: (3, 0.00036521, None, None),
            },
            id="TorchServe, in microseconds",
        ),
    ],
)
def test_what_servers_really_expose_is_told_in_our_words(
    sample: str, engine: str, readings: Mapping[str, float], histograms: Expected
) -> None:
    """Pages as they were taken from servers; what is not in them is named as absent."""
    page = SAMPLES / f"{sample}.txt"
    if not page.exists():
        pytest.skip(f"{page} is not there: samples of servers' metrics are kept beside the project")
    found = said(page.read_text())
    assert (found.engine, found.readings, found.devices) == (engine, readings, ())
    assert times(found) == near(histograms)


@pytest.mark.parametrize(
    ("sample", "count", "first"),
    [
        pytest.param(
            "dcgm_h100_pod_labels",
            2,
            {
                "uuid": "GPU-aaa",
                "node": "node1",
                "namespace": "nim",
                "pod": "pool3",
                "utilization_ratio": 0.45,
                "engine_active_ratio": None,
                "memory_used_bytes": 74359 * 1024 * 1024,
                "power_w": 118.344,
                "temperature_c": 33,
            },
            id="whole GPUs",
        ),
        pytest.param(
            "dcgm_a800_mig_real",
            10,
            {
                "mig_profile": "2g.20gb",
                "mig_id": "3",
                "utilization_ratio": None,
                "engine_active_ratio": 0,
                "memory_used_bytes": None,
                "pod": None,
            },
            id="one that is split",
        ),
    ],
)
def test_an_exporter_tells_of_gpus_alone(
    sample: str, count: int, first: Mapping[str, object]
) -> None:
    """Nothing of requests, and no 0 where it says nothing."""
    page = SAMPLES / f"{sample}.txt"
    if not page.exists():
        pytest.skip(f"{page} is not there: samples of servers' metrics are kept beside the project")
    found = said(page.read_text())
    assert (found.engine, found.readings, found.histograms) == ("dcgm", {}, {})
    assert len(found.devices) == count
    assert {name: getattr(found.devices[0], name) for name in first} == first


def histogram(name: str, labels: str = "", *, times_: float = 1) -> str:
    """Eight times between 0 and 1, four between 1 and 2."""
    return (
        f'{name}_bucket{{{labels}le="1.0"}} {8 * times_}\n'
        f'{name}_bucket{{{labels}le="2.0"}} {12 * times_}\n'
        f'{name}_bucket{{{labels}le="+Inf"}} {12 * times_}\n'
        f"{name}_sum{{{labels}}} {9 * times_}\n{name}_count{{{labels}}} {12 * times_}\n"
    )


EIGHT_OF_TWELVE = (12, 9, 0.75, 1.85)


@pytest.mark.parametrize(
    ("page", "engine", "readings", "histograms"),
    [
        pytest.param(
            "".join(
                f'vllm:num_requests_running{{engine="{e}",model_name="m"}} {3 + e}\n'
                f'vllm:num_requests_waiting{{engine="{e}",model_name="m"}} {e}\n'
                f'vllm:kv_cache_usage_perc{{engine="{e}",model_name="m"}} {0.5 + 0.25 * e}\n'
                f'vllm:prompt_tokens_total{{engine="{e}",model_name="m"}} 100\n'
                f'vllm:prompt_tokens_created{{engine="{e}",model_name="m"}} 1.7e+09\n'
                f'vllm:generation_tokens_total{{engine="{e}",model_name="m"}} 50\n'
                f'vllm:num_preemptions_total{{engine="{e}",model_name="m"}} 2\n'
                f'vllm:request_success_total{{engine="{e}",finished_reason="stop"}} 4\n'
                f'vllm:request_success_total{{engine="{e}",finished_reason="abort"}} 1\n'
                f'vllm:iteration_tokens_total_count{{engine="{e}"}} 70\n'
                + histogram("vllm:time_to_first_token_seconds", f'engine="{e}",', times_=0.5)
                + histogram("vllm:inter_token_latency_seconds", f'engine="{e}",', times_=0.5)
                + histogram("vllm:request_time_per_output_token_seconds", f'engine="{e}",')
                + histogram("vllm:request_queue_time_seconds", f'engine="{e}",', times_=0.5)
                for e in (0, 1)
            ),
            "vllm",
            {QUEUE: 1, RUNS: 7, KV: 0.625, PROMPTS: 200, TOKENS: 100, CAME: 10, PREEMPTED: 4},
            {
                Times.TTFT: EIGHT_OF_TWELVE,
                Times.ITL: EIGHT_OF_TWELVE,
                Times.QUEUE: EIGHT_OF_TWELVE,
            },
            id="vLLM V1 with two data-parallel engines",
        ),
        pytest.param(
            'vllm:num_requests_running{model_name="m"} 2\n'
            'vllm:num_requests_waiting{model_name="m"} 1\n'
            'vllm:gpu_cache_usage_perc{model_name="m"} 0.125\n'
            'vllm:cpu_cache_usage_perc{model_name="m"} 0.5\n'
            + histogram("vllm:time_per_output_token_seconds", 'model_name="m",'),
            "vllm",
            {QUEUE: 1, RUNS: 2, KV: 0.125},
            {Times.ITL: EIGHT_OF_TWELVE},
            id="vLLM 0.8, with older names and no engine label",
        ),
        pytest.param(
            "".join(
                f'sglang:num_running_reqs{{dp_rank="{d}",pp_rank="{p}",tp_rank="{t}"}} {d + 4}\n'
                f'sglang:num_queue_reqs{{dp_rank="{d}",pp_rank="{p}",tp_rank="{t}"}} {d}\n'
                f'sglang:token_usage{{dp_rank="{d}",pp_rank="{p}",tp_rank="{t}"}} {0.5 * d}\n'
                f'sglang:max_total_num_tokens{{dp_rank="{d}",pp_rank="{p}",tp_rank="{t}"}} 1000\n'
                + histogram("sglang:queue_time_seconds", f'tp_rank="{t}",', times_=1)
                for d in (0, 1)
                for p in (0, 1)
                for t in (0, 1)
            )
            + 'sglang:num_requests_total{is_streaming="true"} 6\n'
            'sglang:num_requests_total{is_streaming="false"} 5\n'
            'sglang:prompt_tokens_total{model_name="m"} 80\n'
            'sglang:generation_tokens_total{model_name="m"} 40\n'
            "sglang:num_retracted_requests_total 3\n"
            + histogram("sglang:time_to_first_token_seconds", 'is_streaming="true",', times_=0.5)
            + histogram("sglang:time_to_first_token_seconds", 'is_streaming="false",', times_=0.5)
            + histogram("sglang:inter_token_latency_seconds"),
            "sglang",
            {QUEUE: 1, RUNS: 9, KV: 0.25, PROMPTS: 80, TOKENS: 40, CAME: 11, PREEMPTED: 3},
            {
                Times.TTFT: EIGHT_OF_TWELVE,
                Times.ITL: EIGHT_OF_TWELVE,
                Times.QUEUE: EIGHT_OF_TWELVE,
            },
            id="SGLang: ranks that repeat one another once, data-parallel ones together",
        ),
        pytest.param(
            'trtllm_request_success_total{finished_reason="stop",model_name="m"} 7\n'
            'trtllm_kv_cache_utilization{model_name="m"} 0.25\n'
            'trtllm_num_requests_running{model_name="m"} 3\n'
            'trtllm_num_requests_waiting{model_name="m"} 2\n'
            'trtllm_prompt_tokens_total{model_name="m"} 30\n'
            'trtllm_generation_tokens_total{model_name="m"} 20\n'
            + histogram("trtllm_time_per_output_token_seconds", 'model_name="m",')
            + histogram("trtllm_e2e_request_latency_seconds", 'model_name="m",'),
            "trtllm",
            {QUEUE: 2, RUNS: 3, KV: 0.25, PROMPTS: 30, TOKENS: 20, CAME: 7},
            {Times.ITL: EIGHT_OF_TWELVE, Times.E2E: EIGHT_OF_TWELVE},
            id="trtllm-serve",
        ),
        pytest.param(
            'request_success_total{engine_type="trtllm",finished_reason="stop"} 12\n'
            + histogram("e2e_request_latency_seconds", 'engine_type="trtllm",'),
            "trtllm",
            {CAME: 12},
            {Times.E2E: EIGHT_OF_TWELVE},
            id="an early trtllm-serve, whose names had no prefix",
        ),
        pytest.param(
            'nv_inference_request_success{model="a",version="1"} 40\n'
            'nv_inference_request_success{model="b",version="1"} 8\n'
            'nv_inference_request_failure{model="a",reason="OTHER",version="1"} 2\n'
            'nv_inference_request_duration_us{model="a",version="1"} 9000000\n'
            'nv_inference_queue_duration_us{model="a",version="1"} 1500\n'
            'nv_inference_pending_request_count{model="a",version="1"} 3\n',
            "triton",
            {QUEUE: 3, CAME: 50},
            {Times.E2E: (48, 9, None, None), Times.QUEUE: (48, 0.0015, None, None)},
            id="Triton with counters alone",
        ),
        pytest.param(
            'nv_inference_request_success{model="a",version="1"} 40\n'
            'nv_inference_first_response_histogram_ms_bucket{model="a",version="1",le="100"} 8\n'
            'nv_inference_first_response_histogram_ms_bucket{model="a",version="1",le="200"} 12\n'
            'nv_inference_first_response_histogram_ms_bucket{model="a",version="1",le="+Inf"} 12\n'
            'nv_inference_first_response_histogram_ms_sum{model="a",version="1"} 900\n'
            'nv_inference_first_response_histogram_ms_count{model="a",version="1"} 12\n',
            "triton",
            {CAME: 40},
            {Times.TTFT: (12, 0.9, 0.075, 0.185)},
            id="Triton's first responses, in milliseconds",
        ),
        pytest.param(
            'vllm:prompt_tokens_total{model="m",version="1"} 10\n'
            'vllm:generation_tokens_total{model="m",version="1"} 16\n'
            'nv_inference_request_success{model="m",version="1"} 12\n'
            'nv_inference_pending_request_count{model="m",version="1"} 1\n'
            'nv_inference_queue_duration_us{model="m",version="1"} 24\n'
            + histogram("vllm:e2e_request_latency_seconds", 'model="m",version="1",'),
            "triton",
            {QUEUE: 1, PROMPTS: 10, TOKENS: 16, CAME: 12},
            {Times.E2E: EIGHT_OF_TWELVE, Times.QUEUE: (12, 0.000024, None, None)},
            id="Triton with vLLM",
        ),
        pytest.param(
            'vllm:prompt_tokens_total{model="m",version="1"} 10\n'
            + histogram("vllm:e2e_request_latency_seconds", 'model="m",version="1",'),
            "triton",
            {PROMPTS: 10, CAME: 12},
            {Times.E2E: EIGHT_OF_TWELVE},
            id="Triton with vLLM, of which only vLLM's part was kept",
        ),
        pytest.param(
            "num_requests_running 2\nnum_requests_waiting 1\nnum_request_max 256\n"
            "gpu_cache_usage_perc 0.5\nprompt_tokens_total 7\ngeneration_tokens_total 6\n"
            "request_success_total 3\nrequest_failure_total 1\n"
            + histogram("time_to_first_token_seconds"),
            "nim",
            {QUEUE: 1, RUNS: 2, KV: 0.5, PROMPTS: 7, TOKENS: 6, CAME: 4},
            {Times.TTFT: EIGHT_OF_TWELVE},
            id="NIM",
        ),
        pytest.param(
            "llamacpp:prompt_tokens_total 5\nllamacpp:prompt_tokens_cached_total 20\n"
            "llamacpp:tokens_predicted_total 40\nllamacpp:tokens_predicted_seconds_total 2\n"
            "llamacpp:n_tokens_max 900\nllamacpp:predicted_tokens_seconds 20\n"
            "llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n",
            "llamacpp",
            {QUEUE: 2, RUNS: 1, PROMPTS: 25, TOKENS: 40},
            {Times.ITL: (40, 2, None, None)},
            id="the newest llama.cpp, which tells no KV use",
        ),
        pytest.param(
            histogram("request_preprocess_seconds", 'model_name="m",')
            + histogram("request_predict_seconds", 'model_name="m",'),
            "kserve",
            {CAME: 12},
            {Times.E2E: EIGHT_OF_TWELVE},
            id="KServe's Python server",
        ),
        pytest.param(
            'ray_serve_deployment_queued_queries{deployment="d"} 2\n'
            'ray_serve_replica_processing_queries{deployment="d",replica="x"} 3\n'
            'ray_serve_replica_processing_queries{deployment="d",replica="y"} 1\n'
            'ray_serve_deployment_request_counter_total{deployment="d"} 9\n'
            'ray_serve_deployment_request_counter{deployment="d"} 9\n'
            'ray_serve_deployment_error_counter_total{deployment="d"} 1\n'
            'ray_serve_deployment_processing_latency_ms_bucket{deployment="d",le="100"} 9\n'
            'ray_serve_deployment_processing_latency_ms_bucket{deployment="d",le="+Inf"} 9\n'
            'ray_serve_deployment_processing_latency_ms_sum{deployment="d"} 450\n'
            'ray_serve_deployment_processing_latency_ms_count{deployment="d"} 9\n',
            "ray",
            {QUEUE: 2, RUNS: 4, CAME: 10},
            {Times.E2E: (9, 0.45, 0.05, 0.095)},
            id="Ray Serve",
        ),
        pytest.param(
            'ray_vllm:num_requests_running{WorkerId="w"} 2\n'
            'ray_vllm:num_requests_waiting{WorkerId="w"} 1\n'
            'ray_vllm:kv_cache_usage_perc{WorkerId="w"} 0.25\n'
            'ray_serve_replica_processing_queries{deployment="d"} 3\n',
            "ray",
            {QUEUE: 1, RUNS: 2, KV: 0.25},
            {},
            id="vLLM in Ray Serve",
        ),
        pytest.param(
            'tidegate_worker_requests_in_flight{model="a"} 5\n'
            'tidegate_worker_queue_depth{model="a"} 2\n'
            'tidegate_worker_requests_arrived_total{model="a"} 9\n'
            'nv_inference_request_success{model="a",version="1"} 4\n'
            + histogram("tidegate_worker_request_duration_seconds", 'model="a",')
            + histogram("tidegate_worker_queue_duration_seconds", 'model="a",'),
            "tidegate",
            {QUEUE: 2, RUNS: 3, CAME: 9},
            {Times.E2E: EIGHT_OF_TWELVE, Times.QUEUE: EIGHT_OF_TWELVE},
            id="the bundled worker, in which what waits is in flight too",
        ),
    ],
)
def test_every_engine_is_told_in_our_words(
    page: str, engine: str, readings: Mapping[str, float], histograms: Expected
) -> None:
    """Old and new names, units, and numbers that repeat one another."""
    found = said(page)
    assert (found.engine, found.readings) == (engine, readings)
    assert times(found) == near(histograms)


def test_capacity_is_told_where_an_engine_tells_it() -> None:
    """vLLM's is in labels: blocks times their size."""
    found = said(
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="4574"} 1\n'
        "vllm:num_requests_running 0\n"
    )
    assert found.capacities == {"kv_tokens_max": 16 * 4574}
    unset = said('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1\n')
    assert unset.capacities == {}


def test_what_is_absent_is_named_with_the_reason() -> None:
    """Never 0: not exposed, not told by this engine, or not to be believed."""
    found = said(
        "llamacpp:requests_processing 18446744073709551615\nllamacpp:requests_deferred NaN\n"
        "llamacpp:kv_cache_usage_ratio -1\n"
    )
    assert not found.readings
    assert not found.histograms
    assert (
        found.absent[RUNS] == "llamacpp:requests_processing is 1.84467e+19, which stands for"
        " unknown"
    )
    assert found.absent[QUEUE] == "llamacpp:requests_deferred is nan"
    assert found.absent[KV] == "llamacpp:kv_cache_usage_ratio is -1"
    assert found.absent[TOKENS] == "llamacpp:tokens_predicted_total is not exposed"
    assert found.absent[CAME] == "llama.cpp does not tell it"


def test_older_names_are_named_where_none_is_exposed() -> None:
    """Who reads that knows what was looked for."""
    found = said("vllm:num_requests_running 1\n")
    assert found.absent[KV] == (
        "vllm:kv_cache_usage_perc is not exposed, nor is vllm:gpu_cache_usage_perc"
    )


def test_times_that_cannot_be_believed_are_absent() -> None:
    """The reason is that of the name that is exposed."""
    page = (
        "vllm:time_per_output_token_seconds_sum NaN\nvllm:time_per_output_token_seconds_count 1\n"
    )
    assert said(page).absent[Times.ITL] == "vllm:time_per_output_token_seconds_sum is nan"


def test_triton_tells_of_its_gpus_too() -> None:
    """In our units; a GPU that it says nothing of is not there."""
    found = said(
        "nv_inference_request_success 1\n"
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5\n'
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 2048\n'
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 4096\n'
        'nv_gpu_power_usage{gpu_uuid="GPU-1"} NaN\n'
    )
    [device] = found.devices
    assert (device.uuid, device.utilization_ratio) == ("GPU-1", 0.5)
    assert (device.memory_used_bytes, device.memory_total_bytes) == (2048, 4096)
    assert device.power_w is None


def test_an_engine_may_be_named_instead_of_recognised() -> None:
    """Of one that has several rows it is the one that fits, else the plain one."""
    page = "vllm:num_requests_running 1\nnum_requests_running 2\nnv_trt_llm_request_metrics 3\n"
    assert said(page).readings == {RUNS: 1}
    assert said(page, "nim").readings == {RUNS: 2}
    assert said(page, "triton").name == "Triton with TensorRT-LLM"
    assert said("nv_cache_num 1\nx 1\n", "triton").name == "Triton"
    assert said("DCGM_FI_DEV_GPU_TEMP 1\n", "vllm").readings == {}


@pytest.mark.parametrize(
    ("page", "why"),
    [
        pytest.param("", "no metric in it", id="nothing"),
        pytest.param("# HELP x Y.\n", "no metric in it", id="a comment"),
        pytest.param("node_load1 1\n", "no metric of a known engine (dcgm, kserve", id="another"),
        pytest.param("Hello, this is text.\n", "not in Prometheus' text format: 'Hello", id="text"),
        pytest.param("<html></html>\n", "it is HTML", id="HTML"),
        pytest.param("vllm:num_requests_running 1", "cut off", id="cut off"),
    ],
)
def test_what_is_no_page_of_an_engine_is_refused(page: str, why: str) -> None:
    """With what it is instead."""
    found = told(page)
    assert isinstance(found, NoReading)
    assert why in found.why


NUMBERS = st.floats().map(str) | st.sampled_from(["1_0", "18446744073709551615", "", "1 2 3"])
TIMED = [way for engine in ENGINES for ways in engine.times.values() for way in ways]
LINES = [line for engine in ENGINES for line in engine.lines]
ANY_NAME = sorted({line.name for line in (*LINES, *TIMED) if isinstance(line, Line)})
ENDINGS = st.sampled_from(
    ["", "_sum", "_count", '_bucket{le="1"}', '_bucket{le="+Inf"}', '{a="b"}']
)


@given(st.lists(st.tuples(st.sampled_from(ANY_NAME), ENDINGS, NUMBERS), max_size=12))
def test_no_page_is_told_as_anything_but_finite_numbers(lines: list[tuple[str, str, str]]) -> None:
    """Whatever stands in it: numbers that can be, or why not."""
    found = told("".join(f"{name}{ending} {value}\n" for name, ending, value in lines))
    if isinstance(found, Told):
        spans = [v for of in times(found).values() for v in of]
        for value in (*found.readings.values(), *found.capacities.values(), *spans):
            assert value is None or (isinstance(value, float) and 0 <= value < inf)


def test_every_engine_that_was_promised_is_in_the_table() -> None:
    """By the names that the command line takes."""
    llms = ("llamacpp", "nim", "sglang", "tgi", "trtllm", "vllm")
    assert {*llms, "dcgm", "kserve", "ray", "tidegate", "torchserve", "triton"} == set(KEYS)
    assert len({engine.name for engine in ENGINES}) == len(ENGINES)


def test_a_distribution_of_nothing_has_no_quantile() -> None:
    """A server that has answered nobody is not a fast one."""
    page = histogram("vllm:time_to_first_token_seconds", times_=0)
    assert said(page).histograms[Times.TTFT] == Distribution(0.0, 0.0)
