# SPDX-License-Identifier: Apache-2.0
"""One decision: from what was seen of a service to how many replicas it should have, and why.

Read `decide` from top to bottom; each step is a small pure module of its own beside this one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from autoscaler.core import ahead, keepalive, path, stabilize, zero
from autoscaler.core.ahead import Answers
from autoscaler.core.lead_time import LeadTimes, StartsSeen, learn_from
from autoscaler.core.policies import POLICIES
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.proposal import Bound, Candidate, Proposal
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.signals import (
    AVERAGED,
    SIGNALS,
    Measure,
    NoReading,
    Over,
    Query,
    Reading,
    ServiceId,
    ServiceSnapshot,
    Signal,
    SignalMeaning,
    Signals,
)
from autoscaler.core.windows import CounterWindow, LevelWindow
from autoscaler.core.zero import Awake, Facts, ZeroState

# After a start that failed: as long as kubelet's longest back-off, so that a broken image does not
# take a GPU over and over, and a mended one is found within minutes.
FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 300.0
# Rule D5: what somebody else decided is left alone this long; a person sees what came of it.
COOL_OFF_S = 300.0
REQUESTS = "requests"  # the unit of signals that what is held counts towards
NO_PROMETHEUS = NoReading("no Prometheus is configured to be asked")
DOUBLED_MOST = 16  # times; more is beyond LONGEST_RETRY_S, and in the end beyond any float


WINDOWS: Mapping[Over, type[CounterWindow] | type[LevelWindow]] = {
    Over.RATE: CounterWindow,
    Over.MEAN: LevelWindow,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas one service should have now, the state it is in, and the trail to it.

    `replicas` is what is asked for, `decided` what would be if it were not a dry run, or paused.
    """

    service: ServiceId
    at_s: float
    generation: int
    current: int
    replicas: int
    decided: int
    state: ZeroState
    why: str
    because: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    acts: bool = True  # false: dry run or paused
    in_path: str | None = None  # why the activator should stand in the path; None: it should not
    wished: int = 0  # what the policy asked for, before bounds and limits
    bound_by: Bound = Bound.TARGET
    signals: Signals = field(default_factory=dict)  # what the policy saw

    @property
    def changes(self) -> bool:
        return self.acts and self.replicas != self.current


@dataclass(frozen=True, slots=True)
class Partial:
    """Until when a window holds what spoke for only a part of the replicas, and for which part.

    Its mean is below the truth for as long, whoever speaks by then (rule D1).
    """

    until_s: float
    share_ratio: float


@dataclass(frozen=True, slots=True)
class ServiceMemory:
    """What deciding remembers of one service from tick to tick."""

    state: ZeroState
    state_since_s: float
    history: stabilize.ScaleHistory
    scale: int
    windows: Mapping[Measure, CounterWindow | LevelWindow] = field(default_factory=dict)
    partial: Mapping[Measure, Partial] = field(default_factory=dict)
    requests_seen: float | None = None
    idle_since_s: float | None = None
    starts_seen: StartsSeen = StartsSeen()
    lead_times: LeadTimes = LeadTimes()
    answers: Answers = field(default_factory=Answers)
    failed_starts: int = 0
    retry_at_s: float | None = None
    failed_why: str = ""  # what the replicas said of the last start that failed
    blind_since_s: float | None = None
    overridden_at_s: float | None = None  # when somebody else was last seen to change the count


def first_memory(snapshot: ServiceSnapshot, lead_times: LeadTimes) -> ServiceMemory:
    """What is known of a service at the first look; nothing in it lets a count fall (rule D4)."""
    return ServiceMemory(
        state=zero.first_state(scale=snapshot.scale, ready=_ready(snapshot) > 0),
        state_since_s=snapshot.at_s,
        history=stabilize.first_history(snapshot.scale, now_s=snapshot.at_s),
        scale=snapshot.scale,
        lead_times=lead_times,
    )


