# SPDX-License-Identifier: Apache-2.0
"""What users write for one service -> `ServicePolicy`; all problems at once, and how to mend them.

The keys are those of the `tidegate.dev/` annotations, so a config file, a manifest and the
simulator's options say the same thing in the same words. docs/settings.md is generated from `KEYS`.
Nothing half-applies: one wrong key and no policy comes out (invariant I9).
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from autoscaler import schedule
from autoscaler.core.policies import POLICIES
from autoscaler.core.policy import Idle, InPath, RateRule, RateStep, ServicePolicy, Target
from autoscaler.core.signals import RATIOS, Query, Signal
from autoscaler.errors import BadInput
from autoscaler.text import (
    BYTES,
    DURATION,
    Unreadable,
    duration_s,
    flag,
    nearest,
    parts,
    percent_ratio,
    positive_s,
    refused,
    shortened,
    size_bytes,
    unknown,
    whole,
)
from scheduler_extender.core.annotations import WISHES
from scheduler_extender.core.demand import Policy

RATE = "steps and settings such as 100%/15s, 4/15s; window=60s; tolerance=10%"
TARGETS = (
    f"NAME=AMOUNT, ... with NAME one of {', '.join(Signal)}, prometheus(QUERY) and AMOUNT per "
    f"replica above 0; {' and '.join(sorted(RATIOS))} as 0.8 or 80%"
)
SLOTS_MOST = 100_000
TARGET_LEAST, TARGET_MOST = 1e-6, 1e12
_CLOSING = {"(": ")", "[": "]", "{": "}"}
QUERY_MOST = 1000  # characters; it stands in every decision that is told
NAME_SHOWN = 80  # characters of a signal's name that leave room to say what is wrong with it

# Planned, so that whoever reads of it elsewhere hears more than "unknown".
_LATER_POLICIES = ("slo", "kpa", "hpa")
LATER_KEYS = {"slo": "latency targets are not offered by this version; use targets"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the contract: how it is read, and what the documentation says of it."""

    name: str
    field: str
    read: Callable[[str], object]
    permitted: str
    meaning: str
    default: str


def targets(text: str) -> tuple[Target, ...]:
    """Targets from `concurrency=8, kv=80%, prometheus(sum(x))=5`. Raises `Unreadable`."""
    found: dict[Signal | Query, Target] = {}
    for part in _outside_brackets(text):
        name, amount = _named(part)
        signal = _signal(name)
        if signal in found:
            raise Unreadable(f"{_shown(signal)} stands there twice")
        found[signal] = Target(signal, _per_replica(signal, amount))
    if not found:
        raise Unreadable("no target named")
    return tuple(found.values())


def _outside_brackets(text: str) -> list[str]:
    """What commas part, but not those within brackets or quotes: a query may hold any."""
    pieces, awaited, quote, escaped = [""], "", "", False
    for letter in text:
        if quote:
            quote = "" if letter == quote and not escaped else quote
            escaped = letter == "\\" and not escaped and quote != "`"
        elif letter in "\"'`":
            quote = letter
        elif letter in _CLOSING:
            awaited += _CLOSING[letter]
        elif letter in _CLOSING.values():
            if not awaited.endswith(letter):
                raise Unreadable(f"{letter!r} closes no bracket")
            awaited = awaited[:-1]
        elif letter == "," and not awaited:
            pieces.append("")
            continue
        pieces[-1] += letter
    if quote or awaited:
        raise Unreadable(f"a {'quote' if quote else 'bracket'} is not closed")
    return [piece.strip() for piece in pieces if piece.strip()]


def _named(part: str) -> tuple[str, str]:
    """Name and amount; a query may itself hold equal signs."""
    name, _, amount = part.partition("=")
    if "(" in name:
        name, _, amount = part.rpartition("=")
        if ")" in amount:  # the last equal sign stands within the query
            name, amount = part, ""
    return name.strip(), amount.strip()


def _signal(name: str) -> Signal | Query:
    if name.startswith("prometheus(") and name.endswith(")"):
        return _query(name.removeprefix("prometheus(")[:-1].strip())
    if name not in set(Signal):
        # A long query must not hide that its first word is nearly right.
        word, bracket, _ = name.partition("(")
        near = nearest(f"{word}(QUERY)" if bracket else word, [*Signal, "prometheus(QUERY)"])
        raise Unreadable(f"unknown signal {shortened(repr(name), NAME_SHOWN)}{near}")
    return Signal(name)


def _query(promql: str) -> Query:
    if not promql:
        raise Unreadable("prometheus() holds no query")
    if len(promql) > QUERY_MOST:
        raise Unreadable(
            f"the query has {len(promql)} characters, at most {QUERY_MOST} are taken: "
            f"let a recording rule hold it"
        )
    if not promql.isprintable():
        raise Unreadable("a query stands on one line, without tabs")
    _outside_brackets(promql)  # `x)=1 prometheus(y` is no query
    return Query(promql)


def _shown(signal: Signal | Query) -> str:
    return shortened(str(signal), NAME_SHOWN)


