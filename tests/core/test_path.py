# SPDX-License-Identifier: Apache-2.0
"""The activator stands in the path while it is needed, and no longer."""

import pytest

from autoscaler.core.path import BLIND_AFTER_S, SETTLED_S, why_in_path
from autoscaler.core.policy import InPath
from autoscaler.core.signals import Measure, NoReading, Reading
from autoscaler.core.zero import ZeroState
from tests.builders import a_policy, a_reading, a_snapshot


def why(
    *,
    state: ZeroState = ZeroState.ACTIVE,
    activator: InPath = InPath.AUTO,
    measures: dict[Measure, Reading | NoReading] | None = None,
    in_path: bool = True,
    scale: int = 2,
    ready: int = 2,
    active_s: float = SETTLED_S,
    blind_s: float = 0.0,
) -> str | None:
    snapshot = a_snapshot(
        scale=scale, ready=ready, in_path=in_path, measures=measures or {Measure.HELD: a_reading(0)}
    )
    policy = a_policy(activator=activator)
    return why_in_path(snapshot, policy, state, count=scale, active_s=active_s, blind_s=blind_s)


@pytest.mark.parametrize("state", [ZeroState.ASLEEP, ZeroState.WAKING, ZeroState.DRAINING])
def test_it_stands_there_whenever_no_replica_might_answer(state: ZeroState) -> None:
    """Before sleep, during it, and until somebody can serve."""
    assert why(state=state, in_path=False)


def test_it_leaves_once_everybody_is_ready_and_nobody_waits() -> None:
    """Warm requests pay for no hop."""
    assert why() is None


@pytest.mark.parametrize(
    "held", [a_reading(1), NoReading("no activator speaks")], ids=["held", "unknown"]
)
def test_it_stays_while_somebody_waits_or_nobody_can_say(held: Reading | NoReading) -> None:
    """Rule D1: absence is not zero."""
    assert why(measures={Measure.HELD: held})


def test_it_stays_until_the_replicas_that_were_asked_for_are_ready() -> None:
    """One replica of four must not meet the whole crowd alone."""
    assert why(scale=4, ready=1)


def test_it_stays_until_the_network_has_heard_of_the_replicas() -> None:
    """A replica that is ready here is not yet known on every node."""
    assert why(active_s=SETTLED_S - 0.1)


def test_it_does_not_come_back_because_a_service_grows() -> None:
    """Once out of the path, an active service stays direct."""
    assert why(in_path=False, scale=4, ready=1) is None


def test_it_stands_there_while_no_replica_tells_how_busy_it_is() -> None:
    """Its own share of the requests is then the only sign of demand; a short gap is no reason."""
    assert why(in_path=False, blind_s=BLIND_AFTER_S)
    assert why(in_path=False, blind_s=BLIND_AFTER_S - 1) is None


def test_users_have_the_last_word() -> None:
    """`activator: always` and `never`."""
    assert why(activator=InPath.ALWAYS, in_path=False)
    assert why(activator=InPath.NEVER, state=ZeroState.ASLEEP) is None