def decide(
    snapshot: ServiceSnapshot, policy: ServicePolicy, memory: ServiceMemory, now_s: float
) -> tuple[Decision, ServiceMemory]:
    """Decide one service's replica count. Pure: the same arguments give the same answer (I7)."""
    # 1. Remember what was seen, and learn from the starts that ended.
    memory = _remember(snapshot, policy, memory, now_s)
    lead_time_s = memory.lead_times.quantile(0.9)
    # 2. What the signals ask for, within the user's bounds.
    signals = signals_at(snapshot, policy.queries, memory, now_s)
    if _ready(snapshot) == 0:
        signals = ahead.with_held_tokens(
            signals,
            policy,
            snapshot.measures,
            windows=memory.windows,
            tokens_per_answer=memory.answers.tokens_per_answer,
            lead_time_s=lead_time_s,
            now_s=now_s,
        )
    wish = POLICIES[policy.policy](signals, policy, current=snapshot.scale)
    wish = _bounded(wish, policy)
    # 3. How much of it may happen now.
    wish, history = stabilize.stabilize(
        wish,
        current=snapshot.scale,
        up=policy.scale_up,
        down=policy.scale_down,
        down_window_s=stabilize.down_window_s(policy.scale_down, lead_time_s=lead_time_s),
        history=memory.history,
        now_s=now_s,
    )
    memory = replace(memory, history=history)
    # 4. Sleep, wake, or neither.
    facts = _facts(snapshot, policy, memory, lead_time_s=lead_time_s, now_s=now_s)
    rule = zero.next_state(memory.state, facts)
    count = _count(rule.count, wish, policy)
    if _overridden(memory, policy, now_s) and snapshot.scale > 0:
        count, wish = snapshot.scale, _left_alone(wish, snapshot, memory, now_s)
    failed_why = _complaints(snapshot) if facts.overdue else None
    memory = _entered(rule.to, memory, failed_why=failed_why, now_s=now_s)
    # 5. Say it.
    why = _why(rule, snapshot, memory)
    in_path = path.why_in_path(
        snapshot,
        policy,
        rule.to,
        count=count,
        active_s=now_s - memory.state_since_s,
        blind_s=0.0 if memory.blind_since_s is None else now_s - memory.blind_since_s,
    )
    said = _decision(snapshot, policy, wish, rule, count, signals=signals, why=why, in_path=in_path)
    return said, memory


def signals_at(
    snapshot: ServiceSnapshot, queries: Iterable[Query], memory: ServiceMemory, now_s: float
) -> Signals:
    """Every signal that the snapshot and the windows allow to be told; the rest say why not."""
    waking = _ready(snapshot) == 0
    signals: dict[Signal | Query, Reading | NoReading] = {}
    for signal, meaning in SIGNALS.items():
        measured = _measured(meaning, snapshot, memory, now_s, waking=waking)
        averaged = snapshot.measures.get(signal)
        if averaged is not None:
            averaged = _with_held(averaged, meaning, snapshot, memory, now_s, waking=waking)
            whole = all(term.measure in snapshot.measures for term in meaning.terms)
            measured = _better_told(measured, averaged, whole=whole)
        signals[signal] = measured
    for query in queries:
        signals[query] = snapshot.measures.get(query, NO_PROMETHEUS)
    return signals


def _better_told(
    measured: Reading | NoReading, averaged: Reading | NoReading, *, whole: bool
) -> Reading | NoReading:
    """The measured value if replicas told it; else whichever is known to be the larger.

    `whole`: all that the signal is made of was measured. A queue is not, of which only the part in
    front of the replicas is: once the average fails, the rest is unknown and not empty (rule D1).
    """
    if isinstance(measured, NoReading):
        return averaged
    if whole and measured.share_ratio > 0:
        return measured
    known = 0.0 if isinstance(averaged, NoReading) else averaged.value
    return replace(measured, share_ratio=0.0) if measured.value > known else averaged


def _with_held(
    averaged: Reading | NoReading,
    meaning: SignalMeaning,
    snapshot: ServiceSnapshot,
    memory: ServiceMemory,
    now_s: float,
    *,
    waking: bool,
) -> Reading | NoReading:
    """A signal that a source has averaged itself, with what waits in front of the replicas."""
    if isinstance(averaged, NoReading) or meaning.unit != REQUESTS:
        return averaged
    window = memory.windows.get(Measure.HELD_SECONDS_TOTAL)
    held = None if window is None else window.value(now_s)
    held_now = _held_now(snapshot)
    known = held is not None and held_now is not None
    burst = held_now if waking and held_now is not None else 0.0
    return replace(
        averaged,
        value=averaged.value + max(held or 0.0, burst),
        share_ratio=averaged.share_ratio if known else 0.0,
    )


def _measured(
    meaning: SignalMeaning,
    snapshot: ServiceSnapshot,
    memory: ServiceMemory,
    now_s: float,
    *,
    waking: bool,
) -> Reading | NoReading:
    total, share_ratio, sources = 0.0, 1.0, []
    # With nothing ready the mean of the last seconds lags behind what already waits: the count is
    # chosen for the held work, not for its average.
    held = _held_now(snapshot) if waking and meaning.unit == REQUESTS else None
    for term in meaning.terms:
        seen = snapshot.measures.get(term.measure)
        if seen is None:  # no configured source speaks of it
            continue
        if isinstance(seen, NoReading):
            return seen
        window = memory.windows.get(term.measure)
        value = None if window is None else window.value(now_s)
        if value is None and held is None:
            return NoReading(f"{seen.source}: too few samples yet")
        total += value or 0.0
        # What is held may raise a count before there is a mean; lower it only the whole can.
        share_ratio = min(share_ratio, seen.share_ratio if value is not None else 0.0)
        partial = memory.partial.get(term.measure)
        if partial is not None and now_s < partial.until_s:
            share_ratio = min(share_ratio, partial.share_ratio)
        sources.append(seen.source)
    if not sources:
        return NoReading("no source reports it")
    return Reading(max(total, held or 0.0), snapshot.at_s, "+".join(sources), share_ratio)


