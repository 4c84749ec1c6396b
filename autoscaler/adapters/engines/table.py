# SPDX-License-Identifier: Apache-2.0
"""Only this file knows the metric names of model servers. How a line is written: `notation.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from autoscaler.adapters.engines.notation import Line, TimeWays, Ways, time_ways, ways
from autoscaler.core.signals import Measure


class Detail(StrEnum):
    """What engines tell that no decision is made of, beside the measures."""

    RUNNING = "running"  # requests that are computed now
    PREEMPTIONS_TOTAL = "preemptions_total"  # requests that lost their place in the KV cache
    KV_TOKENS_MAX = "kv_tokens_max"  # tokens that the KV cache has room for
    RUNNING_MAX = "running_max"  # requests that may run at once


class Times(StrEnum):
    """How long something takes; the value is its name for users."""

    TTFT = "ttft_s"  # from arriving to the first token
    ITL = "itl_s"  # from one token to the next
    E2E = "e2e_s"  # from arriving to the last token
    QUEUE = "queue_s"  # from arriving to running


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """One kind of model server: the lines that each quantity is the sum of.

    `key`: how users name it; `known_by`: how the names of its samples begin, and `known_label` a
    label that the first of them carries; where two engines fit, the first of the table.
    `same_on`: labels of ranks that work on the same requests and so repeat one another's numbers;
    of such series the largest counts. `whole_on`: labels that are empty for a whole that other
    series give the parts of. Over all other labels (models, data-parallel ranks) one sums, and
    takes the mean of what is a part of a whole.
    `stirs`: of an engine that counts no requests, totals that no request leaves as they were.
    `born_late`: its totals are not exposed before the first request has moved them.
    `unended`, `work_s`: of an engine without a gauge of what runs, requests that began less those
    that ended, and the seconds of CPU of the process that tells so (`stillness.py`).
    """

    name: str
    key: str
    known_by: tuple[str, ...]
    samples: Mapping[Measure, Ways]
    details: Mapping[Detail, Ways]
    times: Mapping[Times, TimeWays]
    known_label: str = ""
    same_on: frozenset[str] = frozenset()
    whole_on: frozenset[str] = frozenset()
    stirs: Ways = ()
    born_late: bool = False
    unended: Ways = ()
    work_s: Ways = ()

    @property
    def proves_idle(self) -> bool:
        """Whether its page can show that it does nothing."""
        counts = self.stirs or self.samples.get(Measure.REQUESTS_TOTAL)
        return bool(counts and (self.samples.get(Measure.IN_FLIGHT) or self.unended))

    @property
    def lines(self) -> tuple[Line, ...]:
        """All that the measures are made of."""
        return tuple(
            line
            for either in (*self.samples.values(), self.stirs, self.unended, self.work_s)
            for way in either
            for line in way
        )


Written = Mapping[Measure | Detail | Times, str]


def _engine(
    name: str,
    key: str,
    *,
    known_by: tuple[str, ...],
    tells: Written,
    known_label: str = "",
    same_on: frozenset[str] = frozenset(),
    whole_on: frozenset[str] = frozenset(),
    stirs: str = "",
    born_late: bool = False,
    unended: str = "",
    work_s: str = "",
) -> Engine:
    return Engine(
        name,
        key,
        known_by,
        samples={m: ways(line) for m, line in tells.items() if isinstance(m, Measure)},
        details={d: ways(line) for d, line in tells.items() if isinstance(d, Detail)},
        times={t: time_ways(line) for t, line in tells.items() if isinstance(t, Times)},
        known_label=known_label,
        same_on=same_on,
        whole_on=whole_on,
        stirs=ways(stirs) if stirs else (),
        born_late=born_late,
        unended=ways(unended) if unended else (),
        work_s=ways(work_s) if work_s else (),
    )


def _vllm(prefix: str) -> Written:
    """vLLM's names are used by others too, under prefixes of their own.

    A swapped request of V0 neither runs nor waits, and is inside all the same. The KV cache of
    data-parallel engines is told for each: their mean is the used part of all the memory together,
    the same number that as many replicas of one engine would give.
    """
    names: Written = {
        Measure.IN_FLIGHT: "~num_requests_running + ~num_requests_waiting + ~num_requests_swapped?",
        Measure.WAITING: "~num_requests_waiting",
        Measure.REQUESTS_TOTAL: "~request_success_total",
        Measure.TOKENS_TOTAL: "~generation_tokens_total",
        Measure.PROMPT_TOKENS_TOTAL: "~prompt_tokens_total",
        Measure.KV_USED: "~kv_cache_usage_perc | ~gpu_cache_usage_perc",
        Detail.RUNNING: "~num_requests_running",
        Detail.PREEMPTIONS_TOTAL: "~num_preemptions_total",
        Detail.KV_TOKENS_MAX: "~cache_config_info[num_gpu_blocks block_size]",
        Times.TTFT: "~time_to_first_token_seconds",
        # The newest name has every gap between two tokens, the last one a mean for each request.
        Times.ITL: "~inter_token_latency_seconds | ~time_per_output_token_seconds"
        " | ~request_time_per_output_token_seconds",
        Times.E2E: "~e2e_request_latency_seconds",
        Times.QUEUE: "~request_queue_time_seconds | ~time_in_queue_requests",
    }
    return {quantity: line.replace("~", prefix) for quantity, line in names.items()}


def _either(first: Written, second: Written) -> Written:
    """The lines of both, the first one's where both are exposed."""
    both = {**second, **first}
    return {
        quantity: " | ".join(dict.fromkeys(w[quantity] for w in (first, second) if quantity in w))
        for quantity in both
    }


