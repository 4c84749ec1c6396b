# SPDX-License-Identifier: Apache-2.0
"""What is asked follows from the table of engines; an answer is read pod by pod."""

from collections.abc import Mapping
from math import inf, nan

import pytest

from autoscaler.adapters.engines.table import ENGINES
from autoscaler.adapters.prometheus.client import Sample
from autoscaler.adapters.prometheus.queries import (
    MEASURED,
    PART,
    TIME,
    Question,
    Told,
    questions,
    told_by_pods,
)
from autoscaler.core.signals import NoReading, Signal

NOW_S = 5000.0
ASKED = {question.signal: question for question in questions(window_s=60.0)}
POD = {"namespace": "team", "pod": "chat-a"}


def part_of(question: Question, name: str) -> str:
    """The number that a metric has in a query; of several, as vLLM alone has it."""
    parts = [use.part for way in question.ways for use in way.uses if use.name == name]
    return parts[-1]


def told(
    signal: Signal, values: Mapping[str, float | None], *, seen_s_ago: float = 3.0
) -> Told | NoReading:
    """What an answer with these metrics says of one pod; None: without a value."""
    question = ASKED[signal]
    samples = []
    for name, value in values.items():
        part = part_of(question, name)
        samples.append(Sample({**POD, PART: part + TIME}, NOW_S - seen_s_ago, NOW_S))
        if value is not None:
            samples.append(Sample({**POD, PART: part}, value, NOW_S))
    return told_by_pods(question, samples)["team", "chat-a"]


def test_every_signal_has_one_question() -> None:
    """All that a target can be set for, by name."""
    assert set(ASKED) == set(Signal)


@pytest.mark.parametrize("signal", MEASURED)
def test_every_engine_that_tells_a_signal_is_asked_for_it(signal: Signal) -> None:
    """Under each of its names, older and newer."""
    for engine in ENGINES:
        for way in engine.samples.get(MEASURED[signal], ()):
            for line in way:
                assert line.name in ASKED[signal].promql


def test_what_runs_and_what_waits_is_in_flight() -> None:
    """A metric that only some versions have counts where it is there."""
    both: dict[str, float | None] = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 4,
    }
    assert told(Signal.CONCURRENCY, both) == Told(7, 3.0)
    assert told(Signal.CONCURRENCY, {**both, "vllm:num_requests_swapped": 2}) == Told(9, 3.0)


def test_a_sum_that_lacks_a_part_is_no_reading() -> None:
    """What waits is not all that is in flight; the missing one is named."""
    seen = told(Signal.CONCURRENCY, {"vllm:num_requests_waiting": 4})
    assert seen == NoReading("vllm:num_requests_running is not exposed, or no longer scraped")


def test_older_names_are_read_too() -> None:
    """vLLM's KV cache had another name once."""
    assert told(Signal.KV, {"vllm:gpu_cache_usage_perc": 0.25}) == Told(0.25, 3.0)
    assert told(Signal.KV, {"vllm:kv_cache_usage_perc": 0.5}) == Told(0.5, 3.0)


@pytest.mark.parametrize("value", [nan, inf, -inf, -1.0, 1.5, 2.0**64])
def test_what_cannot_be_a_part_of_a_whole_is_no_reading(value: float) -> None:
    """Neither a mark that stands for unknown, nor a mistake."""
    assert isinstance(told(Signal.KV, {"vllm:kv_cache_usage_perc": value}), NoReading)


def test_a_rate_needs_two_samples() -> None:
    """A series that has only begun has a time and no rate."""
    seen = told(Signal.TOKENS_PER_S, {"vllm:generation_tokens_total": None})
    assert isinstance(seen, NoReading)
    assert "fewer than two samples in 60 s" in seen.why


def test_the_older_of_two_gpu_fields_counts_where_the_newer_is_no_number() -> None:
    """DCGM's percent are parts of 1, and its marks are nothing."""
    busy: dict[str, float | None] = {"DCGM_FI_DEV_GPU_UTIL": 40}
    assert told(Signal.GPU_UTILIZATION, busy) == Told(0.4, 3.0)
    marked = {"DCGM_FI_PROF_GR_ENGINE_ACTIVE": 2.0**64 - 1, **busy}
    assert told(Signal.GPU_UTILIZATION, marked) == Told(0.4, 3.0)
    both = {"DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.3, **busy}
    assert told(Signal.GPU_UTILIZATION, both) == Told(0.3, 3.0)


@pytest.mark.parametrize(
    ("labels", "place"),
    [
        ({"namespace": "gpu", "pod": "dcgm", "exported_namespace": "a", "exported_pod": "b"}, "ab"),
        ({"namespace": "gpu", "pod": "dcgm", "pod_namespace": "a", "pod_name": "b"}, "ab"),
        ({"kubernetes_namespace": "a", "kubernetes_pod_name": "b"}, "ab"),
        ({"namespace": "a", "pod": "b", "exported_pod": ""}, "ab"),
    ],
)
def test_whose_a_series_is_stands_in_one_of_several_labels(
    labels: dict[str, str], place: str
) -> None:
    """What an exporter says of others comes before what it is itself."""
    question = ASKED[Signal.KV]
    part = part_of(question, "vllm:kv_cache_usage_perc")
    answer = [
        Sample({**labels, PART: part}, 0.5, NOW_S),
        Sample({**labels, PART: part + TIME}, NOW_S, NOW_S),
    ]
    assert told_by_pods(question, answer) == {tuple(place): Told(0.5, 0.0)}


def test_a_series_of_nobody_is_left_out() -> None:
    """As of a target that is no pod."""
    question = ASKED[Signal.KV]
    assert told_by_pods(question, [Sample({"pod": "a", PART: "0"}, 1.0, NOW_S)]) == {}
