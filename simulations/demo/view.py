# SPDX-License-Identifier: Apache-2.0
"""What the demo shows while it runs: a live table on a terminal, a line now and then in a pipe."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simulations.demo.report import quantiles_s
from simulations.demo.traffic import Tally

LOOKS_EVERY_S = 0.2
LINE_EVERY_S = 5.0
RECENT_S = 5.0
CURVE = 60  # columns of the curves, one a second
BARS = " ▁▂▃▄▅▆▇█"
COLOURS = {"asleep": "dim", "waking": "yellow", "active": "green", "draining": "cyan"}


class Watch:
    """Follows the services; keeps each one's path of replica counts and draws what it sees."""

    def __init__(self, tallies: Mapping[str, Tally], console: Console) -> None:
        self.paths: dict[str, list[int]] = {name: [0] for name in tallies}
        self.status: dict[str, dict[str, Any]] = {}
        self._tallies = tallies
        self._console = console
        self._live: Live | None = None  # while it draws on a terminal
        self._curves = {name: deque([0] * CURVE, CURVE) for name in tallies}
        self._arrived = dict.fromkeys(tallies, 0)
        self._started_s = asyncio.get_running_loop().time()
        self._curve_s = self._line_s = self._started_s

    def seen(self, status: dict[str, dict[str, Any]]) -> None:
        """Take in the controller's word on each service; call it every `LOOKS_EVERY_S`."""
        self.status = status
        for name, path in self.paths.items():
            ready = status[name]["replicas"]["ready"]
            if ready != path[-1]:
                path.append(ready)
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._curve_s:
            self._curve_s += 1.0
            for name, tally in self._tallies.items():
                self._curves[name].append(tally.sent - self._arrived[name])
                self._arrived[name] = tally.sent

    @contextlib.contextmanager
    def showing(self, title: str) -> Iterator[None]:
        """Draw until the block ends: live on a terminal, as lines elsewhere."""
        self._console.print(title, highlight=False)
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=8) as live:
            self._live = live
            yield

    def draw(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._live is not None:
            self._live.update(self._picture(now_s))
        elif now_s >= self._line_s:
            self._line_s = now_s + LINE_EVERY_S
            self._console.print(self._line(now_s), highlight=False, soft_wrap=True)

    def _picture(self, now_s: float) -> Group:
        table = Table(expand=False, caption="● ready  ◐ starting  ○ draining  ✗ failed")
        for column in (
            "service",
            "state",
            "replicas",
            "held",
            "queued",
            "in flight",
            "answered",
            "p50",
            "p95",
        ):
            table.add_column(column, min_width=9)
        for name, tally in self._tallies.items():
            status = self.status[name]
            recent = quantiles_s(self._recent(tally, now_s))
            table.add_row(
                name,
                Text(status["state"], COLOURS.get(status["state"], "")),
                _dots(status["replicas"]),
                _number(status["measures"].get("held")),
                _number(status["measures"].get("waiting")),
                _number(status["measures"].get("in_flight")),
                f"{tally.answered}/{tally.sent}",
                _milliseconds(recent["p50"]),
                _milliseconds(recent["p95"]),
            )
        curves = [
            Text(f"{name:>16}  {_curve(curve)}  requests/s, the last minute", "dim")
            for name, curve in self._curves.items()
        ]
        reasons = [
            Text(
                f"{name:>16}  {self.status[name]['why']}: {'; '.join(self.status[name]['because'])}"
            )
            for name in self._tallies
        ]
        return Group(table, *curves, *reasons)

    def _line(self, now_s: float) -> str:
        parts = []
        for name, tally in self._tallies.items():
            status = self.status[name]
            replicas = status["replicas"]
            parts.append(
                f"{name}: {status['state']}, {replicas['ready']} ready + {replicas['starting']} "
                f"starting + {replicas['failed']} failed, "
                f"held {_number(status['measures'].get('held'))}, "
                f"answered {tally.answered}/{tally.sent}"
            )
        return f"{now_s - self._started_s:5.1f} s  " + "  |  ".join(parts)

    @staticmethod
    def _recent(tally: Tally, now_s: float) -> list[float]:
        tally.recent[:] = [seen for seen in tally.recent if seen[0] > now_s - RECENT_S]
        return [latency_s for _, latency_s in tally.recent]


def _dots(replicas: Mapping[str, int]) -> Text:
    return Text.assemble(
        ("●" * replicas["ready"], "green"),
        ("◐" * replicas["starting"], "yellow"),
        ("○" * replicas["draining"], "cyan"),
        ("✗" * replicas["failed"], "red"),
    )


def _curve(values: deque[int]) -> str:
    highest = max(*values, 1)
    return "".join(BARS[round(value / highest * (len(BARS) - 1))] for value in values)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
