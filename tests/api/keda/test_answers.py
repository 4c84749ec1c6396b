# SPDX-License-Identifier: Apache-2.0
"""Whatever was read and whatever was not: no answer lowers a count without proof."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.api.keda.answers import NoAnswer, active, value
from autoscaler.api.keda.trigger import WISH, Asked, Trigger
from autoscaler.core.decide import decide
from autoscaler.core.policy import Target
from autoscaler.core.signals import Measure, NoReading, Query, Reading, Signal
from autoscaler.loop import Record
from tests.builders import A_SERVICE, a_memory, a_policy, a_snapshot

UP = Query("up")
SIGNALS = [*Signal, UP]

amounts = st.one_of(st.just(0.0), st.floats(0.0, 1e12, allow_subnormal=False))
shares = st.sampled_from([0.0, 0.5, 1.0])
readings = st.builds(Reading, amounts, st.just(0.0), st.just("test"), shares)
seen = st.one_of(readings, st.builds(NoReading, st.just("not read")))
measures = st.dictionaries(
    st.sampled_from([Measure.HELD, Measure.IN_FLIGHT, Measure.WAITING, Measure.REQUESTS_TOTAL]),
    seen,
)
triggers = st.builds(
    Trigger,
    st.just(A_SERVICE),
    st.sampled_from([WISH, *SIGNALS]),
    st.sampled_from([None, 0.5, 4.0]),
)


def a_record(
    scale: int,
    measured: dict[Measure, Reading | NoReading],
    signals: dict[Signal | Query, Reading | NoReading],
) -> Record:
    """What the loop records of a first look at a service in a dry run, whatever its signals."""
    policy = a_policy(targets=tuple(Target(signal, 1.0) for signal in SIGNALS), dry_run=True)
    snapshot = a_snapshot(scale=scale, measures=measured)
    decision, _ = decide(snapshot, policy, a_memory(snapshot), 0.0)
    return Record(replace(decision, signals=signals), snapshot, policy)


def speaks_for_all(what: Reading | NoReading | None) -> bool:
    return isinstance(what, Reading) and what.share_ratio == 1.0


@given(triggers, st.integers(0, 5), measures, st.dictionaries(st.sampled_from(SIGNALS), seen))
def test_inactive_is_what_is_proven_to_be_at_rest(
    trigger: Trigger,
    scale: int,
    measured: dict[Measure, Reading | NoReading],
    signals: dict[Signal | Query, Reading | NoReading],
) -> None:
    """Held and in flight were read of all, and were 0; so was what waits, where anybody tells."""
    said = active(trigger, a_record(scale, measured, signals))
    if said is False:
        for measure in (Measure.HELD, Measure.IN_FLIGHT):
            assert speaks_for_all(measured[measure])
        for measure in (Measure.HELD, Measure.IN_FLIGHT, Measure.WAITING):
            told = measured.get(measure)
            assert told is None or (isinstance(told, Reading) and told.value == 0)


@given(triggers, st.integers(0, 5), measures, st.dictionaries(st.sampled_from(SIGNALS), seen))
def test_a_value_that_asks_for_fewer_was_read_of_all(
    trigger: Trigger,
    scale: int,
    measured: dict[Measure, Reading | NoReading],
    signals: dict[Signal | Query, Reading | NoReading],
) -> None:
    """The HPA divides it by the target: below the count that is there it takes replicas away."""
    record = a_record(scale, measured, signals)
    said = value(trigger, record)
    asked: Asked = trigger.signal
    if isinstance(said, NoAnswer) or asked == WISH:
        return
    if said < trigger.per_replica(record.policy) * scale:
        assert speaks_for_all(signals[asked])
