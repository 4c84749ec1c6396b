# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics: its GPUs at the last reading, and what pods were given of them.

What is not known has no sample. A pod's use of a GPU is not told: the driver counts by process.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler_extender.annotations import PodSeen
from scheduler_extender.core.demand import WHOLE_MILLI
from scheduler_extender.node_agent.agent import Round
from scheduler_extender.node_agent.gpus import Gpu, Machine, NotRead

MIB = 2**20

_LABELS = ["uuid", "profile"]

# By name: what it means, and how a GPU tells it.
_BY_GPU: dict[str, tuple[str, Callable[[Gpu], float | None]]] = {
    "memory_bytes": (
        "Memory that pods may have, the driver's own part taken off.",
        lambda gpu: float(gpu.memory_mib * MIB),
    ),
    "memory_used_bytes": ("Memory in use, by whomever.", lambda gpu: gpu.memory_used_bytes),
    "utilization_ratio": (
        "Part of the time in which any kernel ran, as the driver samples it.",
        lambda gpu: gpu.utilization_ratio,
    ),
    "power_watts": ("Power drawn.", lambda gpu: gpu.power_w),
    "temperature_celsius": ("Temperature of the chip.", lambda gpu: gpu.temperature_c),
    "xid": ("The newest critical event that counts against it; 0 for none.", lambda gpu: gpu.xid),
}


class NodeCollector(Collector):
    """`last` is the newest round; None before the first."""

    def __init__(
        self, last: Callable[[], Round | None], *, pods: Callable[[], Sequence[PodSeen]]
    ) -> None:
        self._last = last
        self._pods = pods

    def collect(self) -> Iterator[Metric]:
        last = self._last()
        seen = last.seen if last else NotRead("not read yet")
        yield _gauge("node_gpus_read", "1 where the driver told of the GPUs.", seen)
        machine = seen if isinstance(seen, Machine) else Machine(())
        yield _healthy(last)
        for name, (meaning, read) in _BY_GPU.items():
            family = GaugeMetricFamily(f"tidegate_node_gpu_{name}", meaning, labels=_LABELS)
            for gpu in machine.gpus:
                value = read(gpu)
                if value is not None:
                    family.add_metric([gpu.uuid, gpu.profile], float(value))
            yield family
        yield _info(last, machine)
        yield from self._given()

    def _given(self) -> Iterator[Metric]:
        labels = ["namespace", "pod", "uuid"]
        memory = GaugeMetricFamily(
            "tidegate_pod_gpu_memory_bytes", "Memory of a GPU that a pod was given.", labels=labels
        )
        compute = GaugeMetricFamily(
            "tidegate_pod_gpu_compute_ratio", "Part of a GPU that a pod was given.", labels=labels
        )
        for pod in self._pods():
            given = pod.granted
            if given is None:
                continue
            for uuid in given.uuids:
                of = [pod.namespace, pod.name, uuid]
                memory.add_metric(of, float(given.memory_mib * MIB))
                compute.add_metric(of, given.milli / WHOLE_MILLI)
        yield memory
        yield compute


def _gauge(name: str, meaning: str, seen: Machine | NotRead) -> Metric:
    family = GaugeMetricFamily(f"tidegate_{name}", meaning)
    family.add_metric([], float(isinstance(seen, Machine)))
    return family


def _healthy(last: Round | None) -> Metric:
    """As it is reported, so also of GPUs of which the driver does not tell now."""
    family = GaugeMetricFamily(
        "tidegate_node_gpu_healthy", "1 where pods may be given the GPU.", labels=_LABELS
    )
    for card in last.report.gpus.cards if last else ():
        family.add_metric([card.uuid, card.profile], float(card.healthy))
    return family


def _info(last: Round | None, machine: Machine) -> Metric:
    family = GaugeMetricFamily(
        "tidegate_node_gpus_info",
        "1; its labels tell the driver, and what holds pods to their shares.",
        labels=["driver", "model", "enforcement"],
    )
    if last is not None:
        family.add_metric([machine.driver, last.report.gpus.model, last.report.enforcement], 1.0)
    return family