def _per_replica(signal: Signal | Query, amount: str) -> float:
    shown = _shown(signal)
    if not amount:
        raise Unreadable(
            f"{shown} lacks its amount, as in {shown}={'80%' if signal in RATIOS else 8}"
        )
    if signal in RATIOS and amount.endswith("%"):
        if not TARGET_LEAST <= (ratio := percent_ratio(amount)) <= 1:
            raise Unreadable(f"{shown} wants a percentage above 0% and up to 100%")
        return ratio
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", amount) or float(amount) <= 0:
        raise Unreadable(f"{shown} wants an amount above 0, not {amount!r}")
    if not TARGET_LEAST <= float(amount) <= TARGET_MOST:
        raise Unreadable(f"{shown} wants an amount from {TARGET_LEAST:g} to {TARGET_MOST:g}")
    if signal in RATIOS and float(amount) > 1:
        raise Unreadable(f"{shown} wants a part of 1 or a percentage, not {amount}")
    return float(amount)


def rate_rule(default: RateRule) -> Callable[[str], RateRule]:
    """Reader of `100%/15s, 4/15s; window=60s; tolerance=10%`; what is not said stays `default`."""

    def read(text: str) -> RateRule:
        steps, window_s, tolerance = default.steps, default.window_s, default.tolerance_ratio
        for section in parts(text, ";"):
            name, equals, value = (piece.strip() for piece in section.partition("="))
            if not equals:
                steps = tuple(_rate_step(step) for step in parts(section, ","))
            elif name == "window":
                window_s = duration_s(value)
                if window_s > 3600:
                    raise Unreadable("window may be at most 1h")
            elif name == "tolerance":
                tolerance = percent_ratio(value)
            else:
                raise Unreadable(
                    f"unknown setting {name!r}{nearest(name, ['window', 'tolerance'])}"
                )
        return RateRule(steps, window_s, tolerance)

    return read


def _rate_step(text: str) -> RateStep:
    amount, slash, period = (piece.strip() for piece in text.partition("/"))
    if not slash:
        raise Unreadable(f"{text!r} lacks a period, as in {text}/15s")
    period_s = duration_s(period)
    if not 0 < period_s <= 1800:
        raise Unreadable(f"the period {period} is not within 0s and 30m")
    if amount.endswith("%"):
        return RateStep(period_s, ratio=percent_ratio(amount))
    if not re.fullmatch(r"[1-9][0-9]{0,8}", amount):
        raise Unreadable(f"{amount!r} is neither a percentage nor a count of replicas above 0")
    return RateStep(period_s, replicas=int(amount))


def _idle(text: str) -> float | Idle:
    if text in (Idle.AUTO.value, Idle.NEVER.value):
        return Idle(text)
    return duration_s(text)


def _in_path(text: str) -> InPath:
    if text not in set(InPath):
        raise Unreadable
    return InPath(text)


def _slots(text: str) -> int | None:
    return None if text == "auto" else whole(1, SLOTS_MOST)(text)


def _policy(text: str) -> str:
    if text in _LATER_POLICIES:
        raise Unreadable("not offered by this version")
    if text not in POLICIES:
        raise Unreadable
    return text


def _config_map(text: str) -> str:
    if text and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", text):
        raise Unreadable
    return text


def _wish(name: str) -> Callable[[str], object]:
    _, read = WISHES[f"tidegate.dev/{name}"]

    def reads(text: str) -> object:
        try:
            return read(text)
        except ValueError:
            raise Unreadable from None

    return reads


_D = ServicePolicy()
_COUNT = "a whole number from {} to 10000"

KEYS: tuple[Key, ...] = (
    Key("policy", "policy", _policy, ", ".join(POLICIES), "how signals become a wish", "target"),
    Key("targets", "targets", targets, TARGETS,
        "how much of a signal one replica should carry; several combine by the largest wish",
        "concurrency=1"),
    Key("min-replicas", "min_replicas", whole(0, 10000), _COUNT.format(0),
        "never fewer; above 0 the service never sleeps", "0"),
    Key("max-replicas", "max_replicas", whole(1, 10000), _COUNT.format(1), "never more", "1"),
    Key("initial-replicas", "initial_replicas", whole(0, 10000), _COUNT.format(0),
        "the size a new service starts with", "1"),
    Key("activation-replicas", "activation_replicas", whole(1, 10000), _COUNT.format(1),
        "the smallest size above zero", "1"),
    Key("scale-to-zero-after", "scale_to_zero_after", _idle, f"auto, never, or {DURATION}",
        "proven idleness before sleep; auto: as long as waking takes, at least 60s", "auto"),
    Key("hold-timeout", "hold_timeout_s", positive_s, DURATION + " above 0s",
        "how long a request waits for a replica before it is answered 504", "10m"),
    Key("hold-limit", "hold_limit", whole(0, 1000000), "a whole number from 0 to 1000000",
        "how many requests wait at once; the next one is answered 503", "1000"),
    Key("hold-bytes", "hold_bytes", size_bytes, BYTES,
        "how much memory the waiting requests may take; the next one is answered 503", "64Mi"),
    Key("cold-start-timeout", "cold_start_timeout_s", positive_s, DURATION + " above 0s",
        "when a start counts as failed", "30m"),
    Key("scale-up", "scale_up", rate_rule(_D.scale_up), RATE,
        "how fast the count may rise; steps as in HPA's behavior, the one that allows most counts",
        "window=0s; tolerance=10%"),
    Key("scale-down", "scale_down", rate_rule(_D.scale_down), RATE,
        "how fast the count may fall; without window: as long as a start takes, at least 60s",
        "tolerance=10%"),
    Key("signal-window", "signal_window_s", positive_s, DURATION + " above 0s",
        "the seconds over which signals are averaged", "6s"),
    Key("slots", "slots", _slots, f"auto, or a whole number from 1 to {SLOTS_MOST}",
        "requests that one replica serves at once; the rest waits in the activator. auto: what is "
        "known of the replica, else no limit", "auto"),
    Key("activator", "activator", _in_path, ", ".join(InPath),
        "when the activator stands in the path; auto: while it is needed; never: then nothing can "
        "hold a request, and the service never sleeps", "auto"),
    Key("schedule", "schedule", schedule.read, schedule.PERMITTED,
        "other bounds at certain hours; of several windows in force the largest min and the "
        "largest max count", ""),
    Key("dry-run", "dry_run", flag, "true or false", "decide and say so, but do not act", "false"),
    Key("paused", "paused", flag, "true or false", "stand still", "false"),
)  # fmt: skip

