# SPDX-License-Identifier: Apache-2.0
"""Invariants of deciding, over stories that nobody thought of."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.core.decide import decide
from autoscaler.core.policy import Idle, RateRule, RateStep, ServicePolicy, Target
from autoscaler.core.signals import Signal
from autoscaler.core.zero import ZeroState
from tests.builders import a_policy
from tests.story import LEVELS, Story

levels = st.one_of(st.none(), st.floats(0, 500, allow_nan=False))
ticks = st.fixed_dictionaries(dict.fromkeys(LEVELS, levels))
stories = st.lists(
    st.tuples(st.floats(0.1, 20), ticks, st.integers(0, 12)), min_size=1, max_size=25
)


@st.composite
def rules(draw: st.DrawFn) -> RateRule:
    steps = draw(
        st.lists(
            st.one_of(
                st.builds(RateStep, st.floats(1, 60), replicas=st.integers(1, 10)),
                st.builds(RateStep, st.floats(1, 60), ratio=st.floats(0.1, 1)),
            ),
            max_size=2,
        )
    )
    return RateRule(tuple(steps), draw(st.sampled_from([0.0, 5.0, 60.0])), draw(st.floats(0, 0.3)))


@st.composite
def policies(draw: st.DrawFn) -> ServicePolicy:
    signals = draw(st.sets(st.sampled_from(list(Signal)), min_size=1))
    most = draw(st.integers(1, 50))
    return a_policy(
        targets=tuple(Target(signal, draw(st.floats(0.5, 100))) for signal in sorted(signals)),
        min_replicas=draw(st.integers(0, min(3, most))),
        max_replicas=most,
        activation_replicas=draw(st.integers(1, min(3, most))),
        scale_to_zero_after=draw(st.sampled_from([Idle.AUTO, Idle.NEVER, 0.0, 5.0])),
        scale_up=draw(rules()),
        scale_down=draw(rules()),
        slots=draw(st.sampled_from([None, 1, 4])),
        cold_start_timeout_s=draw(st.sampled_from([5.0, 600.0])),
    )


def lived(policy: ServicePolicy, story: list[tuple[float, dict[str, float | None], int]]) -> Story:
    """The story played to its end."""
    told = Story(policy)
    for wait_s, seen, ready in story:
        told.play(told.now_s + wait_s, seen, ready=min(ready, told.scale))
    return told


@given(policies(), stories)
def test_a_count_stays_within_its_bounds(
    policy: ServicePolicy, story: list[tuple[float, dict[str, float | None], int]]
) -> None:
    """Zero when asleep, else from activation-replicas to max-replicas."""
    told = Story(policy)
    for wait_s, seen, ready in story:
        decision = told.play(told.now_s + wait_s, seen, ready=min(ready, told.scale))
        assert 0 <= decision.replicas <= policy.max_replicas
        if decision.state is ZeroState.ASLEEP:
            assert decision.replicas == 0
        else:
            assert decision.replicas >= policy.activation_replicas


@given(policies(), stories, ticks, st.integers(0, 12))
def test_the_same_input_decides_the_same(
    policy: ServicePolicy,
    story: list[tuple[float, dict[str, float | None], int]],
    seen: dict[str, float | None],
    ready: int,
) -> None:
    """I7: deciding twice from one snapshot and memory gives equal decisions and memories."""
    told = lived(policy, story)
    assert told.memory is not None
    snapshot = told._snapshot(told.now_s + 1, seen, min(ready, told.scale))
    assert decide(snapshot, policy, told.memory, snapshot.at_s) == decide(
        snapshot, policy, told.memory, snapshot.at_s
    )


@given(policies(), stories, ticks, st.integers(0, 12), st.floats(0, 100))
def test_more_load_never_means_fewer_replicas(
    policy: ServicePolicy,
    story: list[tuple[float, dict[str, float | None], int]],
    seen: dict[str, float | None],
    ready: int,
    more: float,
) -> None:
    """I8: the same story with a heavier last tick never ends in a smaller count."""
    counts = []
    for extra in (0.0, more):
        told = lived(policy, story)
        heavier = {name: None if level is None else level + extra for name, level in seen.items()}
        decision = told.play(told.now_s + 1, heavier, ready=min(ready, told.scale))
        counts.append(decision.replicas)
    assert counts[1] >= counts[0]


@given(policies(), stories, st.lists(st.floats(0.1, 300), min_size=1, max_size=10))
def test_no_count_falls_on_missing_data(
    policy: ServicePolicy,
    story: list[tuple[float, dict[str, float | None], int]],
    silence: list[float],
) -> None:
    """I2: while nothing can be read, a count that serves holds, however long it takes."""
    told = lived(policy, story)
    nothing = dict.fromkeys(LEVELS, None)
    for wait_s in silence:
        before = told.scale
        decision = told.play(told.now_s + wait_s, nothing, ready=told.scale)
        assert decision.replicas >= before


@given(policies(), stories)
def test_nothing_falls_asleep_while_work_is_there(
    policy: ServicePolicy, story: list[tuple[float, dict[str, float | None], int]]
) -> None:
    """D6: a service with anything held, waiting or in flight never goes from serving to asleep."""
    told = Story(policy, scale=1)
    before = ZeroState.ACTIVE
    for wait_s, seen, _ in story:
        decision = told.play(told.now_s + wait_s, seen)
        busy = any(seen[name] for name in ("concurrency", "held", "waiting"))
        if busy and before in (ZeroState.ACTIVE, ZeroState.DRAINING):
            assert decision.state is not ZeroState.ASLEEP
        before = decision.state


@given(policies(), stories)
@settings(max_examples=50)
def test_a_paused_service_stands_still_and_a_dry_run_only_talks(
    policy: ServicePolicy, story: list[tuple[float, dict[str, float | None], int]]
) -> None:
    """Neither ever asks for another count than the one that is there."""
    for halted in (replace(policy, paused=True), replace(policy, dry_run=True)):
        told = Story(halted, scale=2)
        for wait_s, seen, _ in story:
            decision = told.play(told.now_s + wait_s, seen)
            assert not decision.changes
            assert decision.replicas == 2


@given(stories, st.lists(st.floats(-50, 50), min_size=1, max_size=10))
def test_a_clock_that_stands_still_or_goes_back_breaks_nothing(
    story: list[tuple[float, dict[str, float | None], int]], jumps: list[float]
) -> None:
    """Ticks at the same or an earlier time still decide, within bounds."""
    told = lived(a_policy(), story)
    for jump_s in jumps:
        decision = told.play(told.now_s + jump_s, {"concurrency": 20.0})
        assert 0 <= decision.replicas <= 10
