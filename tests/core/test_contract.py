# SPDX-License-Identifier: Apache-2.0
"""What users write is read as they mean it, or refused with a line that says how to mend it."""

import pytest

from autoscaler.contract import KEYS, OBJECT_KEYS, POD_KEYS, Key, policy_from
from autoscaler.core.policy import Idle, InPath, RateRule, RateStep, ServicePolicy, Target
from autoscaler.core.signals import Signal
from autoscaler.errors import BadInput
from autoscaler.text import Unreadable


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
        ({"policy": "slo"}, ["policy", "not offered by this version", "permitted: target"]),
        ({"slo": "ttft<500ms@p95"}, ["slo", "not offered by this version", "targets"]),
        ({"slots": 0}, ["slots", "0", "whole number from 1 to 100000"]),
        ({"activator": "maybe"}, ["activator", "'maybe'", "auto, always, never"]),
        ({"schedule": "Mon 08:00-09:00 UTC"}, ["schedule", "lacks", "Mon-Fri 08:00-20:00"]),
        ({"schedule": "Mon 08:00-09:00 UTC min=2"}, ["window 1", "min 2 above max 1"]),
        ({"scale-up": "9" * 400 + "%/15s"}, ["scale-up", "at most"]),
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


def test_slots_are_what_is_written_or_else_what_the_platform_knows() -> None:
    """`auto` leaves it to the platform, as writing nothing does."""
    assert policy_from({"slots": 3}, slots=8).slots == 3
    assert policy_from({"slots": "auto"}, slots=8).slots == 8
    assert policy_from({}, slots=8).slots == 8
    assert policy_from({}).slots is None


def test_a_calendar_and_a_place_in_the_path_are_part_of_the_policy() -> None:
    """Both stand in the same contract as everything else."""
    policy = policy_from({"schedule": "Sat 10:00-14:00 UTC max=3", "activator": "always"})
    assert policy.schedule[0].max_replicas == 3
    assert policy.activator is InPath.ALWAYS


@pytest.mark.parametrize("key", [*KEYS, *OBJECT_KEYS, *POD_KEYS], ids=lambda key: str(key.name))
def test_every_key_says_what_it_takes(key: Key) -> None:
    """The documentation and every refusal are made of these words."""
    assert key.meaning
    assert key.permitted
    if key.default:
        key.read(key.default)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [("gpu-memory", "12Gi", "12GB"), ("gpu-memory", "1", "0"), ("gpu-memory", "25%", "125%"),
     ("gpu-core", "30%", "130%"), ("gpu-core", "100%", "0.3"), ("gpu-count", "2", "0"),
     ("mig-profile", "1g.10gb", "small"), ("gpu-models", "A,B", "A,,B"),
     ("gpu-policy", "spread", "widely"), ("mesh", "llama", "l lama"), ("mesh-apart", "true", "1")],
)  # fmt: skip
def test_what_a_pod_asks_of_gpus_is_read_as_the_extender_reads_it(
    name: str, good: str, bad: str
) -> None:
    """`tidegate check` refuses what no node would be found for, and nothing else."""
    (key,) = (key for key in POD_KEYS if key.name == name)
    assert key.read(good)
    with pytest.raises(Unreadable):
        key.read(bad)


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody has to run a tool three times to hear of three mistakes."""
    with pytest.raises(BadInput) as caught:
        policy_from({"targts": 1, "max-replicas": 0, "hold-limit": -1})
    assert len(caught.value.problems) == 3
