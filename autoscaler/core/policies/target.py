# SPDX-License-Identifier: Apache-2.0
"""The `target` policy: enough replicas that none carries more of any signal than its target.

Several targets combine by the largest proposal. Rule D1: a signal that could not be read, or that
speaks for only a part of the replicas, may raise the count and never lower it.
Source: docs/adr/0003-rules-of-deciding.md.
"""

from math import ceil

from autoscaler.core.policy import ServicePolicy, Target
from autoscaler.core.proposal import Bound, Candidate, Proposal
from autoscaler.core.signals import NoReading, Signal, Signals


def propose(signals: Signals, policy: ServicePolicy, *, current: int) -> Proposal:
    """Propose the fewest replicas that meet every target; where nothing can be read, `current`."""
    targets, slots = policy.targets, policy.slots
    candidates = tuple(_candidate(signals, target, slots=slots) for target in targets)
    exact = max((c.exact for c in candidates if c.exact is not None), default=0.0)
    blind = tuple(c.signal for c in candidates if c.share_ratio < 1.0)
    because = tuple(candidate.because for candidate in candidates)
    if blind and exact < current:
        because += (f"D1 hold {current}: {', '.join(blind)} not fully read",)
        return Proposal(current, float(current), current, because, candidates, Bound.HOLD)
    count = _rounded_up(exact)
    return Proposal(count, exact, count, because, candidates)


def _candidate(signals: Signals, target: Target, *, slots: int | None) -> Candidate:
    seen = signals.get(target.signal, NoReading("no source reports it"))
    if isinstance(seen, NoReading):
        return Candidate(str(target.signal), None, f"{target.signal}=? ({seen.why})", 0.0)
    value, per_replica, text = seen.value, target.per_replica, f"{target.per_replica:g}"
    share_ratio = seen.share_ratio
    if target.signal is Signal.QUEUE and slots is not None:
        running = signals.get(Signal.CONCURRENCY, NoReading("no source reports it"))
        # A queue alone cannot tell five busy replicas from none: with 20 requests running on 5 x 4
        # slots and 6 waiting, 6/2 says 3 replicas. Each replica runs `slots` and may queue the
        # target, so what the target really asks for is all requests over slots + target: 26/6 -> 5.
        # The queue is part of the concurrency, but counts for itself where workers report it later.
        # What runs and is not known may be much: then the queue lowers nothing (rule D1).
        if isinstance(running, NoReading):
            share_ratio = 0.0
        else:
            value, share_ratio = max(running.value, value), min(running.share_ratio, share_ratio)
            per_replica, text = per_replica + slots, f"({slots}+{text})"
    because = f"{target.signal}={value:.4g}/{text}{_told_by(share_ratio)}"
    return Candidate(str(target.signal), value / per_replica, because, share_ratio)


def _told_by(share_ratio: float) -> str:
    """Whose word a value is, where it is not that of all replicas."""
    if share_ratio >= 1.0:
        return ""
    # Nothing is known of the replicas themselves: what is held, or what came through activators.
    return f" ({share_ratio:.0%} of replicas told)" if share_ratio > 0 else " (at least)"


def _rounded_up(exact: float) -> int:
    # 8.000000001 requests on replicas of 8 are one replica's load and a rounding error of the mean.
    return ceil(exact - 1e-6)
