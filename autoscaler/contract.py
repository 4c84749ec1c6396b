# SPDX-License-Identifier: Apache-2.0
"""What users write for one service -> `ServicePolicy`; all problems at once, and how to mend them.

The keys are those of the `tidegate.dev/` annotations, so a config file, a manifest and the
simulator's options say the same thing in the same words. docs/settings.md is generated from `KEYS`.
Nothing half-applies: one wrong key and no policy comes out (invariant I9).
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from autoscaler.core.policies import POLICIES
from autoscaler.core.policy import Idle, RateRule, RateStep, ServicePolicy, Target
from autoscaler.core.signals import Signal
from autoscaler.errors import BadInput

DURATION = "a duration such as 200ms, 90s, 10m or 1h30m"
BYTES = "bytes such as 512Ki, 64Mi or 2Gi"
RATE = "steps and settings such as 100%/15s, 4/15s; window=60s; tolerance=10%"
TARGETS = f"NAME=AMOUNT, ... with NAME one of {', '.join(Signal)} and AMOUNT per replica above 0"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

# Beyond any use, and still exact as a double and as a number on the wire.
LONGEST_S = 365 * 86400.0
LARGEST_BYTES = 2**50
TARGET_LEAST, TARGET_MOST = 1e-6, 1e12
SHOWN_MOST = 200  # characters of a wrong value that are repeated to who wrote it


class Unreadable(ValueError):
    """A value that does not fit its key; the message says what is wrong with it, where known."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the contract: how it is read, and what the documentation says of it."""

    name: str
    field: str
    read: Callable[[str], object]
    permitted: str
    meaning: str
    default: str


def duration_s(text: str) -> float:
    """Seconds from `1h30m`, `200ms`, `0s`. Raises `Unreadable`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise Unreadable
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > LONGEST_S:
        raise Unreadable("at most 365d")
    return seconds


def size_bytes(text: str) -> int:
    """Bytes from `64Mi`. Raises `Unreadable`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|)", text.strip())
    if not match:
        raise Unreadable
    size = float(match[1]) * _BYTES[match[2]]
    if size > LARGEST_BYTES:
        raise Unreadable("at most 1024Ti")
    return int(size)


def targets(text: str) -> tuple[Target, ...]:
    """Targets from `concurrency=8, tokens/s=1500`. Raises `Unreadable`."""
    found: dict[Signal, Target] = {}
    for part in _parts(text, ","):
        name, equals, amount = (piece.strip() for piece in part.partition("="))
        if name not in set(Signal):
            raise Unreadable(f"unknown signal {name!r}{_nearest(name, list(Signal))}")
        if not equals or not re.fullmatch(r"\d+(\.\d+)?", amount) or float(amount) <= 0:
            raise Unreadable(f"{name} wants an amount above 0, not {amount!r}")
        if not TARGET_LEAST <= float(amount) <= TARGET_MOST:
            raise Unreadable(f"{name} wants an amount from {TARGET_LEAST:g} to {TARGET_MOST:g}")
        if name in found:
            raise Unreadable(f"{name} stands there twice")
        found[Signal(name)] = Target(Signal(name), float(amount))
    if not found:
        raise Unreadable("no target named")
    return tuple(found.values())


