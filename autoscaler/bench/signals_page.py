# SPDX-License-Identifier: Apache-2.0
"""A page of metrics as a vLLM replica shows it: names, labels, buckets; the numbers are made up.

Pure. As long as a real one, about 50 kB, and of the same make: nine tenths are buckets of
histograms and lines of the web framework and of Python, which nobody who scales asks for. Counters
grow from step to step.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

MODEL: Final = "harbour-8b"

Labels = Mapping[str, str]

_WAITED_S: Final = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480,
                    960, 1920, 7680)  # fmt: skip
_FIRST_TOKEN_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5,
                         5, 7.5, 10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
_NEXT_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
                        7.5, 10, 20, 40, 80)  # fmt: skip
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_PER_STEP: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ASKED_FOR: Final = (1, 2, 5, 10, 20)
_HTTP_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5,
                  7.5, 10, 30, 60)  # fmt: skip

_HISTOGRAMS: Final[Mapping[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": _FIRST_TOKEN_S,
    "inter_token_latency_seconds": _NEXT_TOKEN_S,
    "request_time_per_output_token_seconds": _NEXT_TOKEN_S,
    "e2e_request_latency_seconds": _WAITED_S,
    "request_queue_time_seconds": _WAITED_S,
    "request_inference_time_seconds": _WAITED_S,
    "request_prefill_time_seconds": _WAITED_S,
    "request_decode_time_seconds": _WAITED_S,
    "request_prompt_tokens": _TOKENS,
    "request_generation_tokens": _TOKENS,
    "request_max_num_generation_tokens": _TOKENS,
    "request_params_max_tokens": _TOKENS,
    "request_params_n": _ASKED_FOR,
    "iteration_tokens_total": _PER_STEP,
}
_COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {  # a label, and what it can be
    "prefix_cache_queries": ("", ()),
    "prefix_cache_hits": ("", ()),
    "external_prefix_cache_queries": ("", ()),
    "external_prefix_cache_hits": ("", ()),
    "mm_cache_queries": ("", ()),
    "mm_cache_hits": ("", ()),
    "num_preemptions": ("", ()),
    "prompt_tokens": ("", ()),
    "prompt_tokens_by_source": ("source", ("local_compute", "local_cache", "external_cache")),
    "generation_tokens": ("", ()),
    "request_success": ("finished_reason", ("stop", "length", "abort", "error", "repetition")),
    "admission_rejections": ("reason", ("queue_full", "too_long")),
    "watermark_requests": ("", ()),
}
_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "none")


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Made-up numbers that are the same for the same series and step; counters never fall."""

    step: int

    def level(self, name: str, *, most: float) -> float:
        return round(Random(f"{name}/{self.step}").uniform(0, most), 3)  # noqa: S311

    def total(self, name: str, *, most_per_step: float) -> float:
        began = Random(name)  # noqa: S311 - no secret depends on it
        per_step = began.uniform(0, most_per_step)
        return float(round(began.uniform(1_000, 9_000_000) + per_step * self.step))


def page(step: int) -> bytes:
    """What a replica shows at its `step`-th second."""
    numbers = _Numbers(step)
    lines = [*_python(numbers), *_engine(numbers), *_web(numbers)]
    return "".join(f"{line}\n" for line in lines).encode()


