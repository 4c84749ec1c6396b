# SPDX-License-Identifier: Apache-2.0
"""The report for a person: one table a workload, a line a contender."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from autoscaler.bench.phases import DIRECT
from autoscaler.bench.report import CONTENDERS, OURS, Value

_NONE = "-"


def tables(reports: Mapping[str, Mapping[str, Value]], notes: list[str]) -> Group:
    """All workloads, then what a reader must know of them."""
    return Group(
        *(_table(name, figures) for name, figures in reports.items()),
        *(Text(f"- {note}") for note in notes),
    )


def _table(name: str, figures: Mapping[str, Value]) -> Table:
    streams = f"{DIRECT}_events_per_s" in figures
    per_s = ["streams/s", "events/s"] if streams else ["req/s", "MB/s"]
    table = Table(
        *["", *per_s, "CPU us", "per busy core", "busy", "limit", "+p50 ms", "+p99 ms", "errors"],
        title=f"{name}: {figures['what']}, {figures['connections']} connections",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for who in (DIRECT, *CONTENDERS):
        table.add_row(*_row(who, figures, streams=streams), style="bold" if who == OURS else "")
    return table


def _row(who: str, figures: Mapping[str, Value], *, streams: bool) -> list[str]:
    added = "added" if who == OURS else f"{who}_added"
    bytes_per_s = figures[f"{who}_bytes_per_s"]
    errors = figures[f"{who}_errors"]
    return [
        who,
        _text(figures[f"{who}_rps"]),
        _text(figures[f"{who}_events_per_s"])
        if streams
        else _text(bytes_per_s / 1e6 if isinstance(bytes_per_s, float) else None),
        _text(figures.get(f"{who}_cpu_us")),
        _text(figures.get(f"{who}_rps_per_busy_core")),
        _text(figures.get(f"{who}_proxy_core_busy_ratio")),
        _text(figures.get(f"{who}_limited_by")),
        _text(figures.get(f"{added}_p50_ms")),
        _text(figures.get(f"{added}_p99_ms")),
        str(sum(errors.values())) if isinstance(errors, dict) else _NONE,
    ]


def _text(value: Value) -> str:
    if value is None:
        return _NONE
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    raise TypeError(f"not a figure: {value!r}")
