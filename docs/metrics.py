# SPDX-License-Identifier: Apache-2.0
"""The page of metrics: every family that a process of Tidegate tells, asked of its own collector.

A collector names all its families whatever there is to count, so each is asked with nothing to
count. What is told elsewhere than by a collector named here is found by a test.
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from autoscaler.activator.app import Activator
from autoscaler.activator.metrics import ActivatorCollector
from autoscaler.adapters.activators import IN_TOKENS
from autoscaler.adapters.engines.table import ENGINES, Engine
from autoscaler.adapters.kubernetes.metrics import ControllerCollector, TickSeconds
from autoscaler.api.metrics import QUERIES, LoopCollector
from autoscaler.core.proposal import BOUNDS
from autoscaler.core.signals import MEASURES, SIGNALS, Measure, NoReading, Signal
from autoscaler.loop import ControlLoop
from docs.table import table
from scheduler_extender.admission.app import App as Admission
from scheduler_extender.admission.pods import Wiring
from scheduler_extender.metrics import PreemptionMetrics, StateCollector, VerbMetrics
from scheduler_extender.node_agent.metrics import NodeCollector
from scheduler_extender.state import ClusterState
from serving.exposition import WorkerCollector
from serving.telemetry import Telemetry

_ONLY_ACTIVATORS = frozenset({Measure.HELD, Measure.HELD_SECONDS_TOTAL, *IN_TOKENS})


def collectors() -> Mapping[str, tuple[Collector, ...]]:
    """Heading -> who tells the metrics under it, of a process that has nothing to count."""
    loop = cast(ControlLoop, SimpleNamespace(records={}, sources=()))
    activator = cast(Activator, SimpleNamespace(desks={}, link=SimpleNamespace(up=True)))
    ticks = CollectorRegistry()
    TickSeconds(ticks)
    verbs, webhook = CollectorRegistry(), CollectorRegistry()
    VerbMetrics(verbs)
    PreemptionMetrics(verbs)
    Admission(Wiring(), registry=webhook)
    return {
        "The controller": (LoopCollector(loop, demand=lambda _: NoReading("no activator")),),
        "The controller on Kubernetes, beside these": (
            ticks,
            ControllerCollector(leads=lambda: True, requests={}, ages_s=dict),
        ),
        "An activator": (ActivatorCollector(activator),),
        "The worker": (WorkerCollector(Telemetry(), now_s=0.0),),
        "The extender": (verbs, StateCollector(ClusterState(), leading=lambda: False)),
        "The agent of a node": (NodeCollector(lambda: None, pods=tuple),),
        "The webhook for pods": (webhook,),
    }


def metrics_page() -> str:
    parts = [
        "# Metrics\n\nEvery process of Tidegate tells its metrics at `/metrics`: the controller at "
        "the address of its API, an activator at that of its health, the worker where it serves. "
        "What is not known has no sample; it is never told as 0. A histogram has `_bucket`, `_sum` "
        "and `_count`.\n"
    ]
    for heading, told in collectors().items():
        families = [family for collector in told for family in collector.collect()]
        parts.append(f"\n## {heading}\n\n{_families(families)}")
    parts.append(
        "\nOn Linux the controller on Kubernetes also tells `process_*`: its own CPU time, memory "
        "and open files.\n"
    )
    return "".join((*parts, _rules(), _quantities(), _signals()))


def spelt(family: Metric) -> str:
    """A family's name as a query has to spell it."""
    return family.name + ("_total" if family.type == "counter" else "")


def _families(families: Iterable[Metric]) -> str:
    rows = [
        (f"`{spelt(of)}`", of.type, ", ".join(map("`{}`".format, _labels(of))), of.documentation)
        for of in families
    ]
    return table(("metric", "type", "labels", "meaning"), rows)


def _labels(family: Metric) -> tuple[str, ...]:
    """The client library keeps the labels of a family without samples to itself."""
    names: Iterable[str] | None = getattr(family, "_labelnames", None)
    if names is None:
        names = dict.fromkeys(name for sample in family.samples for name in sample.labels)
    return tuple(name for name in names if name != "le")


def _rules() -> str:
    rows = [(f"`{bound}`", meaning) for bound, meaning in BOUNDS.items()]
    return (
        "\n## Rules of decisions\n\nThe values of `rule` in `tidegate_decisions_total`, and of "
        "`bound_by` in the API: the last stage of a decision that had its way. One decision is "
        "made of each service at every tick.\n\n" + table(("rule", "what it says"), rows)
    )


def _quantities() -> str:
    rows = [
        (f"`{measure}`", of.meaning, of.unit, _tellers(measure)) for measure, of in MEASURES.items()
    ]
    return (
        "\n## Quantities\n\nThe values of `quantity` and `signal`: what sources hand over, and any "
        f"signal that a target is set for; `{QUERIES}` stands for all queries of a service, by the "
        "one that fares worst. Activators tell what passes through them, engines what happens in "
        "replicas; request-seconds of an engine that has none are made up from what is in flight."
        "\n\n" + table(("quantity", "what it is", "unit", "told by"), rows)
    )


def _signals() -> str:
    rows = [
        (
            f"`{signal}`",
            meaning.meaning,
            ", ".join(f"`{term.measure}`" for term in meaning.terms) or "its average alone",
            _engines_of(signal),
        )
        for signal, meaning in SIGNALS.items()
    ]
    return (
        "\n## Signals and who tells them\n\nWhat a signal is made of by Tidegate's own windows. "
        "Prometheus and the sources that look at GPUs hand over the average itself; it counts "
        "where no replica tells the measures.\n\n"
        + table(("signal", "what it is", "made of", "engines that tell it"), rows)
    )


def _engines_of(signal: Signal) -> str:
    inside = [t.measure for t in SIGNALS[signal].terms if t.measure not in _ONLY_ACTIVATORS]
    if not inside:
        return "none: Prometheus, DCGM and NVML do"
    return ", ".join(of.name for of in ENGINES if all(_tells(of, m) for m in inside)) or "none"


def _tellers(measure: Measure) -> str:
    if measure in _ONLY_ACTIVATORS:
        return "activators"
    return ", ".join(of.name for of in ENGINES if _tells(of, measure)) or "no engine"


def _tells(engine: Engine, measure: Measure) -> bool:
    """Whether an engine exposes a measure, or what it can be made up from."""
    if measure is Measure.REQUEST_SECONDS_TOTAL and engine.samples.get(Measure.IN_FLIGHT):
        return True
    if measure is Measure.REQUESTS_TOTAL and engine.stirs:
        return True
    if measure is Measure.WORKING:
        return bool(engine.unended)
    return bool(engine.samples.get(measure))
