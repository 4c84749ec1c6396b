# SPDX-License-Identifier: Apache-2.0
"""What was wanted before the first look, by what somebody else remembers of the signals.

A controller that starts knows nothing, so nothing falls for a whole window (rule D4), which for a
model that loads for twenty minutes is twenty minutes of idle GPUs. Where the past of all targets is
known, it need not wait. Of the past only the replicas' own part is known; what activators held then
is in it once it was released.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autoscaler.core import stabilize
from autoscaler.core.decide import ServiceMemory
from autoscaler.core.policies import POLICIES
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.signals import Query, Reading, Signal, Signals

SOURCE = "the past"

# Of each signal: (at_s, value), oldest first.
Past = Mapping[Signal, Sequence[tuple[float, float]]]


def needed(policy: ServicePolicy) -> frozenset[Signal] | None:
    """The signals whose past must be known; None: of some targets nobody remembers any."""
    targets = {target.signal for target in policy.targets}
    if any(isinstance(signal, Query) for signal in targets):
        return None
    signals = {signal for signal in targets if isinstance(signal, Signal)}
    # With slots a queue is read together with what runs.
    beside = {Signal.CONCURRENCY} if Signal.QUEUE in signals and policy.slots is not None else set()
    return frozenset(signals | beside)


def window_s(policy: ServicePolicy, memory: ServiceMemory) -> float:
    """How far back the past must reach."""
    lead_time_s = memory.lead_times.quantile(0.9)
    return stabilize.down_window_s(policy.scale_down, lead_time_s=lead_time_s)


def recalled(
    memory: ServiceMemory, policy: ServicePolicy, past: Past, *, now_s: float, gap_s: float
) -> ServiceMemory:
    """The memory with its down window refilled; as it was where the past has a hole."""
    signals = needed(policy)
    if signals is None or not signals <= past.keys():
        return memory
    values = {signal: dict(past[signal]) for signal in signals}
    times_s = sorted(set.intersection(*(set(of) for of in values.values())))
    wishes = [
        (at_s, _wish({s: of[at_s] for s, of in values.items()}, policy, at_s)) for at_s in times_s
    ]
    history = stabilize.refilled(
        memory.history, wishes, now_s=now_s, span_s=window_s(policy, memory), gap_s=gap_s
    )
    return replace(memory, history=history)


def _wish(values: Mapping[Signal, float], policy: ServicePolicy, at_s: float) -> float:
    signals: Signals = {signal: Reading(value, at_s, SOURCE) for signal, value in values.items()}
    wish = POLICIES[policy.policy](signals, policy, current=0)
    return float(min(max(wish.replicas, policy.min_replicas), policy.max_replicas))