def rate_rule(default: RateRule) -> Callable[[str], RateRule]:
    """Reader of `100%/15s, 4/15s; window=60s; tolerance=10%`; what is not said stays `default`."""

    def read(text: str) -> RateRule:
        steps, window_s, tolerance = default.steps, default.window_s, default.tolerance_ratio
        for section in _parts(text, ";"):
            name, equals, value = (piece.strip() for piece in section.partition("="))
            if not equals:
                steps = tuple(_rate_step(step) for step in _parts(section, ","))
            elif name == "window":
                window_s = duration_s(value)
                if window_s > 3600:
                    raise Unreadable("window may be at most 1h")
            elif name == "tolerance":
                tolerance = _percent(value)
            else:
                raise Unreadable(
                    f"unknown setting {name!r}{_nearest(name, ['window', 'tolerance'])}"
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
        return RateStep(period_s, ratio=_percent(amount))
    if not re.fullmatch(r"[1-9]\d{0,8}", amount):
        raise Unreadable(f"{amount!r} is neither a percentage nor a count of replicas above 0")
    return RateStep(period_s, replicas=int(amount))


def _percent(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise Unreadable(f"{text!r} is not a percentage such as 10%")
    return float(text[:-1]) / 100


def _idle(text: str) -> float | Idle:
    if text in (Idle.AUTO.value, Idle.NEVER.value):
        return Idle(text)
    return duration_s(text)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text.strip()) or not least <= int(text) <= most:
            raise Unreadable
        return int(text)

    return read


def _positive_s(text: str) -> float:
    seconds = duration_s(text)
    if seconds <= 0:
        raise Unreadable
    return seconds


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise Unreadable
    return text == "true"


def _policy(text: str) -> str:
    if text not in POLICIES:
        raise Unreadable
    return text


_D = ServicePolicy()
_COUNT = "a whole number from {} to 10000"

KEYS: tuple[Key, ...] = (
    Key("policy", "policy", _policy, ", ".join(POLICIES), "how signals become a wish", "target"),
    Key("targets", "targets", targets, TARGETS,
        "how much of a signal one replica should carry; several combine by the largest wish",
        "concurrency=1"),
    Key("min-replicas", "min_replicas", _whole(0, 10000), _COUNT.format(0),
        "never fewer; above 0 the service never sleeps", "0"),
    Key("max-replicas", "max_replicas", _whole(1, 10000), _COUNT.format(1), "never more", "1"),
    Key("initial-replicas", "initial_replicas", _whole(0, 10000), _COUNT.format(0),
        "the size a new service starts with", "1"),
    Key("activation-replicas", "activation_replicas", _whole(1, 10000), _COUNT.format(1),
        "the smallest size above zero", "1"),
    Key("scale-to-zero-after", "scale_to_zero_after", _idle, f"auto, never, or {DURATION}",
        "proven idleness before sleep; auto: as long as waking takes, at least 60s", "auto"),
    Key("hold-timeout", "hold_timeout_s", _positive_s, DURATION + " above 0s",
        "how long a request waits for a replica before it is answered 504", "10m"),
    Key("hold-limit", "hold_limit", _whole(0, 1000000), "a whole number from 0 to 1000000",
        "how many requests wait at once; the next one is answered 503", "1000"),
    Key("hold-bytes", "hold_bytes", size_bytes, BYTES,
        "how much memory the waiting requests may take; the next one is answered 503", "64Mi"),
    Key("cold-start-timeout", "cold_start_timeout_s", _positive_s, DURATION + " above 0s",
        "when a start counts as failed", "30m"),
    Key("scale-up", "scale_up", rate_rule(_D.scale_up), RATE,
        "how fast the count may rise; steps as in HPA's behavior, the one that allows most counts",
        "window=0s; tolerance=10%"),
    Key("scale-down", "scale_down", rate_rule(_D.scale_down), RATE,
        "how fast the count may fall; without window: as long as a start takes, at least 60s",
        "tolerance=10%"),
    Key("signal-window", "signal_window_s", _positive_s, DURATION + " above 0s",
        "the seconds over which signals are averaged", "6s"),
    Key("dry-run", "dry_run", _flag, "true or false", "decide and say so, but do not act", "false"),
    Key("paused", "paused", _flag, "true or false", "stand still", "false"),
)  # fmt: skip

_BY_NAME = {key.name: key for key in KEYS}


def policy_from(
    values: Mapping[str, object], *, where: str = "", slots: int | None = None
) -> ServicePolicy:
    """Read one service's policy. Raises `BadInput` with a line for every problem.

    `values`: key -> text, number or bool as TOML, YAML or an annotation gives it. `where` goes
    before each key in messages. `slots`: what the platform knows of one replica's concurrency.
    """
    problems: list[str] = []
    fields: dict[str, Any] = {}
    for name, value in values.items():
        key = _BY_NAME.get(name)
        if key is None:
            problems.append(unknown_key(where + name, name, _BY_NAME))
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value).strip()
        try:
            fields[key.field] = key.read(text)
        except Unreadable as why:
            problems.append(bad_value(where + name, value, key.permitted, str(why)))
    policy = ServicePolicy(slots=slots, **fields)
    for name in ("min-replicas", "initial-replicas", "activation-replicas"):
        count = getattr(policy, _BY_NAME[name].field)
        if count > policy.max_replicas and (name in values or "max-replicas" in values):
            problems.append(
                f"{where}{name}: {count} is above max-replicas {policy.max_replicas}; "
                f"lower it or raise max-replicas"
            )
    if problems:
        raise BadInput(*problems)
    return policy


def unknown_key(shown: str, name: str, permitted: Collection[str]) -> str:
    """The line for a key that does not exist."""
    nearest = _nearest(name, permitted)
    return f"{shown}: unknown key{nearest}; permitted: {', '.join(permitted)}"


def bad_value(shown: str, value: object, permitted: str, why: str = "") -> str:
    """The line for a value out of range."""
    detail = f" ({_shortened(why)})" if why else ""
    return f"{shown}: {_shortened(repr(value))} is not permitted{detail}; permitted: {permitted}"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_MOST else text[: SHOWN_MOST - 1] + "…"


def _nearest(name: str, permitted: Collection[str]) -> str:
    close = get_close_matches(name, list(permitted), n=1, cutoff=0.6)
    return f", did you mean {str(close[0])!r}?" if close else ""


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]