def _held_now(snapshot: ServiceSnapshot) -> float | None:
    held = snapshot.measures.get(Measure.HELD)
    return held.value if isinstance(held, Reading) else None


def _remember(
    snapshot: ServiceSnapshot, policy: ServicePolicy, memory: ServiceMemory, now_s: float
) -> ServiceMemory:
    windows = dict(memory.windows)
    partial = {m: part for m, part in memory.partial.items() if now_s < part.until_s}
    for measure, over in AVERAGED.items():
        seen = snapshot.measures.get(measure)
        if isinstance(seen, Reading):
            window = windows.get(measure)
            if window is None or window.span_s != policy.signal_window_s:
                window = WINDOWS[over](policy.signal_window_s)
            windows[measure] = window.seen(seen.value, seen.at_s)
            if seen.share_ratio < 1.0:
                before = partial[measure].share_ratio if measure in partial else 1.0
                partial[measure] = Partial(seen.at_s + window.span_s, min(seen.share_ratio, before))
    lead_times, starts_seen = learn_from(
        snapshot.replicas, seen=memory.starts_seen, lead_times=memory.lead_times
    )
    quiet = keepalive.is_quiet(snapshot.measures, requests_before=memory.requests_seen)
    arrived = snapshot.measures.get(Measure.REQUESTS_TOTAL)
    return replace(
        memory,
        windows=windows,
        partial=partial,
        lead_times=lead_times,
        starts_seen=starts_seen,
        answers=memory.answers.after(snapshot.measures) if quiet else memory.answers,
        requests_seen=arrived.value if isinstance(arrived, Reading) else None,
        idle_since_s=(now_s if memory.idle_since_s is None else memory.idle_since_s)
        if quiet
        else None,
        history=stabilize.noticed(
            memory.history,
            snapshot.scale - memory.scale,
            now_s=now_s,
            up=policy.scale_up,
            down=policy.scale_down,
        ),
        scale=snapshot.scale,
        blind_since_s=(now_s if memory.blind_since_s is None else memory.blind_since_s)
        if path.is_blind(snapshot)
        else None,
        overridden_at_s=now_s
        if snapshot.written_by and snapshot.scale != memory.scale
        else memory.overridden_at_s,
    )


def _overridden(memory: ServiceMemory, policy: ServicePolicy, now_s: float) -> bool:
    if policy.dry_run:  # somebody else is meant to write, perhaps by what is wished here
        return False
    return memory.overridden_at_s is not None and now_s - memory.overridden_at_s < COOL_OFF_S


def _left_alone(
    wish: Proposal, snapshot: ServiceSnapshot, memory: ServiceMemory, now_s: float
) -> Proposal:
    """The count that somebody else set, as a wish."""
    since_s = now_s - (memory.overridden_at_s or 0.0)
    why = (
        f"D5 {snapshot.written_by or 'somebody else'} set {snapshot.scale} {since_s:.0f} s ago, "
        f"left alone for {COOL_OFF_S:.0f} s; {wish.replicas} wanted"
    )
    because = (*wish.because, why)
    return replace(wish, replicas=snapshot.scale, because=because, bound_by=Bound.COOL_OFF)


def _bounded(wish: Proposal, policy: ServicePolicy) -> Proposal:
    count = min(max(wish.replicas, policy.min_replicas), policy.max_replicas)
    if count == wish.replicas:
        return wish
    bound = Bound.MIN if count > wish.replicas else Bound.MAX
    because = (*wish.because, f"{bound}={count}, {wish.replicas} wanted")
    return replace(wish, replicas=count, exact=float(count), because=because, bound_by=bound)


