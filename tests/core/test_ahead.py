# SPDX-License-Identifier: Apache-2.0
"""What held requests are expected to cost in tokens, and how many replicas that wakes."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.core.ahead import KEPT_ANSWERS, Answers, with_held_tokens
from autoscaler.core.decide import decide
from autoscaler.core.policy import Target
from autoscaler.core.signals import Measure, NoReading, Quantity, Reading, Signal
from autoscaler.core.windows import CounterWindow
from autoscaler.core.zero import ZeroState
from tests.builders import a_memory, a_policy, a_reading, a_snapshot

POLICY = a_policy(targets=(Target(Signal.TOKENS_PER_S, 100.0),), signal_window_s=6.0)
NOT_TOLD = NoReading("no replica is ready")
Told = Mapping[Quantity, Reading | NoReading]


def holding(requests: float, tokens: float = 0.0, open_ended: float = 0.0) -> Told:
    """What activators hold."""
    return {
        Measure.HELD: a_reading(requests),
        Measure.HELD_OUTPUT_TOKENS: a_reading(tokens),
        Measure.HELD_OPEN_ENDED: a_reading(open_ended),
    }


def coming(tokens: float, open_ended: float = 0.0) -> Mapping[Measure, CounterWindow]:
    """Windows over totals that grew by so much, from second 0 to second 6."""
    grown = {
        Measure.OUTPUT_TOKENS_ASKED_TOTAL: tokens,
        Measure.OPEN_ENDED_TOTAL: open_ended,
    }
    return {m: CounterWindow(6.0).seen(0.0, 0.0).seen(by, 6.0) for m, by in grown.items()}


def asked(
    measures: Told,
    came: Mapping[Measure, CounterWindow] | None = None,
    *,
    told: Reading | NoReading = NOT_TOLD,
    answer: float | None = None,
    lead_time_s: float | None = None,
) -> Reading | NoReading:
    """The tokens/s that are asked for at second 6."""
    signals = with_held_tokens(
        {Signal.TOKENS_PER_S: told},
        POLICY,
        measures,
        windows=came or {},
        tokens_per_answer=answer,
        lead_time_s=lead_time_s,
        now_s=6.0,
    )
    return signals[Signal.TOKENS_PER_S]


@pytest.mark.parametrize(
    ("held", "came", "answer", "lead_time_s", "per_s"),
    [
        pytest.param((30, 6000, 0), None, None, None, 1000, id="held: within a signal window"),
        pytest.param((30, 6000, 0), None, None, 60.0, 100, id="held: within a start, once known"),
        pytest.param((30, 6000, 0), None, None, 1.0, 1000, id="a start shorter than the window"),
        pytest.param((30, 600, 0), (6000, 0), None, 60.0, 1000, id="arriving counts for more"),
        pytest.param((30, 6000, 0), None, 50.0, None, 1000, id="what is allowed may be needed"),
        pytest.param((30, 0, 30), None, 50.0, None, 250, id="any number: as many as usual"),
        pytest.param((30, 300, 12), None, 50.0, None, 150, id="some of each"),
        pytest.param((2, 60000, 0), None, None, None, 200, id="no request needs two replicas"),
        pytest.param((40, 0, 0), (0, 30), 60.0, 900.0, 300, id="arriving: any number"),
    ],
)
def test_what_is_held_tells_the_tokens_before_an_engine_does(
    held: tuple[float, float, float],
    came: tuple[float, float] | None,
    answer: float | None,
    lead_time_s: float | None,
    per_s: float,
) -> None:
    """An estimate, so it stands for no replica: it may raise a count and never lower it."""
    windows = None if came is None else coming(*came)
    seen = asked(holding(*held), windows, answer=answer, lead_time_s=lead_time_s)
    assert isinstance(seen, Reading)
    assert seen.value == pytest.approx(per_s)
    assert (seen.source, seen.share_ratio) == ("held", 0.0)


@pytest.mark.parametrize(
    "measures",
    [holding(0), holding(30, 0, 30), {}, {Measure.HELD: NoReading("silent")}],
    ids=["nothing held", "any number and nothing learned", "nobody tells", "silent"],
)
def test_what_says_nothing_of_tokens_leaves_the_reason_why_they_are_not_known(
    measures: Told,
) -> None:
    assert asked(measures) is NOT_TOLD


def test_arrivals_that_have_all_gone_away_again_ask_for_nothing() -> None:
    assert asked(holding(0), coming(6000)) is NOT_TOLD


@pytest.mark.parametrize(
    ("held", "share_ratio"),
    [(a_reading(0.0), 1.0), (a_reading(0.0, share_ratio=0.5), 0.5), (NoReading("silent"), 0.0)],
    ids=["nothing is held", "half of the activators speak", "none speaks"],
)
def test_no_tokens_prove_nothing_while_it_is_not_known_what_is_held(
    held: Reading | NoReading, share_ratio: float
) -> None:
    """No replica is ready, so that engines generate nothing goes without saying."""
    seen = asked({**holding(0), Measure.HELD: held}, told=a_reading(0.0))
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (0.0, share_ratio)


def test_what_engines_tell_counts_where_it_is_more() -> None:
    """Their window still holds what the last replica generated."""
    seen = asked(holding(30, 6000), told=a_reading(5000.0))
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (5000.0, 0.0)


@given(
    st.tuples(*[st.floats(0, 1e6)] * 3),
    st.tuples(*[st.floats(0, 1e6)] * 2),
    st.none() | st.floats(1, 1e4),
    st.none() | st.floats(0, 1e4),
    st.tuples(*[st.floats(0, 1e6)] * 3),
)
def test_more_that_is_held_or_comes_never_asks_for_less(
    held: tuple[float, ...],
    came: tuple[float, ...],
    answer: float | None,
    lead_time_s: float | None,
    more: tuple[float, ...],
) -> None:
    """I8, in each of requests, tokens, and requests that allow any number."""

    def per_s(held: tuple[float, ...], came: tuple[float, ...]) -> float:
        seen = asked(holding(*held), coming(*came), answer=answer, lead_time_s=lead_time_s)
        return seen.value if isinstance(seen, Reading) else 0.0

    summed = tuple(a + b for a, b in zip(held, more, strict=True))
    assert per_s(summed, came) >= per_s(held, came) * (1 - 1e-9)
    summed = tuple(a + b for a, b in zip(came, more[1:], strict=True))
    assert per_s(held, summed) >= per_s(held, came) * (1 - 1e-9)


def test_once_a_replica_is_ready_its_engine_counts() -> None:
    """What is held then waits for a slot, and the engine's own tokens say how busy it is."""
    measures = {**holding(30, 60000), Measure.TOKENS_TOTAL: a_reading(0.0)}
    decision, _ = decide(a_snapshot(scale=1, measures=measures), POLICY, a_memory(), 0.0)
    assert (decision.state, decision.replicas) == (ZeroState.ACTIVE, 1)


