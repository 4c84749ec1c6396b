# SPDX-License-Identifier: Apache-2.0
"""What a run gives back: one mapping with units in its keys, and nothing that two runs differ in.

No wall clock, host, path or set order goes in, so the same seed and arguments give the same bytes
(I7). It is returned, never written at exit.
"""

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autoscaler.core.decide import Decision
from simulations import invariants
from simulations.replay import Outcome, Settings
from simulations.spread import DIGITS, spread

Report = Mapping[str, object]


def build(outcome: Outcome, settings: Settings, *, trace: Report, policy: Report) -> Report:
    """Everything of one run. `trace`: what was replayed; `policy`: in the words of the contract.

    The fluid bound is the oracle that nothing can beat: the seconds of service that the answers
    took, with every slot of every replica full from the first moment to the last.
    """
    fates = outcome.fates
    bound = fates.service_s / settings.slots
    return {
        "tidegate": provenance(),
        "seed": settings.seed,
        "trace": trace,
        "policy": policy,
        "model": {
            "slots": settings.slots,
            "service_base_s": settings.service_time.base_s,
            "service_s_per_prompt_token": settings.service_time.s_per_prompt_token,
            "service_s_per_output_token": settings.service_time.s_per_output_token,
            "cold_start": str(settings.cold_start),
            "tick_s": settings.tick_s,
            "tail_s": settings.tail_s,
        },
        "simulated_s": round(outcome.end_s, DIGITS),
        "requests": {
            "sent": outcome.sent,
            "answered": fates.answered,
            "refused": fates.refused,
            "expired": fates.expired,
            "lost": outcome.sent - fates.answered - fates.refused - fates.expired,
            "held": sum(wait_s > 0 for wait_s in fates.waits_s) + fates.expired,
            "held_with_no_replica_ready": fates.cold,
            "most_held_at_once": max(sample.held for sample in outcome.samples),
        },
        "latency_s": spread(fates.latencies_s),
        "wait_s": spread(fates.waits_s),
        "attainment": None if settings.slo_s is None else attainment(outcome, settings.slo_s),
        "cold_starts": {
            "count": len(outcome.cold_starts_s),
            "total_s": round(sum(outcome.cold_starts_s), DIGITS),
            "abandoned": outcome.abandoned_starts,
        },
        "replicas": {
            "replica_seconds": round(outcome.replica_seconds, DIGITS),
            "mean": per(outcome.replica_seconds, outcome.end_s),
            "most_asked": max(count for _, count in outcome.moves),
            "asleep_s": round(_asleep_s(outcome), DIGITS),
            "raised": outcome.decisions.raised,
            "lowered": outcome.decisions.lowered,
            "busy_ratio": per(bound, outcome.replica_seconds),
        },
        "oracle": {
            "fluid_bound_replica_seconds": round(bound, DIGITS),
            "replica_seconds_per_bound": per(outcome.replica_seconds, bound),
        },
        "decisions": outcome.decisions.as_report(),
        "invariants_kept": list(invariants.NAMES),
    }


def per(part: float, whole: float) -> float | None:
    """`part / whole`; None where there is no whole, as in a run in which nothing was answered."""
    return round(part / whole, DIGITS) if whole else None


def attainment(outcome: Outcome, slo_s: float) -> Report:
    """The share of all requests sent that were answered within the SLO; any other end is a miss."""
    within = sum(latency_s <= slo_s for latency_s in outcome.fates.latencies_s)
    return {"slo_s": slo_s, "within": within, "ratio": per(within, outcome.sent)}


def headline(report: Mapping[str, Any]) -> tuple[str, str]:
    """What stands above a picture of the run: what it was, and what came of it."""
    policy, requests = report["policy"], report["requests"]
    p95_s = report["latency_s"]["p95"]
    title = f"{report['trace']['name']}: {policy['policy']} {policy['targets']}"
    outcome = (
        f"cold start {report['model']['cold_start']}; {requests['answered']} of {requests['sent']} "
        f"answered, p95 {'-' if p95_s is None else format(p95_s, '.4g')} s; "
        f"{report['replicas']['replica_seconds']:.0f} replica-seconds, "
        f"fluid bound {report['oracle']['fluid_bound_replica_seconds']:.0f}"
    )
    return title, outcome


def _asleep_s(outcome: Outcome) -> float:
    ends = [at_s for at_s, _ in outcome.moves[1:]] + [outcome.end_s]
    return sum(
        end_s - at_s for (at_s, count), end_s in zip(outcome.moves, ends, strict=True) if not count
    )


def as_line(decision: Decision) -> str:
    """One decision as one line of JSON, for `--decisions`."""
    return json.dumps(
        {
            "at_s": round(decision.at_s, DIGITS),
            "service": str(decision.service),
            "state": str(decision.state),
            "replicas_from": decision.current,
            "replicas_to": decision.replicas,
            "why": decision.why,
            "because": list(decision.because),
        }
    )


def as_json(report: Report) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False)


def provenance() -> Report:
    """Which Tidegate this was: its version, and in a checkout the commit, `-dirty` if changed."""
    try:
        release: str | None = version("tidegate")
    except PackageNotFoundError:
        release = None
    return {"version": release, "commit": _commit(Path(__file__).resolve().parents[1])}


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    asked = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        # Fixed words, no shell; `git` is whichever the user runs.
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None  # best effort: a report without a commit is still a report
    return said.stdout.strip() or None