def _engine(numbers: _Numbers) -> Iterator[str]:
    of = {"engine": "0", "model_name": MODEL}
    for name, most in (("num_requests_running", 256), ("num_requests_waiting", 40)):
        yield from _gauge(f"vllm:{name}", of, float(round(numbers.level(name, most=most))))
    yield from _head("vllm:num_requests_waiting_by_reason", "gauge")
    for reason in ("capacity", "deferred"):
        value = float(round(numbers.level(reason, most=20)))
        yield _line("vllm:num_requests_waiting_by_reason", {**of, "reason": reason}, value)
    yield from _head("vllm:engine_sleep_state", "gauge")
    for state in ("awake", "weights_offloaded", "discard_all"):
        yield _line("vllm:engine_sleep_state", {**of, "sleep_state": state}, float(state[0] == "a"))
    yield from _gauge("vllm:kv_cache_usage_perc", of, numbers.level("kv", most=1.0))
    for name, (label, values) in _COUNTERS.items():
        each = [{**of, label: value} for value in values] or [of]
        yield from _counter(f"vllm:{name}", each, numbers)
    for name, bounds in _HISTOGRAMS.items():
        yield from _histogram(f"vllm:{name}", [of], bounds, numbers)
    yield from _gauge("vllm:cache_config_info", {**of, **_CACHE}, 1.0)
    lora = {"max_lora": "4", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    yield from _gauge("vllm:lora_requests_info", lora, 1.76e9 + numbers.step)


_CACHE: Final = {
    "block_size": "16",
    "cache_dtype": "auto",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.9",
    "num_gpu_blocks": "31234",
    "prefix_caching_hash_algo": "sha256",
    "sliding_window": "None",
    "swap_space": "4",
}


def _web(numbers: _Numbers) -> Iterator[str]:
    asked = [
        {"handler": path, "method": "GET" if path == "none" else "POST", "status": status}
        for path in _PATHS
        for status in ("2xx", "4xx", "5xx")
    ]
    yield from _counter("http_requests", asked, numbers)
    methods = [{"handler": one["handler"], "method": one["method"]} for one in asked[::3]]
    for name in ("http_request_size_bytes", "http_response_size_bytes"):
        yield from _histogram(name, methods, (), numbers)
    yield from _histogram("http_request_duration_highr_seconds", [{}], _HTTP_S, numbers)
    yield from _histogram("http_request_duration_seconds", methods, (0.1, 0.5, 1), numbers)


def _python(numbers: _Numbers) -> Iterator[str]:
    for name in ("objects_collected", "objects_uncollectable", "collections"):
        each = [{"generation": generation} for generation in "012"]
        yield from _counter(f"python_gc_{name}", each, numbers)
    version = {"implementation": "CPython", "major": "3", "minor": "12", "patchlevel": "11"}
    yield from _gauge("python_info", {**version, "version": "3.12.11"}, 1.0)
    for name in ("virtual_memory_bytes", "resident_memory_bytes", "open_fds", "max_fds"):
        yield from _gauge(f"process_{name}", {}, numbers.total(name, most_per_step=0))
    yield from _counter("process_cpu_seconds", [{}], numbers)


def _gauge(name: str, labels: Labels, value: float) -> Iterator[str]:
    yield from _head(name, "gauge")
    yield _line(name, labels, value)


def _counter(name: str, each: Iterable[Labels], numbers: _Numbers) -> Iterator[str]:
    each = list(each)
    yield from _head(f"{name}_total", "counter")
    for labels in each:
        value = numbers.total(f"{name}{labels}", most_per_step=4000)
        yield _line(f"{name}_total", labels, value)
    yield from _created(name, each)


def _histogram(
    name: str, each: Iterable[Labels], bounds: tuple[float, ...], numbers: _Numbers
) -> Iterator[str]:
    each = list(each)
    yield from _head(name, "histogram" if bounds else "summary")
    for labels in each:
        count = 0.0
        for bound in [*map(float, bounds), *(["+Inf"] if bounds else [])]:
            count += numbers.total(f"{name}{bound}{labels}", most_per_step=30)
            yield _line(f"{name}_bucket", {**labels, "le": f"{bound}"}, count)
        count = count or numbers.total(f"{name}{labels}", most_per_step=30)
        yield _line(f"{name}_count", labels, count)
        yield _line(f"{name}_sum", labels, count * 1.37)
    yield from _created(name, each)


def _created(name: str, each: Iterable[Labels]) -> Iterator[str]:
    """When each series began: Python's client shows it as a family of its own."""
    yield from _head(f"{name}_created", "gauge")
    for labels in each:
        yield _line(f"{name}_created", labels, 1.7637123459871e9)


def _head(name: str, kind: str) -> Iterator[str]:
    words = name.replace(":", " ").replace("_", " ")
    yield f"# HELP {name} Seen of {words}."
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: Labels, value: float) -> str:
    if not labels:
        return f"{name} {value}"
    said = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{said}}} {value}"
