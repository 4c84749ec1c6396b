# SPDX-License-Identifier: Apache-2.0
"""Only this file knows metric names. Imported at the first scrape: the client library costs the
start 50 ms.

`nv_inference_*` repeat counts under the names that dashboards and perf_analyzer know from Triton.
"""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from serving.telemetry import Histogram, ModelCounts, Telemetry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

GAUGES: tuple[tuple[str, str, Callable[[ModelCounts], float | None]], ...] = (
    (
        "tidegate_worker_requests_in_flight",
        "Inference requests received and not yet answered, queued ones included.",
        lambda m: m.in_flight,
    ),
    ("tidegate_worker_queue_depth", "Inference requests that wait to run.", lambda m: m.queued),
    (
        "tidegate_worker_model_bytes",
        "Bytes of one loaded model, an estimate: how much the resident memory of the process grew"
        " while its file was read (the libraries were imported before), or the size of the file"
        " where that is more.",
        lambda m: m.loaded_bytes,
    ),
    (
        "tidegate_worker_model_load_seconds",
        "How long loading the model took, the import of its engine included.",
        lambda m: m.load_s,
    ),
)
# Counters, because a gauge forgets what came and went between two scrapes.
DEMAND: tuple[tuple[str, str, Callable[[ModelCounts, float], float]], ...] = (
    (
        "tidegate_worker_requests_arrived",
        "Inference requests that arrived, whatever became of them.",
        lambda m, _now_s: m.arrived,
    ),
    (
        "tidegate_worker_request_seconds",
        "Time spent by inference requests inside the worker, waiting or running, those that are"
        " still inside included: the integral of tidegate_worker_requests_in_flight. Its increase"
        " over a span, divided by the span, is the exact mean of requests in flight.",
        lambda m, now_s: m.request_seconds(now_s),
    ),
)
HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelCounts], Histogram]], ...] = (
    (
        "tidegate_worker_request_duration_seconds",
        "From the whole body being read to the answer being sent; requests that reached the model.",
        lambda m: m.request_s,
    ),
    (
        "tidegate_worker_queue_duration_seconds",
        "From entering a model's queue to leaving it in a batch.",
        lambda m: m.queue_s,
    ),
    (
        "tidegate_worker_inference_duration_seconds",
        "One batch in the engine, joining and splitting included.",
        lambda m: m.inference_s,
    ),
    ("tidegate_worker_batch_rows", "Rows of one batch.", lambda m: m.batch_rows),
)
TRITON: tuple[tuple[str, str, Callable[[ModelCounts], float]], ...] = (
    ("nv_inference_request_success", "Requests answered well.", lambda m: m.succeeded),
    ("nv_inference_count", "Rows that were inferred.", lambda m: m.inferences),
    ("nv_inference_exec_count", "Batches that were run.", lambda m: m.executions),
    ("nv_inference_pending_request_count", "Requests that wait to run.", lambda m: m.queued),
)


class WorkerCollector(Collector):
    """Reads the counts at `now_s`, the moment of the scrape."""

    def __init__(self, telemetry: Telemetry, *, now_s: float) -> None:
        self._telemetry = telemetry
        self._now_s = now_s

    def collect(self) -> Iterator[Metric]:
        """All metrics, each with one sample a model."""
        models = self._telemetry.models
        yield self._requests()
        for name, about, gauge in GAUGES:
            family = GaugeMetricFamily(name, about, labels=["model"])
            for model, counts in models.items():
                value = gauge(counts)
                if value is not None:
                    family.add_metric([model], value)
            yield family
        for name, about, demand in DEMAND:
            counter = CounterMetricFamily(name, about, labels=["model"])
            for model, counts in models.items():
                counter.add_metric([model], demand(counts, self._now_s))
            yield counter
        for name, about, histogram in HISTOGRAMS:
            histograms = HistogramMetricFamily(name, about, labels=["model"])
            for model, counts in models.items():
                seen = histogram(counts)
                histograms.add_metric([model], seen.cumulative(), seen.total)
            yield histograms
        yield from self._triton()

    def _requests(self) -> Metric:
        family = CounterMetricFamily(
            "tidegate_worker_requests",
            "Inference requests by HTTP status; 499: the client left before its answer."
            " The model '-' stands for all that do not exist.",
            labels=["model", "protocol", "code"],
        )
        for model, counts in self._telemetry.models.items():
            for (protocol, code), n in counts.requests.items():
                family.add_metric([model, protocol, str(code)], n)
        for (protocol, code), n in self._telemetry.strays.items():
            family.add_metric(["-", protocol, str(code)], n)
        return family

    def _triton(self) -> Iterator[Metric]:
        models = self._telemetry.models
        # "unknown": the client library would end a counter's name with _total, and Triton's has
        # none.
        for name, about, read in TRITON:
            metric = UnknownMetricFamily(name, about, labels=["model", "version"])
            for model, counts in models.items():
                metric.add_metric([model, "1"], read(counts))
            yield metric
        failures = UnknownMetricFamily(
            "nv_inference_request_failure",
            "Requests that failed.",
            labels=["model", "version", "reason"],
        )
        for model, counts in models.items():
            for reason, n in counts.failed.items():
                failures.add_metric([model, "1", reason], n)
        yield failures


def text(telemetry: Telemetry) -> bytes:
    """Everything, in Prometheus' text format, from a registry that holds nothing else."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(telemetry, now_s=time.perf_counter()))
    return generate_latest(registry)
