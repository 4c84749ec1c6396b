# SPDX-License-Identifier: Apache-2.0
"""Knative's annotations mean what Knative documents, or are said to mean nothing."""

import pytest

from autoscaler.core.policy import InPath, ServicePolicy, Target
from autoscaler.core.signals import Signal
from autoscaler.manifests import Wanted
from tests.manifests.manifests import an_object, knatives, lines, ours, the_one


def read(**keys: str) -> Wanted:
    return the_one(an_object(annotations=ours(max_replicas="50") | knatives(**keys)))


def policy(**keys: str) -> ServicePolicy:
    found = read(**keys).policy
    assert found, keys
    return found


def test_bounds_and_sizes_are_taken_over() -> None:
    """Four annotations that mean the same here."""
    found = policy(min_scale="2", max_scale="9", initial_scale="3", activation_scale="2")
    assert (found.min_replicas, found.max_replicas) == (2, 50)  # ours counts for more
    assert (found.initial_replicas, found.activation_replicas) == (3, 2)


def test_no_maximum_of_knatives_is_no_maximum_said() -> None:
    """0 means no limit there, so here it is as if nothing were written."""
    found = the_one(an_object(annotations=ours() | knatives(max_scale="0")))
    assert found.policy
    assert found.policy.max_replicas == 1


def test_older_spellings_are_read() -> None:
    """minScale is min-scale."""
    annotations = ours(max_replicas="9") | {"autoscaling.knative.dev/minScale": "2"}
    found = the_one(an_object(annotations=annotations)).policy
    assert found
    assert found.min_replicas == 2


@pytest.mark.parametrize(
    ("keys", "target"),
    [
        ({"target": "10"}, Target(Signal.CONCURRENCY, 7)),
        ({"target": "10", "target_utilization_percentage": "100"}, Target(Signal.CONCURRENCY, 10)),
        ({"metric": "rps", "target": "100"}, Target(Signal.RPS, 70)),
        ({"metric": "rps"}, Target(Signal.RPS, 140)),
        ({"metric": "concurrency"}, Target(Signal.CONCURRENCY, 70)),
        ({"target_utilization_percentage": "50"}, Target(Signal.CONCURRENCY, 50)),
        ({"target": "0.01"}, Target(Signal.CONCURRENCY, 0.01)),
    ],
)
def test_a_target_is_a_share_of_what_is_written(keys: dict[str, str], target: Target) -> None:
    """70 % unless said otherwise, of 100 requests or 200 requests/s unless said otherwise."""
    assert policy(**keys).targets == (target,)


def test_the_window_and_the_delay_make_one_scale_down_window() -> None:
    """A count falls once fewer have been enough for both together."""
    assert policy(window="30s").scale_down.window_s == 30
    assert policy(scale_down_delay="5m").scale_down.window_s == 360
    assert policy(scale_down_delay="15m", window="120s").scale_down.window_s == 1020
    assert policy(scale_down_delay="1h").scale_down.window_s == 3600
    assert policy(scale_to_zero_pod_retention_period="10m").scale_to_zero_after == 660


def test_always_in_the_path_is_said_by_the_burst_capacity() -> None:
    """-1 is Knative's way to keep the activator there."""
    assert policy(target_burst_capacity="-1").activator is InPath.ALWAYS
    assert policy(target_burst_capacity="200").activator is InPath.AUTO


@pytest.mark.parametrize(
    ("keys", "warnings", "notes"),
    [
        ({"metric": "cpu", "target": "80"}, 1, 0),
        ({"class": "hpa.autoscaling.knative.dev"}, 1, 0),
        ({"class": "kpa.autoscaling.knative.dev"}, 0, 0),
        ({"min_scal": "2"}, 1, 0),
        ({"panic_window_percentage": "10", "panic_threshold_percentage": "200"}, 0, 2),
    ],
)
def test_what_has_no_meaning_here_is_said(keys: dict[str, str], warnings: int, notes: int) -> None:
    """Left, but never in silence."""
    found = read(**keys)
    assert found.policy == policy()
    assert (len(found.warnings), len(found.notes)) == (warnings, notes)


@pytest.mark.parametrize(
    "keys",
    [
        {"min_scale": "two"},
        {"target": "0"},
        {"target": "lots"},
        {"window": "10"},
        {"target_utilization_percentage": "170"},
        {"initial_scale": "99"},
    ],
)
def test_a_value_out_of_range_is_a_problem_at_its_place(keys: dict[str, str]) -> None:
    """As Knative would refuse it."""
    found = read(**keys)
    assert found.policy is None
    (line,) = lines(found)
    assert "autoscaling.knative.dev/" in line