# On a Kubernetes object beside the keys above, each after `tidegate.dev/`.
OBJECT_KEYS: tuple[Key, ...] = (
    Key("enabled", "enabled", flag, "true or false", "whether Tidegate scales the object", "false"),
    Key("policy-from", "policy_from", _config_map, "the name of a ConfigMap beside the object",
        "reads the keys above from this ConfigMap; an annotation on the object counts for more",
        ""),
)  # fmt: skip

# On a pod or a pod template: what it asks of GPUs, read as the extender reads it.
POD_KEYS: tuple[Key, ...] = tuple(
    Key(name, name.replace("-", "_"), _wish(name), permitted, meaning, "")
    for name, permitted, meaning in (
        ("gpu-count", "a whole number from 1 to 64", "different GPUs of a node; alone: whole ones"),
        ("gpu-memory", "12Gi, 800Mi or 25%", "memory on each of them"),
        ("gpu-core", "a whole percentage from 1% to 100%", "compute on each of them"),
        ("mig-profile", "a MIG profile such as 1g.10gb", "MIG instances of this profile instead"),
        ("gpu-models", "models such as NVIDIA-L40S,Tesla-T4", "models that will do"),
        ("gpu-policy", ", ".join(Policy), "how nodes are ranked"),
        ("mesh", "letters, digits, dashes and dots", "pods of one mesh go side by side"),
        ("mesh-apart", "true or false", "pods of the mesh go to different nodes"),
    )
)

_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """What is wrong with one key, and how to mend it."""

    key: str
    text: str


def read_policy(
    values: Mapping[str, object], *, slots: int | None = None
) -> ServicePolicy | tuple[KeyProblem, ...]:
    """One service's policy, or every problem with what was written for it; never half a policy.

    `values`: key -> text, number or bool as TOML, YAML or an annotation gives it. `slots`: what the
    platform knows of one replica's concurrency, for where nobody wrote it.
    """
    problems: list[KeyProblem] = []
    fields: dict[str, Any] = {}
    for name, value in values.items():
        key = _BY_NAME.get(name)
        if key is None:
            problems.append(KeyProblem(name, LATER_KEYS.get(name) or unknown(name, _BY_NAME)))
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value).strip()
        try:
            fields[key.field] = key.read(text)
        except Unreadable as why:
            problems.append(KeyProblem(name, refused(value, key.permitted, str(why))))
    if fields.get("slots") is None:
        fields["slots"] = slots
    policy = ServicePolicy(**fields)
    problems += _contradictions(policy, values)
    return tuple(problems) or policy


def _contradictions(policy: ServicePolicy, written: Collection[str]) -> list[KeyProblem]:
    """Values that are each in range and cannot hold together."""
    most = policy.max_replicas
    problems = []
    for name in ("min-replicas", "initial-replicas", "activation-replicas"):
        count = getattr(policy, _BY_NAME[name].field)
        if count > most and (name in written or "max-replicas" in written):
            why = f"{count} is above max-replicas {most}; lower it or raise max-replicas"
            problems.append(KeyProblem(name, why))
    for number, window in enumerate(policy.schedule, start=1):
        least, most = schedule.bounds_of(window, policy)
        if least > most:
            why = f"window {number} has min {least} above max {most}; say both in that window"
            problems.append(KeyProblem("schedule", why))
    return problems


def policy_from(
    values: Mapping[str, object], *, where: str = "", slots: int | None = None
) -> ServicePolicy:
    """`read_policy`, for callers that cannot go on: raises `BadInput` with a line a problem.

    `where` goes before each key in the lines.
    """
    read = read_policy(values, slots=slots)
    if isinstance(read, ServicePolicy):
        return read
    raise BadInput(*(f"{where}{problem.key}: {problem.text}" for problem in read))
