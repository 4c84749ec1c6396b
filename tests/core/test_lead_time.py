# SPDX-License-Identifier: Apache-2.0
"""A service's lead time is learned from its own starts, each once."""

from autoscaler.core.lead_time import KEPT_OBSERVATIONS, LeadTimes, StartsSeen, learn_from
from autoscaler.core.replicas import Replica, ReplicaState


def started(name: str, asked_at_s: float, ready_at_s: float) -> Replica:
    return Replica(name, ReplicaState.READY, asked_at_s, ready_at_s)


def test_a_start_is_learned_once() -> None:
    """The same ready replica teaches at the tick where it first shows, and never again."""
    _, seen = learn_from([], seen=StartsSeen(), lead_times=LeadTimes())
    learned, seen = learn_from([started("a", 10, 42)], seen=seen, lead_times=LeadTimes())
    learned, seen = learn_from([started("a", 10, 42)], seen=seen, lead_times=learned)
    assert learned.observed_s == (32,)


def test_a_restart_of_the_same_replica_is_a_start_of_its_own() -> None:
    """It was asked for and became ready anew."""
    _, seen = learn_from([], seen=StartsSeen(), lead_times=LeadTimes())
    learned, seen = learn_from([started("a", 10, 42)], seen=seen, lead_times=LeadTimes())
    learned, seen = learn_from([started("a", 100, 105)], seen=seen, lead_times=learned)
    assert learned.observed_s == (32, 5)


def test_a_replica_that_falls_silent_and_comes_back_has_not_started_twice() -> None:
    """It missed some probes; nobody started it."""
    silent = Replica("a", ReplicaState.STARTING, 10)
    _, seen = learn_from([], seen=StartsSeen(), lead_times=LeadTimes())
    learned, seen = learn_from([started("a", 10, 42)], seen=seen, lead_times=LeadTimes())
    learned, seen = learn_from([silent], seen=seen, lead_times=learned)
    learned, seen = learn_from([started("a", 10, 42)], seen=seen, lead_times=learned)
    assert learned.observed_s == (32,)


def test_replicas_that_were_ready_before_anybody_watched_teach_nothing() -> None:
    """After a restart of the controller the replicas that run already are not starts."""
    learned, _ = learn_from([started("a", 0, 900)], seen=StartsSeen(), lead_times=LeadTimes())
    assert learned.observed_s == ()


def test_quantiles_are_observations() -> None:
    """The nearest rank: of 10 starts the 90th percentile is the ninth."""
    times = LeadTimes(tuple(float(n) for n in range(10, 0, -1)))
    assert times.quantile(0.9) == 9
    assert times.quantile(0.5) == 5
    assert LeadTimes().quantile(0.9) is None


def test_old_starts_are_forgotten_and_negative_ones_not_believed() -> None:
    """Only the newest count, and a clock that went back teaches nothing."""
    times = LeadTimes()
    for n in range(KEPT_OBSERVATIONS + 5):
        times = times.learn(float(n)).learn(-1.0)
    assert times.observed_s[0] == 5
    assert len(times.observed_s) == KEPT_OBSERVATIONS
