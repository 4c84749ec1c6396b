# SPDX-License-Identifier: Apache-2.0
"""A report as a table for people: what was asked, what came of it, what it cost."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

Rows = list[tuple[str, str]]


def run_table(report: Mapping[str, Any]) -> Table:
    """The table of `replay`. `report` is what `report.build` returns."""
    table = _table(f"{report['trace']['name']}, policy {report['policy']['policy']}")
    for section in (_traffic(report), _answers(report), _cost(report), _decisions(report)):
        for name, value in section:
            table.add_row(name, value)
        table.add_section()
    return table


def trace_table(name: str, described: Mapping[str, Any]) -> Table:
    """The table of `traces FILE`. `described` is what `describe` returns."""
    table = _table(name)
    for key, value in described.items():
        if isinstance(value, Mapping):
            table.add_row(key.replace("_", " "), _spread(value))
        elif isinstance(value, list):
            if value:
                table.add_row(key, ", ".join(value))
        else:
            table.add_row(key.replace("_", " "), _number(value))
    return table


def formats_table(meanings: Mapping[str, str]) -> Table:
    """The table of `traces` without a file."""
    table = _table("trace formats")
    for name, meaning in meanings.items():
        table.add_row(name, meaning)
    return table


def _table(title: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, show_header=False, pad_edge=False
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _traffic(report: Mapping[str, Any]) -> Rows:
    trace, model = report["trace"], report["model"]
    return [
        (
            "traffic",
            f"{trace['requests']} requests in {trace['span_s']:.0f} s, "
            f"mean {_number(trace['mean_rps'])}/s, peak {_number(trace['peak_1s_rps'])}/s",
        ),
        ("targets", f"{report['policy']['targets']} a replica"),
        (
            "replica",
            f"{model['slots']} slots, cold start {model['cold_start']}, "
            f"{model['service_base_s']:g} s "
            f"+ {model['service_s_per_prompt_token']:g} s/prompt-token "
            f"+ {model['service_s_per_output_token']:g} s/token",
        ),
    ]


def _answers(report: Mapping[str, Any]) -> Rows:
    requests, slo = report["requests"], report["attainment"]
    rows = [
        (
            "answered",
            f"{requests['answered']} of {requests['sent']} "
            f"({requests['refused']} refused, {requests['expired']} expired, "
            f"{requests['lost']} lost)",
        ),
        ("latency, s", _spread(report["latency_s"])),
        ("waited, s", _spread(report["wait_s"])),
        (
            "held",
            f"{requests['held']} requests, {requests['held_with_no_replica_ready']} of them with "
            f"no replica ready; {requests['most_held_at_once']} at once",
        ),
    ]
    if slo is not None:
        rows.append(("attainment", f"{slo['ratio']:.2%} within {slo['slo_s']:g} s"))
    return rows


def _cost(report: Mapping[str, Any]) -> Rows:
    replicas, oracle, cold = report["replicas"], report["oracle"], report["cold_starts"]
    return [
        (
            "replicas",
            f"mean {_number(replicas['mean'])}, at most {replicas['most_asked']}; "
            f"raised {replicas['raised']} times, lowered {replicas['lowered']}; "
            f"asleep {replicas['asleep_s']:.0f} s",
        ),
        ("cold starts", f"{cold['count']}, {cold['total_s']:.0f} s in all"),
        (
            "replica-seconds",
            f"{replicas['replica_seconds']:.0f}, "
            f"{_number(oracle['replica_seconds_per_bound'])} x the fluid bound of "
            f"{oracle['fluid_bound_replica_seconds']:.0f}",
        ),
    ]


def _decisions(report: Mapping[str, Any]) -> Rows:
    decisions = report["decisions"]
    reasons = [f"{count} x {reason}" for reason, count in decisions["moves_by_reason"].items()]
    return [("decisions", str(decisions["total"])), ("moves, why", "\n".join(reasons[:6]) or "-")]


def _spread(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
