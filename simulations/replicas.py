# SPDX-License-Identifier: Apache-2.0
"""The model of one replica: slots, a cold start, and a service time that work alone decides.

A slot serves one request from its start to its end. What a batching engine does to a request when
its neighbours come and go is not in here: give the times that hold at the load you plan for.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from math import exp, log
from typing import Protocol

from autoscaler.core.replicas import Replica, ReplicaState
from autoscaler.errors import BadInput
from autoscaler.text import DURATION, Unreadable, duration_s

NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
UNITS_S = {"ms": 0.001, "s": 1.0}
TERM = re.compile(rf"({NUMBER})(ms|s)(?:/(prompt-token|token))?", re.ASCII)
DRAWN = re.compile(r"(uniform|lognormal)\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")


class Chance(Protocol):
    """What the model needs of `random.Random`."""

    def uniform(self, a: float, b: float) -> float: ...

    def lognormvariate(self, mu: float, sigma: float) -> float: ...


def seconds(text: str, *, option: str) -> float:
    """A duration in the contract's words, such as `200ms`, `30s` or `1h30m`, in seconds."""
    try:
        return duration_s(text)
    except Unreadable:
        raise BadInput(f"{option}: {text!r} is not permitted; permitted: {DURATION}") from None


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """How long one request occupies its slot, in seconds, linear in its tokens."""

    base_s: float
    s_per_prompt_token: float
    s_per_output_token: float

    def of(self, *, prompt_tokens: int, output_tokens: int) -> float:
        return self.before_output_s(prompt_tokens) + self.s_per_output_token * output_tokens

    def before_output_s(self, prompt_tokens: int) -> float:
        """How long until the first output token is begun."""
        return self.base_s + self.s_per_prompt_token * prompt_tokens

    @classmethod
    def parse(cls, text: str) -> "ServiceTime":
        """Read `0.2s + 0.1ms/prompt-token + 20ms/token`; each term at most once, in any order."""
        remedy = "write it like '0.2s + 0.1ms/prompt-token + 20ms/token'"
        terms: dict[str | None, float] = {}
        for part in text.split("+"):
            match = TERM.fullmatch(part.strip().replace(" ", ""))
            if match is None:
                raise BadInput(f"--service-time: {text!r}: {part.strip()!r} is no term; {remedy}")
            if match[3] in terms:
                raise BadInput(f"--service-time: {text!r}: {part.strip()!r} comes twice; {remedy}")
            terms[match[3]] = float(match[1]) * UNITS_S[match[2]]
        if not any(terms.values()):
            raise BadInput(f"--service-time: {text!r}: is no time at all; {remedy}")
        return cls(terms.get(None, 0.0), terms.get("prompt-token", 0.0), terms.get("token", 0.0))


class Spread(StrEnum):
    CONSTANT = "constant"
    UNIFORM = "uniform"
    LOGNORMAL = "lognormal"


@dataclass(frozen=True, slots=True)
class ColdStart:
    """From asking for a replica to its first request, in seconds.

    `constant`: always `a`. `uniform`: between `a` and `b` seconds. `lognormal`: the median is `a`
    seconds, and `b` is the standard deviation of its natural logarithm (0.5 puts p95 at 2.3 x `a`).
    """

    spread: Spread
    a: float
    b: float = 0.0

    def draw_s(self, chance: Chance) -> float:
        if self.spread is Spread.UNIFORM:
            return chance.uniform(self.a, self.b)
        if self.spread is Spread.LOGNORMAL:
            return chance.lognormvariate(log(self.a), self.b)
        return self.a

    @classmethod
    def parse(cls, text: str) -> "ColdStart":
        """Read `30s`, `uniform(20s,60s)` or `lognormal(30s,0.5)`."""
        option = "--cold-start"
        drawn = DRAWN.fullmatch(text.strip())
        if drawn is None:
            try:
                return cls(Spread.CONSTANT, duration_s(text))
            except Unreadable:
                raise BadInput(
                    f"{option}: {text!r} is not permitted; permitted: {DURATION}, "
                    "'uniform(20s,60s)' or 'lognormal(30s,0.5)'"
                ) from None
        name, first, second = drawn.groups()
        a = seconds(first, option=option)
        if name == "uniform":
            b = seconds(second, option=option)
            if b < a:
                raise BadInput(
                    f"{option}: {text!r}: {b:g} s is below {a:g} s; put the smaller first"
                )
            return cls(Spread.UNIFORM, a, b)
        if a <= 0 or not re.fullmatch(NUMBER, second):
            raise BadInput(
                f"{option}: {text!r}: needs a median above 0 and a plain number; "
                "write it like 'lognormal(30s,0.5)'"
            )
        return cls(Spread.LOGNORMAL, a, float(second))

    def __str__(self) -> str:
        if self.spread is Spread.UNIFORM:
            return f"uniform({self.a:g}s,{self.b:g}s)"
        if self.spread is Spread.LOGNORMAL:
            return f"lognormal({self.a:g}s,{self.b:g}), p95 {self.a * exp(1.645 * self.b):.3g}s"
        return f"{self.a:g}s"


@dataclass(slots=True)
class SimulatedReplica:
    """One replica's life. Times in seconds of the run; the cluster alone changes it."""

    id: str
    asked_at_s: float
    state: ReplicaState = ReplicaState.STARTING
    ready_at_s: float | None = None
    in_flight: int = 0

    def as_seen(self) -> Replica:
        return Replica(self.id, self.state, self.asked_at_s, self.ready_at_s)