def _facts(
    snapshot: ServiceSnapshot,
    policy: ServicePolicy,
    memory: ServiceMemory,
    *,
    lead_time_s: float | None,
    now_s: float,
) -> Facts:
    keep_s = keepalive.keepalive_s(policy, lead_time_s=lead_time_s)
    idle_s = None if memory.idle_since_s is None else now_s - memory.idle_since_s
    starting = any(replica.state is ReplicaState.STARTING for replica in snapshot.replicas)
    activity = (
        snapshot.measures.get(m) for m in (Measure.HELD, Measure.IN_FLIGHT, Measure.WAITING)
    )
    # In flight while nothing is ready: a replica too busy for its readiness probe. Its work is no
    # failed start (D6), and where nobody can say whether there is any, neither (D1).
    running = snapshot.measures.get(Measure.IN_FLIGHT)
    at_work = isinstance(running, NoReading) or (running is not None and running.value > 0)
    return Facts(
        demanded=any(isinstance(seen, Reading) and seen.value > 0 for seen in activity),
        floored=policy.min_replicas > 0,
        starting=starting and snapshot.scale > 0 and _ready(snapshot) == 0,
        ready=_ready(snapshot) > 0,
        idle=keep_s is not None
        and idle_s is not None
        and idle_s >= keep_s
        and not starting
        and not _overridden(memory, policy, now_s),
        overdue=memory.state is ZeroState.WAKING
        and not at_work
        and now_s - memory.state_since_s >= policy.cold_start_timeout_s,
        backing_off=memory.retry_at_s is not None and now_s < memory.retry_at_s,
        # In a dry run somebody else is meant to write, also a 0 that is wished here.
        parked=snapshot.scale == 0 and bool(snapshot.written_by) and not policy.dry_run,
        path_held=snapshot.path_held,
    )


def _ready(snapshot: ServiceSnapshot) -> int:
    return sum(replica.state is ReplicaState.READY for replica in snapshot.replicas)


def _count(awake: Awake, wish: Proposal, policy: ServicePolicy) -> int:
    if awake is Awake.NONE:
        return 0
    # The floors come last: no tolerance, window or rate limit keeps a count below them.
    least = max(policy.min_replicas, policy.activation_replicas, 1)
    return min(max(wish.replicas, least), policy.max_replicas)


def _entered(
    state: ZeroState, memory: ServiceMemory, *, failed_why: str | None, now_s: float
) -> ServiceMemory:
    """The memory after the table has spoken; a start that failed puts off the next one.

    `failed_why`: None unless waking is overdue.
    """
    if state is memory.state:
        return memory
    memory = replace(memory, state=state, state_since_s=now_s)
    if state is ZeroState.ASLEEP and failed_why is not None:
        doubled = min(memory.failed_starts, DOUBLED_MOST)
        pause_s = min(FIRST_RETRY_S * 2**doubled, LONGEST_RETRY_S)
        return replace(
            memory,
            failed_starts=memory.failed_starts + 1,
            retry_at_s=now_s + pause_s,
            failed_why=failed_why,
        )
    if state is ZeroState.ACTIVE:
        return replace(memory, failed_starts=0, retry_at_s=None, failed_why="")
    return memory


def _decision(
    snapshot: ServiceSnapshot,
    policy: ServicePolicy,
    wish: Proposal,
    rule: zero.Rule,
    count: int,
    *,
    signals: Signals,
    why: str,
    in_path: str | None,
) -> Decision:
    because, bound_by = wish.because, wish.bound_by
    if rule.count is Awake.NONE:
        because += (rule.why,)
        if count == 0:
            bound_by = Bound.SWITCHED_OFF if rule.why == zero.SWITCHED_OFF else Bound.ASLEEP
    elif count != wish.replicas:
        bound_by = _last_bound(count, wish, policy)
        because += (f"{rule.why}: {bound_by}={count}",)
    halted = "paused" if policy.paused else "dry run" if policy.dry_run else ""
    if halted:
        because += (f"{halted}: {count} would be asked for",)
        bound_by = Bound.PAUSED if policy.paused else Bound.DRY_RUN
    return Decision(
        service=snapshot.service,
        at_s=snapshot.at_s,
        generation=snapshot.generation,
        current=snapshot.scale,
        replicas=snapshot.scale if halted else count,
        decided=count,
        state=rule.to,
        why=why,
        because=because,
        candidates=wish.candidates,
        acts=not halted,
        in_path=in_path,
        wished=wish.wished,
        bound_by=bound_by,
        signals=signals,
    )


def _last_bound(count: int, wish: Proposal, policy: ServicePolicy) -> Bound:
    """What `_count` went by where it did not take the wish."""
    if count < wish.replicas:
        return Bound.MAX
    return Bound.MIN if count == policy.min_replicas else Bound.ACTIVATION


def _why(rule: zero.Rule, snapshot: ServiceSnapshot, memory: ServiceMemory) -> str:
    """The rule's words, and what the replicas complain of, or complained of when they failed."""
    failed = memory.failed_why if rule.to is ZeroState.ASLEEP else ""
    return "; ".join(filter(None, (rule.why, failed or _complaints(snapshot))))


def _complaints(snapshot: ServiceSnapshot) -> str:
    return "; ".join(sorted({f"{r.id}: {r.why}" for r in snapshot.replicas if r.why}))
