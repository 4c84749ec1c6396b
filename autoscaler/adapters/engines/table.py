# SPDX-License-Identifier: Apache-2.0
"""Only this file knows the metric names of model servers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.core.signals import Measure


@dataclass(frozen=True, slots=True)
class Line:
    """The samples of one name; of those only the ones that carry all labels of `where`."""

    name: str
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of model server: the lines that each measure is the sum of.

    `known_by`: how the names of its samples begin; where two engines fit, the first of the table.
    `same_on`: labels of ranks that work on the same requests and so repeat one another's numbers;
    of such series the largest counts. Over all other labels one sums: models, data-parallel ranks.
    `stirs`: of an engine that counts no requests, totals that no request leaves as they were.
    `born_late`: its totals are not exposed before the first request has moved them.
    """

    name: str
    known_by: str
    samples: Mapping[Measure, tuple[Line, ...]]
    same_on: frozenset[str] = frozenset()
    stirs: tuple[Line, ...] = ()
    born_late: bool = False

    @property
    def lines(self) -> tuple[Line, ...]:
        return (*(line for lines in self.samples.values() for line in lines), *self.stirs)


# A request that waits inside a replica is in flight too; most engines count the two apart. Totals
# of requests are of those that arrived where an engine says so, else of those that ended: together
# with what is in flight, both prove that nothing came. A request whose client left early is in the
# totals of few engines; nobody waits for it.
ENGINES: tuple[Engine, ...] = (
    Engine(
        "tidegate worker",
        known_by="tidegate_worker_",
        samples={
            Measure.IN_FLIGHT: (Line("tidegate_worker_requests_in_flight"),),
            Measure.WAITING: (Line("tidegate_worker_queue_depth"),),
            Measure.REQUESTS_TOTAL: (Line("tidegate_worker_requests_arrived_total"),),
            Measure.REQUEST_SECONDS_TOTAL: (Line("tidegate_worker_request_seconds_total"),),
        },
    ),
    Engine(
        "vLLM",
        known_by="vllm:",
        samples={
            Measure.IN_FLIGHT: (
                Line("vllm:num_requests_running"),
                Line("vllm:num_requests_waiting"),
            ),
            Measure.WAITING: (Line("vllm:num_requests_waiting"),),
            Measure.REQUESTS_TOTAL: (Line("vllm:request_success_total"),),
            Measure.TOKENS_TOTAL: (Line("vllm:generation_tokens_total"),),
        },
    ),
    Engine(
        "SGLang",
        known_by="sglang:",
        samples={
            Measure.IN_FLIGHT: (Line("sglang:num_running_reqs"), Line("sglang:num_queue_reqs")),
            Measure.WAITING: (Line("sglang:num_queue_reqs"),),
            Measure.REQUESTS_TOTAL: (Line("sglang:e2e_request_latency_seconds_count"),),
            # It moves only when a request finishes, so its rate lags by a request's length.
            Measure.TOKENS_TOTAL: (Line("sglang:generation_tokens_total"),),
        },
        same_on=frozenset({"tp_rank", "pp_rank", "moe_ep_rank"}),
        born_late=True,
    ),
    Engine(
        "TGI",
        known_by="tgi_",
        samples={
            Measure.IN_FLIGHT: (Line("tgi_batch_current_size"), Line("tgi_queue_size")),
            Measure.WAITING: (Line("tgi_queue_size"),),
            Measure.REQUESTS_TOTAL: (Line("tgi_request_count"),),
            Measure.TOKENS_TOTAL: (Line("tgi_request_generated_tokens_sum"),),
        },
        born_late=True,
    ),
    Engine(
        "llama.cpp",
        known_by="llamacpp:",
        samples={
            Measure.IN_FLIGHT: (
                Line("llamacpp:requests_processing"),
                Line("llamacpp:requests_deferred"),
            ),
            Measure.WAITING: (Line("llamacpp:requests_deferred"),),
            Measure.TOKENS_TOTAL: (Line("llamacpp:tokens_predicted_total"),),
        },
        stirs=(Line("llamacpp:prompt_tokens_total"), Line("llamacpp:tokens_predicted_total")),
    ),
    Engine(
        "Triton with TensorRT-LLM",
        known_by="nv_trt_llm_",
        samples={
            Measure.IN_FLIGHT: (
                Line("nv_trt_llm_request_metrics", {"request_type": "active"}),
                Line("nv_trt_llm_request_metrics", {"request_type": "waiting"}),
            ),
            Measure.WAITING: (Line("nv_trt_llm_request_metrics", {"request_type": "waiting"}),),
            Measure.REQUESTS_TOTAL: (
                Line("nv_inference_request_success"),
                Line("nv_inference_request_failure"),
            ),
        },
    ),
    # These tell what waits or what ended, and never what runs: they cannot prove that they are
    # idle.
    Engine(
        "Triton",
        known_by="nv_inference_",
        samples={
            Measure.WAITING: (Line("nv_inference_pending_request_count"),),
            Measure.REQUESTS_TOTAL: (
                Line("nv_inference_request_success"),
                Line("nv_inference_request_failure"),
            ),
        },
    ),
    Engine(
        "KServe's Python server",
        known_by="request_predict_seconds",
        samples={Measure.REQUESTS_TOTAL: (Line("request_predict_seconds_count"),)},
    ),
)
