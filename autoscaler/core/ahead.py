# SPDX-License-Identifier: Apache-2.0
"""The tokens that held requests will cost, before any engine has generated one.

While no replica is ready, engines tell no tokens per second, however much waits. Then a target for
them goes by what activators hold:

- Expected of a request is what its client allows; where it allows any number, this service's mean
  answer. Before that is known such a request is expected to cost nothing: the floors of waking see
  to it. The mean is no bound on what is allowed: of a replica that was just started the first
  tokens are not seen, so it may be too small.
- What arrives must be kept pace with, and what is held be worked off within the time that a start
  takes here; within the signal window while that is not known (rule D7).
- No request needs more than one replica.
- It is an estimate, so it may raise a count and never lowers one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoscaler.core.policy import ServicePolicy
from autoscaler.core.signals import Measure, Measures, NoReading, Reading, Signal, Signals
from autoscaler.core.windows import CounterWindow, LevelWindow

KEPT_ANSWERS = 1000  # so many requests make up the mean, newer ones counting for more
_HELD = (Measure.HELD, Measure.HELD_OUTPUT_TOKENS, Measure.HELD_OPEN_ENDED)
_ARRIVING = (Measure.OUTPUT_TOKENS_ASKED_TOTAL, Measure.OPEN_ENDED_TOTAL)


@dataclass(frozen=True, slots=True)
class Answers:
    """How many tokens this service generates for a request, learned whenever it has come to rest.

    Only then have all requests that were counted been answered in full. `totals`: of tokens and of
    requests, as of the last rest.
    """

    tokens: float = 0.0
    requests: float = 0.0
    totals: tuple[float, float] | None = None

    @property
    def tokens_per_answer(self) -> float | None:
        """The mean; None: not known."""
        return self.tokens / self.requests if self.tokens and self.requests else None

    def after(self, measures: Measures) -> "Answers":
        """The service rests; learn from what came since it last did."""
        tokens = _whole(measures.get(Measure.TOKENS_TOTAL))
        requests = _whole(measures.get(Measure.REQUESTS_TOTAL))
        if self.totals is None and Measure.TOKENS_TOTAL not in measures:
            tokens = 0.0  # no engine was ever asked: the total that will be told begins now
        if tokens is None or requests is None or (tokens, requests) == self.totals:
            return self
        if self.totals is None or tokens < self.totals[0] or requests < self.totals[1]:
            return replace(self, totals=(tokens, requests))  # somebody began to count anew
        more, came = tokens - self.totals[0], requests - self.totals[1]
        kept = min(1.0, KEPT_ANSWERS / (self.requests + came)) if came else 1.0
        return Answers(
            kept * (self.tokens + more), kept * (self.requests + came), (tokens, requests)
        )


def with_held_tokens(
    signals: Signals,
    policy: ServicePolicy,
    measures: Measures,
    *,
    windows: Mapping[Measure, CounterWindow | LevelWindow],
    tokens_per_answer: float | None,
    lead_time_s: float | None,
    now_s: float,
) -> Signals:
    """The signals of a service without a ready replica, with the tokens/s that its work needs."""
    per_replica = max(
        (t.per_replica for t in policy.targets if t.signal is Signal.TOKENS_PER_S), default=None
    )
    if per_replica is None:
        return signals
    requests, allowed, open_ended = (_known(measures.get(measure)) for measure in _HELD)
    allowed_per_s, open_ended_per_s = (_rate(windows.get(m), now_s) for m in _ARRIVING)
    answer_tokens = tokens_per_answer or 0.0
    arriving_per_s = allowed_per_s + open_ended_per_s * answer_tokens
    held_tokens = allowed + open_ended * answer_tokens
    within_s = max(policy.signal_window_s, lead_time_s or 0.0)
    asked_per_s = min(max(arriving_per_s, held_tokens / within_s), requests * per_replica)
    told = signals[Signal.TOKENS_PER_S]
    if asked_per_s > 0:
        source, value = ("held", 0.0) if isinstance(told, NoReading) else (told.source, told.value)
        told = Reading(max(value, asked_per_s), now_s, source, share_ratio=0.0)
    elif isinstance(told, Reading):  # where it is not known what is held, no tokens prove nothing
        share_ratio = min(_share(measures.get(measure)) for measure in _HELD)
        told = replace(told, share_ratio=min(told.share_ratio, share_ratio))
    return {**signals, Signal.TOKENS_PER_S: told}


def _rate(window: CounterWindow | LevelWindow | None, now_s: float) -> float:
    return (window.value(now_s) if window is not None else None) or 0.0


def _known(seen: Reading | NoReading | None) -> float:
    return seen.value if isinstance(seen, Reading) else 0.0


def _share(seen: Reading | NoReading | None) -> float:
    """Nothing is said by a source that speaks of no tokens, and nothing is missed."""
    if seen is None:
        return 1.0
    return seen.share_ratio if isinstance(seen, Reading) else 0.0


def _whole(seen: Reading | NoReading | None) -> float | None:
    return seen.value if isinstance(seen, Reading) and seen.share_ratio >= 1.0 else None