def _trtllm(prefix: str) -> Written:
    """TensorRT-LLM's own server; the first ones that told anything had no prefix."""
    names: Written = {
        Measure.IN_FLIGHT: "~num_requests_running + ~num_requests_waiting",
        Measure.WAITING: "~num_requests_waiting",
        Measure.REQUESTS_TOTAL: "~request_success_total | ~num_requests_completed_total",
        Measure.TOKENS_TOTAL: "~generation_tokens_total",
        Measure.PROMPT_TOKENS_TOTAL: "~prompt_tokens_total",
        Measure.KV_USED: "~kv_cache_utilization",
        Detail.RUNNING: "~num_requests_running",
        Detail.RUNNING_MAX: "~max_num_active_requests",
        Times.TTFT: "~time_to_first_token_seconds",
        Times.ITL: "~time_per_output_token_seconds",
        Times.E2E: "~e2e_request_latency_seconds",
        Times.QUEUE: "~request_queue_time_seconds",
    }
    return {quantity: line.replace("~", prefix) for quantity, line in names.items()}


_TRITON_REQUESTS = "nv_inference_request_success + nv_inference_request_failure?"

# Triton gives totals of microseconds, and histograms and summaries where they were asked for.
_TRITON: Written = {
    Measure.WAITING: "nv_inference_pending_request_count",
    Measure.REQUESTS_TOTAL: _TRITON_REQUESTS,
    # For a backend that does not stream this is the whole answer.
    Times.TTFT: "nv_inference_first_response_histogram_ms * 0.001",
    Times.E2E: "nv_inference_request_summary_us * 1e-6"
    " | nv_inference_request_duration_us * 1e-6 / nv_inference_request_success",
    Times.QUEUE: "nv_inference_queue_summary_us * 1e-6"
    " | nv_inference_queue_duration_us * 1e-6 / nv_inference_request_success",
}

