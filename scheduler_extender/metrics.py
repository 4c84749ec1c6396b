# SPDX-License-Identifier: Apache-2.0
"""The extender's metrics: how long verbs take, and what the state holds at the scrape."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler_extender.core.demand import WHOLE_MILLI
from scheduler_extender.core.ledger import Stage
from scheduler_extender.state import ClusterState

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)


class VerbMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "tidegate_extender_verb_seconds",
            "Time from a call's body to its answer.",
            ["verb"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._calls = Counter(
            "tidegate_extender_calls", "Calls by verb and status.", ["verb", "status"],
            registry=registry,
        )  # fmt: skip

    def told(self, verb: str, status: int, seconds: float) -> None:
        self._seconds.labels(verb).observe(seconds)
        self._calls.labels(verb, str(status)).inc()


class PreemptionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.preemptions = Counter(
            "tidegate_extender_preemptions", "Pods for which room was made on a node.",
            registry=registry,
        )  # fmt: skip
        self.victims = Counter(
            "tidegate_extender_victims", "Pods that were evicted for others.", registry=registry
        )


class StateCollector(Collector):
    def __init__(self, state: ClusterState, *, leading: Callable[[], bool]) -> None:
        self._state = state
        self._leading = leading

    def collect(self) -> Iterator[Metric]:
        state, rows = self._state, self._state.fleet.rows
        fleet = state.fleet
        stages = [entry.stage for entry in state.ledger.entries()]
        whole = fleet.milli_total[:rows].sum() / WHOLE_MILLI
        unsold = fleet.milli_free[:rows].sum() / WHOLE_MILLI
        shown = (
            ("leading", "1 where this process binds.", float(self._leading())),
            ("synced", "1 once nodes and pods are listed.", float(state.synced)),
            ("nodes", "Nodes that report GPUs.", len(fleet.nodes)),
            ("gpus", "GPUs and MIG instances.", whole),
            ("gpus_compute_free", "Compute that no pod claims, in GPUs.", unsold),
            ("gpu_memory_mib", "Memory of all GPUs.", fleet.memory_total[:rows].sum()),
            ("gpu_memory_free_mib", "Memory that no pod has.", fleet.memory_free[:rows].sum()),
            ("held_pods", "Pods whose Binding is not answered.", stages.count(Stage.HELD)),
            ("bound_pods", "Pods that have GPUs.", stages.count(Stage.BOUND)),
            ("waiting_pods", "Pods that found no room.", len(state.waiting)),
            ("reservations", "Cards that we hold on mixed nodes, or are about to.",
             len(state.reservations.uids)),
            ("promised_pods", "Pods for which room on a node is kept.", len(state.promises)),
            ("placeholders", "Pods for which cluster autoscalers are to add nodes.",
             len(state.placeholders)),
            ("doubts", "Contradictions between annotations and state.", len(state.doubts())),
            ("cordoned_gpus", "GPUs that get no pods, being in doubt.",
             sum(map(len, state.cordoned.values()))),
        )  # fmt: skip
        for name, meaning, value in shown:
            gauge = GaugeMetricFamily(f"tidegate_extender_{name}", meaning)
            gauge.add_metric([], float(value))
            yield gauge
