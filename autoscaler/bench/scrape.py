# SPDX-License-Identifier: Apache-2.0
"""A controller's metrics at one moment, and what lies between two of them. Pure.

Rules:
- a quantile of ticks is interpolated within its bucket, as Prometheus does; where it lies beyond
  the last bucket, that bucket's bound is given: read it as "at least";
- what could not be had is None, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isinf

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_OURS = ("tidegate_tick_", "tidegate_api_", "tidegate_leader", "tidegate_informer_", "process_")
_CPU = "tidegate_tick_cpu_seconds"
Bounds = Mapping[float, float]  # upper bound of a bucket in seconds -> ticks up to it


@dataclass(frozen=True, slots=True)
class Ticks:
    """Of one scope; cumulative, as a histogram is exposed."""

    count: float = 0.0
    total_s: float = 0.0
    up_to: Bounds = field(default_factory=dict)

    def since(self, before: "Ticks") -> "Ticks":
        up_to = {bound: n - before.up_to.get(bound, 0.0) for bound, n in self.up_to.items()}
        return Ticks(self.count - before.count, self.total_s - before.total_s, up_to)

    def mean_s(self) -> float | None:
        return self.total_s / self.count if self.count else None

    def quantile_s(self, ratio: float) -> float | None:
        """None: there was no tick."""
        if not self.count:
            return None
        wanted, low_s, low_n = ratio * self.count, 0.0, 0.0
        for bound_s, n in sorted(self.up_to.items()):
            if n >= wanted:
                if isinf(bound_s):
                    return low_s
                return low_s + (bound_s - low_s) * (wanted - low_n) / (n - low_n)
            low_s, low_n = bound_s, n
        return low_s


@dataclass(frozen=True, slots=True)
class Scrape:
    """`requests`: by verb and resource. `ages_s`: since the API server was last heard of a kind."""

    at_s: float
    leads: bool
    cpu_s: float
    requests: Mapping[tuple[str, str], float]
    ages_s: Mapping[str, float]
    ticks: Mapping[str, Ticks]
    ticks_cpu: Mapping[str, Ticks]

    def ticks_of(self, scope: str) -> Ticks:
        return self.ticks.get(scope, Ticks())

    def cpu_of(self, scope: str) -> Ticks:
        """Their CPU time, in the same way."""
        return self.ticks_cpu.get(scope, Ticks())


def read(text: str, *, at_s: float) -> Scrape:
    """Read an exposition; metrics of single services are skipped unparsed."""
    lines = (line for line in text.splitlines() if line.removeprefix("# TYPE ").startswith(_OURS))
    cpu_s, leads = 0.0, False
    requests: dict[tuple[str, str], float] = {}
    ages_s: dict[str, float] = {}
    ticks: dict[str, dict[str, Ticks]] = {"tidegate_tick_seconds": {}, _CPU: {}}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        if family.name in ticks:
            ticks[family.name] = _histograms(family)
        for name, labels, value in (sample[:3] for sample in family.samples):
            match name:
                case "process_cpu_seconds_total":
                    cpu_s = value
                case "tidegate_leader":
                    leads = value == 1.0
                case "tidegate_api_requests_total":
                    requests[labels["verb"], labels["resource"]] = value
                case "tidegate_informer_age_seconds":
                    ages_s[labels["resource"]] = value
    wall, cpu = ticks.values()
    return Scrape(at_s, leads, cpu_s, requests, ages_s, wall, cpu)


def _histograms(family: Metric) -> dict[str, Ticks]:
    """By scope."""
    counts: dict[str, float] = {}
    totals_s: dict[str, float] = {}
    bounds: dict[str, dict[float, float]] = {}
    for name, labels, value in (sample[:3] for sample in family.samples):
        scope = labels["scope"]
        if name.endswith("_count"):
            counts[scope] = value
        elif name.endswith("_sum"):
            totals_s[scope] = value
        elif name.endswith("_bucket"):
            bound = inf if labels["le"] == "+Inf" else float(labels["le"])
            bounds.setdefault(scope, {})[bound] = value
    return {scope: Ticks(n, totals_s[scope], bounds[scope]) for scope, n in counts.items()}