# A request that waits inside a replica is in flight too; most engines count the two apart. Totals
# of requests are of those that arrived where an engine says so, else of those that ended: together
# with what is in flight, both prove that nothing came. A request whose client left early is in the
# totals of few engines; nobody waits for it.
ENGINES: tuple[Engine, ...] = (
    # Its vLLM backend labels samples as Triton does; vLLM itself has no label `version`.
    _engine(
        "Triton with vLLM",
        "triton",
        known_by=("vllm:",),
        known_label="version",
        tells={
            **_either(_vllm("vllm:"), _TRITON),
            Measure.IN_FLIGHT: "vllm:num_requests_running + vllm:num_requests_waiting"
            " + nv_inference_pending_request_count?",
            Measure.REQUESTS_TOTAL: f"{_TRITON_REQUESTS} | vllm:request_success_total"
            " | vllm:e2e_request_latency_seconds_count",
        },
    ),
    _engine("vLLM", "vllm", known_by=("vllm:",), tells=_vllm("vllm:")),
    _engine(
        "SGLang",
        "sglang",
        known_by=("sglang:",),
        tells={
            # Those that wait for a grammar, are paused, or are on their way between prefill and
            # decode servers are in neither of the first two.
            Measure.IN_FLIGHT: "sglang:num_running_reqs + sglang:num_queue_reqs"
            " + sglang:num_grammar_queue_reqs? + sglang:num_paused_reqs?"
            " + sglang:num_prefill_prealloc_queue_reqs?"
            " + sglang:num_prefill_bootstrap_queue_reqs?"
            " + sglang:num_prefill_inflight_queue_reqs?"
            " + sglang:num_decode_prealloc_queue_reqs?"
            " + sglang:num_decode_transfer_queue_reqs?",
            Measure.WAITING: "sglang:num_queue_reqs",
            Measure.REQUESTS_TOTAL: "sglang:num_requests_total"
            " | sglang:e2e_request_latency_seconds_count",
            # Both move only when a request finishes, so their rates lag by a request's length.
            Measure.TOKENS_TOTAL: "sglang:generation_tokens_total",
            Measure.PROMPT_TOKENS_TOTAL: "sglang:prompt_tokens_total",
            Measure.KV_USED: "sglang:token_usage",
            Detail.RUNNING: "sglang:num_running_reqs",
            Detail.PREEMPTIONS_TOTAL: "sglang:num_retracted_requests_total"
            " | sglang:num_retracted_reqs_total",
            Detail.KV_TOKENS_MAX: "sglang:max_total_num_tokens",
            Detail.RUNNING_MAX: "sglang:max_running_requests_under_SLO",
            Times.TTFT: "sglang:time_to_first_token_seconds",
            Times.ITL: "sglang:inter_token_latency_seconds | sglang:time_per_output_token_seconds"
            " | sglang:request_time_per_output_token_seconds",
            Times.E2E: "sglang:e2e_request_latency_seconds",
            Times.QUEUE: "sglang:queue_time_seconds",
        },
        same_on=frozenset({"tp_rank", "pp_rank", "moe_ep_rank"}),
        whole_on=frozenset({"priority"}),
        born_late=True,
    ),
    _engine(
        "TGI",
        "tgi",
        known_by=("tgi_",),
        tells={
            Measure.IN_FLIGHT: "tgi_batch_current_size + tgi_queue_size",
            Measure.WAITING: "tgi_queue_size",
            Measure.REQUESTS_TOTAL: "tgi_request_count",
            Measure.TOKENS_TOTAL: "tgi_request_generated_tokens_sum",
            Measure.PROMPT_TOKENS_TOTAL: "tgi_request_input_length_sum",
            Detail.RUNNING: "tgi_batch_current_size",
            Detail.KV_TOKENS_MAX: "tgi_batch_current_max_tokens",
            # A mean for each request.
            Times.ITL: "tgi_request_mean_time_per_token_duration",
            Times.E2E: "tgi_request_duration",
            Times.QUEUE: "tgi_request_queue_duration",
        },
        born_late=True,
    ),
    _engine(
        "llama.cpp",
        "llamacpp",
        known_by=("llamacpp:",),
        tells={
            Measure.IN_FLIGHT: "llamacpp:requests_processing + llamacpp:requests_deferred",
            Measure.WAITING: "llamacpp:requests_deferred",
            Measure.TOKENS_TOTAL: "llamacpp:tokens_predicted_total",
            # Tokens that were found in the cache are counted apart, where they are counted.
            Measure.PROMPT_TOKENS_TOTAL: "llamacpp:prompt_tokens_total"
            " + llamacpp:prompt_tokens_cached_total?",
            Measure.KV_USED: "llamacpp:kv_cache_usage_ratio",
            Detail.RUNNING: "llamacpp:requests_processing",
            Times.ITL: "llamacpp:tokens_predicted_seconds_total / llamacpp:tokens_predicted_total",
        },
        stirs="llamacpp:prompt_tokens_total + llamacpp:tokens_predicted_total",
    ),
    # Older ones tell neither what runs nor what waits, and so cannot prove that they are idle.
    _engine(
        "trtllm-serve",
        "trtllm",
        known_by=("trtllm_", "trtllm:"),  # the latter is Dynamo's older prefix
        tells=_either(_trtllm("trtllm_"), _trtllm("trtllm:")),
        born_late=True,
    ),
    # It exposes names of Triton too, for dashboards, and so comes before Triton.
    _engine(
        "tidegate worker",
        "tidegate",
        known_by=("tidegate_worker_",),
        tells={
            Measure.IN_FLIGHT: "tidegate_worker_requests_in_flight",
            Measure.WAITING: "tidegate_worker_queue_depth",
            Measure.REQUESTS_TOTAL: "tidegate_worker_requests_arrived_total",
            Measure.REQUEST_SECONDS_TOTAL: "tidegate_worker_request_seconds_total",
            Detail.RUNNING: "tidegate_worker_requests_in_flight - tidegate_worker_queue_depth",
            Times.E2E: "tidegate_worker_request_duration_seconds",
            Times.QUEUE: "tidegate_worker_queue_duration_seconds",
        },
    ),
    # "active" are those that are scheduled and those that wait; older ones do not tell the last.
    _engine(
        "Triton with TensorRT-LLM",
        "triton",
        known_by=("nv_trt_llm_",),
        tells={
            **_TRITON,
            Measure.IN_FLIGHT: 'nv_trt_llm_request_metrics{request_type="scheduled"}'
            ' + nv_trt_llm_request_metrics{request_type="waiting"}'
            " + nv_inference_pending_request_count?"
            ' | nv_trt_llm_request_metrics{request_type="active"}'
            " + nv_inference_pending_request_count?",
            Measure.WAITING: 'nv_trt_llm_request_metrics{request_type="waiting"}'
            ' | nv_trt_llm_request_metrics{request_type="active"}'
            ' - nv_trt_llm_request_metrics{request_type="scheduled"}',
            Measure.KV_USED: 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}',
            Detail.RUNNING: 'nv_trt_llm_request_metrics{request_type="scheduled"}',
            Detail.RUNNING_MAX: 'nv_trt_llm_request_metrics{request_type="max"}',
        },
    ),
    # From here on: what waits or what ended, and never what runs.
    _engine("Triton", "triton", known_by=("nv_inference_", "nv_"), tells=_TRITON),
    # It hears of its replicas only every ten seconds: too late to prove that nothing runs. What it
    # counts is exposed with `_total` and, for a while, once more without.
    _engine(
        "Ray Serve",
        "ray",
        known_by=("ray_serve_", "ray_vllm"),
        tells=_either(
            {
                quantity: line
                for quantity, line in _either(_vllm("ray_vllm_"), _vllm("ray_vllm:")).items()
                if quantity is not Measure.IN_FLIGHT
            },
            {
                Measure.WAITING: "ray_serve_deployment_queued_queries",
                Measure.REQUESTS_TOTAL: "ray_serve_deployment_request_counter_total"
                " + ray_serve_deployment_error_counter_total?"
                " | ray_serve_deployment_request_counter + ray_serve_deployment_error_counter?",
                Detail.RUNNING: "ray_serve_replica_processing_queries"
                " | ray_serve_num_ongoing_requests_at_replicas",
                Times.E2E: "ray_serve_deployment_processing_latency_ms * 0.001",
            },
        ),
    ),
    _engine(
        "TorchServe",
        "torchserve",
        # Before the first request its totals have a type and no sample.
        known_by=("ts_inference_", "ts_queue_", "# TYPE ts_inference_requests_total counter"),
        tells={
            Measure.REQUESTS_TOTAL: "ts_inference_requests_total",
            Times.E2E: "ts_inference_latency_microseconds * 1e-6 / ts_inference_requests_total",
            Times.QUEUE: "ts_queue_latency_microseconds * 1e-6 / ts_inference_requests_total",
        },
    ),
    _engine(
        "KServe's Python server",
        "kserve",
        # Before the first request its histograms have a type and no sample.
        known_by=(
            "request_predict_",
            "request_preprocess_",
            "request_explain_",
            "# TYPE request_predict_seconds histogram",
        ),
        tells={
            Measure.REQUESTS_TOTAL: "request_predict_seconds_count + request_explain_seconds_count?"
            " | request_explain_seconds_count",
            # Without what is done before and after the model itself.
            Times.E2E: "request_predict_seconds",
        },
        # What is refused before it reaches the model has begun and never ends.
        unended="request_preprocess_seconds_count - request_predict_seconds_count?"
        " - request_explain_seconds_count?",
        work_s="process_cpu_seconds_total",
        born_late=True,
    ),
    # From here on names without a prefix: last, because they could be anybody's.
    _engine(
        "trtllm-serve 1.1",
        "trtllm",
        known_by=("request_success_total", "time_to_first_token_", "e2e_request_latency_"),
        known_label="engine_type",
        tells=_trtllm(""),
        born_late=True,
    ),
    _engine(
        "NIM",
        "nim",
        known_by=("num_requests_running", "num_requests_waiting", "num_request_max", "gpu_cache_"),
        tells={
            **_vllm(""),
            Measure.REQUESTS_TOTAL: "request_success_total + request_failure_total?"
            " | request_finish_total",
            Detail.RUNNING_MAX: "num_request_max",
        },
    ),
)

# The exporter of GPUs' own numbers serves no model: how `adapters/gpus` reads it is another matter.
EXPORTER_KEY = "dcgm"
EXPORTER_KNOWN_BY = "DCGM_FI_"
