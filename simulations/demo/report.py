# SPDX-License-Identifier: Apache-2.0
"""What the demo ends with: `demo-report.json` and a summary for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from simulations.demo.traffic import Tally


def quantiles_s(latencies_s: Sequence[float]) -> dict[str, float | None]:
    """p50, p95, p99 and max in seconds; null where nothing was answered."""
    if not latencies_s:
        return dict.fromkeys(("p50", "p95", "p99", "max"), None)
    p50, p95, p99 = np.quantile(latencies_s, (0.5, 0.95, 0.99))
    return {
        "p50": round(float(p50), 4),
        "p95": round(float(p95), 4),
        "p99": round(float(p99), 4),
        "max": round(max(latencies_s), 4),
    }


def build(
    tallies: Mapping[str, Tally],
    paths: Mapping[str, list[int]],
    status: Mapping[str, Mapping[str, Any]],
    *,
    trace: str,
    seconds: float,
) -> dict[str, Any]:
    """The report: requests conserved, each service's way from 0 and back, and what waking cost."""
    everything = [latency for tally in tallies.values() for latency in tally.latencies_s]
    return {
        "trace": trace,
        "seconds": round(seconds, 1),
        "sent": sum(tally.sent for tally in tallies.values()),
        "answered": sum(tally.answered for tally in tallies.values()),
        "lost": sum(len(tally.lost) + tally.open for tally in tallies.values()),
        "lost_reasons": sorted({why for tally in tallies.values() for why in tally.lost})[:10],
        "latency_s": quantiles_s(everything),
        "services": {
            name: {
                "sent": tally.sent,
                "answered": tally.answered,
                "held": tally.held,
                "replica_path": paths[name],
                "cold_start_s": {
                    "count": status[name]["cold_starts"],
                    "p50": _rounded(status[name]["lead_time_s"]["p50"]),
                    "p95": _rounded(status[name]["lead_time_s"]["p95"]),
                },
                "latency_s": quantiles_s(tally.latencies_s),
            }
            for name, tally in tallies.items()
        },
    }


def summary(report: Mapping[str, Any]) -> Table:
    """The report as a table for people."""
    table = Table(title=f"{report['answered']} of {report['sent']} requests answered, "
                        f"{report['lost']} lost, in {report['seconds']:g} s")  # fmt: skip
    for column in (
        "service",
        "answered",
        "held",
        "replicas",
        "cold starts",
        "start p50",
        "p50",
        "p99",
    ):
        table.add_column(column, justify="left" if column in ("service", "replicas") else "right")
    for name, service in report["services"].items():
        table.add_row(
            name,
            f"{service['answered']}/{service['sent']}",
            str(service["held"]),
            " ".join(map(str, service["replica_path"])),
            str(service["cold_start_s"]["count"]),
            _seconds(service["cold_start_s"]["p50"]),
            _seconds(service["latency_s"]["p50"]),
            _seconds(service["latency_s"]["p99"]),
        )
    return table


def failures(report: Mapping[str, Any]) -> list[str]:
    """What the demo promised and did not show; empty when all went well."""
    problems = []
    if report["lost"] or report["sent"] != report["answered"]:
        problems.append(f"{report['lost']} requests were lost: {'; '.join(report['lost_reasons'])}")
    for name, service in report["services"].items():
        path = service["replica_path"]
        if path[0] != 0 or path[-1] != 0 or max(path) < 2:
            problems.append(f"{name} did not go from 0 to 2 or more and back: {path}")
    return problems


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g} s"
