# SPDX-License-Identifier: Apache-2.0
"""How fast a wish may become a number: tolerance, windows, rate limits, in this order.

Up: one jump (rule D3), unless the user limits it. Down: only if fewer have been enough for the
whole window, and the window grows with the lead time. The scale-down rule lives here, only here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor

from autoscaler.core.policy import RateRule, RateStep
from autoscaler.core.proposal import Bound, Proposal
from autoscaler.core.windows import SlidingExtreme

# Rule D3: keeping a replica must cost less than the chance of needing it again; a minute is what
# the field has learned to be the least that survives ordinary lulls, whatever the start costs.
SHORTEST_LEARNED_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class ScaleHistory:
    """What stabilising remembers of one service.

    `moves`: (at_s, change of the replica count), kept as long as the longest rate step looks back.
    `stand_in`: (at_s, count) in `highest` that nobody wished for: it is there for rule D4.
    `newborn`: nothing was wished for yet, only held on to for want of readings.
    """

    highest: SlidingExtreme = SlidingExtreme(largest=True)
    lowest: SlidingExtreme = SlidingExtreme(largest=False)
    moves: tuple[tuple[float, int], ...] = ()
    stand_in: tuple[float, float] | None = None
    newborn: bool = False


def down_window_s(rule: RateRule, *, lead_time_s: float | None) -> float:
    """How long fewer replicas must have been enough; learned where the user sets nothing."""
    if rule.window_s is not None:
        return rule.window_s
    return max(SHORTEST_LEARNED_WINDOW_S, lead_time_s or 0.0)


def first_history(scale: int, *, now_s: float) -> ScaleHistory:
    """A new memory takes the present count for a wish: nothing falls before a window (rule D4)."""
    stand_in = (now_s, float(scale))
    highest = SlidingExtreme(largest=True, kept=(stand_in,))
    return ScaleHistory(highest=highest, stand_in=stand_in, newborn=True)


def refilled(
    history: ScaleHistory,
    wishes: Sequence[tuple[float, float]],
    *,
    now_s: float,
    span_s: float,
    gap_s: float,
) -> ScaleHistory:
    """The down window with what was wanted before the first look, so that D4 need not wait.

    `wishes`: (at_s, count), oldest first. Unless they cover the whole window, with no two further
    apart than `gap_s`, nothing changes.
    """
    stand_in = history.stand_in
    if stand_in is None or not wishes:
        return history
    times_s = [now_s - span_s, *(at_s for at_s, _ in wishes if at_s > now_s - span_s), stand_in[0]]
    covered = wishes[0][0] <= now_s - span_s
    if not covered or any(after - before > gap_s for before, after in pairwise(times_s)):
        return history
    known = [*wishes, *(seen for seen in history.highest.kept if seen != stand_in)]
    highest = SlidingExtreme(largest=True)
    for at_s, count in sorted(known):
        highest = highest.seen(count, at_s, span_s=span_s)
    return replace(history, highest=highest, stand_in=None)


def noticed(
    history: ScaleHistory, change: int, *, now_s: float, up: RateRule, down: RateRule
) -> ScaleHistory:
    """Remember that the count moved, by whomever, since the last look."""
    longest_s = max((step.period_s for step in (*up.steps, *down.steps)), default=0.0)
    moves = tuple(move for move in history.moves if move[0] > now_s - longest_s)
    if change:
        moves += ((now_s, change),)
    return history if moves == history.moves else replace(history, moves=moves)


def stabilize(
    wish: Proposal,
    *,
    current: int,
    up: RateRule,
    down: RateRule,
    down_window_s: float,
    history: ScaleHistory,
    now_s: float,
) -> tuple[Proposal, ScaleHistory]:
    """Turn a wish into the count that may be asked for now."""
    # 1. Tolerance: a wish next to the present count is no reason to move.
    tolerated = _tolerated(wish, current=current, up=up, down=down)
    # 2. Windows: the lowest wish of the up window, the highest of the down window.
    blind = history.newborn and wish.bound_by is Bound.HOLD
    if blind:
        history = _held(history, tolerated, now_s)
    else:
        history = _wished(history, tolerated, now_s, down_window_s)
    lowest_seen = history.lowest.seen(tolerated, now_s, span_s=up.window_s or 0.0)
    history = replace(history, lowest=lowest_seen)
    lowest, highest = int(history.lowest.extreme()), int(history.highest.extreme())
    if blind:  # what is remembered says nothing of now (rule D1)
        highest = max(highest, tolerated)
    because = wish.because
    if lowest > current:
        count = lowest
    elif highest < current:
        count = highest
    else:
        count = current
        if tolerated < current:
            because += (f"D3 keep {current}: {highest} wanted within {down_window_s:g} s",)
        elif tolerated > current:
            because += (f"keep {current}: not yet wanted for {up.window_s or 0.0:g} s",)
    bound_by = wish.bound_by
    if count != tolerated:
        bound_by = Bound.WINDOW
    elif tolerated != wish.replicas:
        bound_by = Bound.TOLERANCE
    # 3. Rate limits.
    limited = _rate_limited(count, current=current, up=up, down=down, history=history, now_s=now_s)
    if limited != count:
        because += (f"rate limit: {limited} now, {count} wanted",)
        bound_by = Bound.RATE_LIMIT
    if limited == wish.replicas and because == wish.because and bound_by is wish.bound_by:
        return wish, history
    return replace(wish, replicas=limited, because=because, bound_by=bound_by), history


def _wished(history: ScaleHistory, count: int, now_s: float, span_s: float) -> ScaleHistory:
    stand_in = history.stand_in
    return replace(
        history,
        highest=history.highest.seen(count, now_s, span_s=span_s),
        # As much was really wished for: then it stands for nothing any more.
        stand_in=None if stand_in is not None and count >= stand_in[1] else stand_in,
        newborn=False,
    )


def _held(history: ScaleHistory, count: int, now_s: float) -> ScaleHistory:
    """Nothing was ever wished for: the stand-in stands for this moment as well."""
    if history.stand_in is None:
        return history
    stand_in = (now_s, float(count))
    highest = SlidingExtreme(largest=True, kept=(stand_in,))
    return replace(history, highest=highest, stand_in=stand_in)


def _tolerated(wish: Proposal, *, current: int, up: RateRule, down: RateRule) -> int:
    if current == 0:
        return wish.replicas
    if current * (1 - down.tolerance_ratio) <= wish.exact <= current * (1 + up.tolerance_ratio):
        return current
    return wish.replicas


def _rate_limited(
    count: int, *, current: int, up: RateRule, down: RateRule, history: ScaleHistory, now_s: float
) -> int:
    if count > current and up.steps:
        return min(count, max(_most_up(step, current, history, now_s) for step in up.steps))
    if count < current and down.steps:
        return max(count, min(_least_down(step, current, history, now_s) for step in down.steps))
    return count


def _most_up(step: RateStep, current: int, history: ScaleHistory, now_s: float) -> int:
    """The highest count that a step allows; never below the present one."""
    start = _at_period_start(step, current, history, now_s)
    if step.replicas is not None:
        return max(start + step.replicas, current)
    # From zero a percentage would allow nothing, ever: it counts from one replica there.
    return max(ceil(max(start, 1) * (1 + (step.ratio or 0.0))), current)


def _least_down(step: RateStep, current: int, history: ScaleHistory, now_s: float) -> int:
    """The lowest count that a step allows; never above the present one."""
    start = _at_period_start(step, current, history, now_s)
    if step.replicas is not None:
        return min(max(start - step.replicas, 0), current)
    # HPA truncates here, so 100 % means all of them and 50 % of three leaves one.
    return min(max(floor(start * (1 - (step.ratio or 0.0))), 0), current)


def _at_period_start(step: RateStep, current: int, history: ScaleHistory, now_s: float) -> int:
    return current - sum(change for at_s, change in history.moves if at_s > now_s - step.period_s)
