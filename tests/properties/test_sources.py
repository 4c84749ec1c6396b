# SPDX-License-Identifier: Apache-2.0
"""Several sources that tell, fail and tell in part, in any order: no count falls on a part."""

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.core.decide import decide, first_memory
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import RateRule, Target
from autoscaler.core.signals import (
    Measure,
    Measures,
    NoReading,
    Quantity,
    Query,
    Reading,
    Signal,
    first_told,
)
from tests.builders import a_policy, a_snapshot

QUERY = Query("sum(jobs)")
TARGETS = (*Signal, QUERY)
QUANTITIES: tuple[Quantity, ...] = (*Measure, *Signal, QUERY)
GROWS = frozenset(measure for measure in Measure if measure.endswith("_total"))

readings = st.one_of(
    st.just(NoReading("timed out")),
    st.builds(
        Reading, st.floats(0, 100), st.just(0.0), st.just("test"), st.sampled_from([0.0, 0.5, 1.0])
    ),
)
sources = st.dictionaries(st.sampled_from(QUANTITIES), readings)
ticks = st.lists(sources, min_size=1, max_size=3).map(first_told)


def at(told: Measures, at_s: float) -> dict[Quantity, Reading | NoReading]:
    """As seen at one time; totals have grown by then."""
    return {
        quantity: seen
        if isinstance(seen, NoReading)
        else Reading(
            seen.value + 100 * at_s * (quantity in GROWS), at_s, seen.source, seen.share_ratio
        )
        for quantity, seen in told.items()
    }


@given(
    st.sets(st.sampled_from(TARGETS), min_size=1),
    st.lists(ticks, min_size=1, max_size=12),
    st.integers(0, 6),
)
def test_a_count_falls_only_when_every_target_was_read_of_every_replica(
    targets: set[Signal | Query], story: list[Measures], ready: int
) -> None:
    """Awake and within its bounds, a service loses a replica only by the word of all (D1, I2)."""
    policy = a_policy(
        targets=tuple(Target(signal, 0.5) for signal in sorted(targets, key=str)),
        min_replicas=1,
        scale_down=RateRule(window_s=0.0),
    )
    scale, memory = 6, first_memory(a_snapshot(scale=6), LeadTimes())
    for at_s, told in enumerate(story):
        measures = at(told, at_s)
        snapshot = a_snapshot(at_s=at_s, scale=scale, ready=min(ready, scale), measures=measures)
        decision, memory = decide(snapshot, policy, memory, at_s)
        if decision.replicas < scale:
            assert [candidate.share_ratio for candidate in decision.candidates] == [1.0] * len(
                targets
            )
        scale = decision.replicas


@given(st.lists(sources, max_size=4))
def test_merging_invents_nothing_and_loses_no_word_that_counts(told: list[Measures]) -> None:
    """Each answer is one that was given; a reading of replicas is never hidden by anything less."""
    merged = first_told(told)
    assert set(merged) == {quantity for of in told for quantity in of}
    for quantity, seen in merged.items():
        given_ = [of[quantity] for of in told if quantity in of]
        assert seen in given_
        speaking = [of for of in given_ if isinstance(of, Reading) and of.share_ratio > 0]
        assert not speaking or seen == speaking[0]
