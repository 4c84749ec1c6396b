# SPDX-License-Identifier: Apache-2.0
"""From what was seen of a controller to what is reported. Pure.

CPU is in cores: CPU time by wall time. A change is seen once the controller's own API shows the new
count; the time until then is counted from the API server's answer to whoever made the change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscaler.bench.client import quantile
from autoscaler.bench.scrape import Scrape

TICK_P99_MOST_S = 1.0
RSS_MOST_BYTES = 350 * 1024 * 1024

Figures = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time: the scrapes at its ends, and what was seen between them.

    `rss_bytes`: the most of it. `seen_s`: how long changes took to be seen, of those that were
    looked for; `unseen` of them were not in time. `changes`: objects that were changed in all.
    """

    began: Scrape
    ended: Scrape
    rss_bytes: int
    changes: int = 0
    seen_s: Sequence[float] = ()
    unseen: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """What happened before anything was measured; seconds since the process was started."""

    synced_s: float
    first_tick_s: float
    settled_s: float
    requests: float
    cpu_s: float


def phase_figures(phase: Phase) -> Figures:
    seconds = phase.ended.at_s - phase.began.at_s
    whole, some = (
        phase.ended.ticks_of(scope).since(phase.began.ticks_of(scope)) for scope in ("all", "some")
    )
    whole_cpu = phase.ended.cpu_of("all").since(phase.began.cpu_of("all"))
    seen_s = sorted(phase.seen_s)
    by_kind = requests_per_s(phase.began, phase.ended)
    return {
        "seconds": _round(seconds),
        "ticks": int(whole.count),
        "tick_mean_s": _round(whole.mean_s()),
        "tick_p50_s": _round(whole.quantile_s(0.5)),
        "tick_p99_s": _round(whole.quantile_s(0.99)),
        "tick_cpu_p50_s": _round(whole_cpu.quantile_s(0.5)),
        "tick_cpu_p99_s": _round(whole_cpu.quantile_s(0.99)),
        "news_ticks": int(some.count),
        "news_tick_p50_s": _round(some.quantile_s(0.5)),
        "news_tick_p99_s": _round(some.quantile_s(0.99)),
        "cpu_cores": _round((phase.ended.cpu_s - phase.began.cpu_s) / seconds),
        "rss_max_mib": _round(phase.rss_bytes / 2**20),
        "changes_per_s": _round(phase.changes / seconds),
        "change_seen_p50_s": _round(quantile(seen_s, 0.5)),
        "change_seen_p99_s": _round(quantile(seen_s, 0.99)),
        "changes_unseen": phase.unseen,
        "informer_age_max_s": _round(max(phase.ended.ages_s.values(), default=None)),
        "api_requests_per_s": _round(sum(by_kind.values())),
        "api_requests_per_s_by_kind": {kind: _round(n) for kind, n in by_kind.items()},
    }


def requests_per_s(began: Scrape, ended: Scrape) -> dict[str, float]:
    """By verb and resource, most first; what was not asked is left out."""
    seconds = ended.at_s - began.at_s
    sent = {
        " ".join(kind): (count - began.requests.get(kind, 0.0)) / seconds
        for kind, count in ended.requests.items()
    }
    return dict(sorted(((k, n) for k, n in sent.items() if n), key=lambda kind: -kind[1]))


def start_figures(start: Start) -> Figures:
    return {
        "synced_s": _round(start.synced_s),
        "first_tick_s": _round(start.first_tick_s),
        "settled_s": _round(start.settled_s),
        "api_requests": int(start.requests),
        "cpu_s": _round(start.cpu_s),
    }


def targets(phases: Sequence[Phase]) -> Figures:
    """What the figures should be, and whether they are; None: not known."""
    ticks = [p.ended.ticks_of("all").since(p.began.ticks_of("all")) for p in phases]
    p99s = [one.quantile_s(0.99) for one in ticks]
    known = [p99 for p99 in p99s if p99 is not None]
    return {
        "tick_p99_below_s": TICK_P99_MOST_S,
        "tick_p99_met": max(known) < TICK_P99_MOST_S if len(known) == len(p99s) > 0 else None,
        "rss_below_mib": RSS_MOST_BYTES // 2**20,
        "rss_met": max(p.rss_bytes for p in phases) < RSS_MOST_BYTES if phases else None,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