def test_a_service_without_a_target_for_tokens_goes_by_its_own() -> None:
    """Tokens add nothing to a concurrency target."""
    for tokens in (0.0, 60000.0):
        snapshot = a_snapshot(scale=0, measures=holding(20, tokens))
        policy = a_policy(targets=(Target(Signal.CONCURRENCY, 8.0),))
        decision, _ = decide(snapshot, policy, a_memory(snapshot), 0.0)
        assert decision.signals[Signal.TOKENS_PER_S] == NoReading("no source reports it")


def rests(tokens: float, requests: float, *, share_ratio: float = 1.0) -> Told:
    return {
        Measure.TOKENS_TOTAL: a_reading(tokens, share_ratio=share_ratio),
        Measure.REQUESTS_TOTAL: a_reading(requests),
    }


NO_ENGINE: Told = {Measure.REQUESTS_TOTAL: a_reading(0.0)}


def learned(*seen: Told) -> float | None:
    answers = Answers()
    for measures in seen:
        answers = answers.after(measures)
    return answers.tokens_per_answer


@pytest.mark.parametrize(
    ("seen", "mean"),
    [
        pytest.param([rests(5000, 10)], None, id="what came before the first rest is not known"),
        pytest.param([rests(5000, 10), rests(6000, 20)], 100.0, id="from one rest to the next"),
        pytest.param([rests(0, 0), rests(900, 10), rests(1000, 10)], 100.0, id="tokens come late"),
        pytest.param([rests(0, 0), rests(0, 10)], None, id="requests that generate nothing"),
        pytest.param([rests(500, 5), rests(100, 6), rests(200, 8)], 50.0, id="counted anew"),
        pytest.param([rests(0, 0), rests(900, 9, share_ratio=0.5)], None, id="of some replicas"),
        pytest.param([rests(0, 0), {}], None, id="not told"),
        pytest.param(
            [NO_ENGINE, rests(500, 10)], 50.0, id="from before its engine was first asked"
        ),
        pytest.param(
            [{**NO_ENGINE, Measure.TOKENS_TOTAL: NOT_TOLD}, rests(500, 10)], None, id="silent first"
        ),
        pytest.param([rests(0, 0), rests(500, 10), NO_ENGINE], 50.0, id="not forgotten"),
    ],
)
def test_the_mean_answer_is_learned_while_a_service_rests(
    seen: list[Told], mean: float | None
) -> None:
    """Then every request that was counted has had all of its tokens."""
    assert learned(*seen) == mean


def test_a_service_whose_answers_change_is_learned_anew() -> None:
    """Old answers fade: after some thousand new ones they hardly count."""
    seen = [rests(0, 0)]
    seen += [rests(100 * n, n) for n in range(1000, 10_001, 1000)]
    seen += [rests(1_000_000 + 500 * n, 10_000 + n) for n in range(100, 5 * KEPT_ANSWERS, 100)]
    mean = learned(*seen)
    assert mean is not None
    assert 490 < mean <= 500
