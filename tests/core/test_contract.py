# SPDX-License-Identifier: Apache-2.0
"""What users write is read as they mean it, or refused with a line that says how to mend it."""

import pytest

from autoscaler.contract import KEYS, policy_from
from autoscaler.core.policy import Idle, RateRule, RateStep, ServicePolicy, Target
from autoscaler.core.signals import Signal
from autoscaler.errors import BadInput


def test_nothing_written_gives_the_defaults() -> None:
    """An empty contract is a complete policy."""
    assert policy_from({}) == ServicePolicy()


def test_the_defaults_that_the_documentation_names_are_the_defaults() -> None:
    """Each key's printed default, read as if a user had written it, changes nothing."""
    assert policy_from({key.name: key.default for key in KEYS}) == ServicePolicy()


def test_a_whole_contract_is_read() -> None:
    """TOML's own numbers and booleans are as good as text."""
    policy = policy_from(
        {
            "targets": "concurrency=8, tokens/s=1500",
            "max-replicas": 12,
            "scale-to-zero-after": "1h30m",
            "hold-bytes": "2Gi",
            "scale-up": "100%/15s, 4/15s; tolerance=5%",
            "scale-down": "window=0s",
            "dry-run": True,
        },
        slots=4,
    )
    assert policy == ServicePolicy(
        targets=(Target(Signal.CONCURRENCY, 8), Target(Signal.TOKENS_PER_S, 1500)),
        max_replicas=12,
        scale_to_zero_after=5400.0,
        hold_bytes=2 * 2**30,
        scale_up=RateRule((RateStep(15, ratio=1.0), RateStep(15, replicas=4)), 0.0, 0.05),
        scale_down=RateRule((), 0.0, 0.1),
        dry_run=True,
        slots=4,
    )
    assert policy_from({"scale-to-zero-after": "never"}).scale_to_zero_after is Idle.NEVER


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"targts": "concurrency=1"}, ["targts", "unknown key", "did you mean 'targets'?"]),
        ({"max-replicas": 0}, ["max-replicas", "0", "whole number from 1 to 10000"]),
        ({"max-replicas": 1.5}, ["max-replicas", "1.5", "whole number"]),
        ({"hold-timeout": "10"}, ["hold-timeout", "'10'", "10m"]),
        ({"hold-timeout": "0s"}, ["hold-timeout", "above 0s"]),
        ({"targets": "concurency=8"}, ["concurency", "did you mean 'concurrency'?"]),
        ({"targets": "concurrency=-1"}, ["'-1'", "above 0"]),
        ({"targets": "concurrency=1, concurrency=2"}, ["twice"]),
        ({"targets": ""}, ["no target named"]),
        ({"scale-up": "100%"}, ["lacks a period", "100%/15s"]),
        ({"scale-up": "fast/15s"}, ["'fast'", "percentage"]),
        ({"scale-up": "4/2h"}, ["2h", "30m"]),
        ({"scale-down": "windw=5s"}, ["windw", "did you mean 'window'?"]),
        ({"scale-down": "window=2h"}, ["1h"]),
        ({"dry-run": "yes"}, ["dry-run", "true or false"]),
        ({"min-replicas": 5}, ["min-replicas", "above max-replicas 1"]),
        ({"policy": "magic"}, ["policy", "'magic'", "target"]),
        ({"max-replicas": "9" * 5000}, ["max-replicas", "whole number from 1 to 10000"]),
        ({"hold-timeout": "9" * 400 + "d"}, ["hold-timeout", "at most 365d"]),
        ({"hold-timeout": "366d"}, ["hold-timeout", "at most 365d"]),
        ({"hold-bytes": "9999999999Ti"}, ["hold-bytes", "at most 1024Ti"]),
        ({"hold-bytes": "9" * 400 + "Ti"}, ["hold-bytes", "at most 1024Ti"]),
        ({"targets": "concurrency=0." + "0" * 320 + "5"}, ["from 1e-06 to 1e+12"]),
        ({"targets": "concurrency=" + "9" * 400}, ["from 1e-06 to 1e+12"]),
        ({"scale-up": "9" * 20 + "/15s"}, ["scale-up", "count of replicas"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_mistake_is_named_with_what_is_permitted(
    values: dict[str, object], words: list[str]
) -> None:
    """One line a mistake: the key, the value, what is permitted, the nearest spelling."""
    with pytest.raises(BadInput) as caught:
        policy_from(values, where="services.iris.")
    (line,) = caught.value.problems
    assert line.startswith("services.iris.")
    assert "\n" not in line
    assert len(line) < 700
    for word in words:
        assert word in line


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody has to run a tool three times to hear of three mistakes."""
    with pytest.raises(BadInput) as caught:
        policy_from({"targts": 1, "max-replicas": 0, "hold-limit": -1})
    assert len(caught.value.problems) == 3
