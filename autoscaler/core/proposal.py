# SPDX-License-Identifier: Apache-2.0
"""What every stage of a decision returns: a count, and the trail that led there."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Bound(StrEnum):
    """What made a count what it is: the last stage that had its way."""

    TARGET = "target"
    HOLD = "hold"
    MIN = "min-replicas"
    MAX = "max-replicas"
    TOLERANCE = "tolerance"
    WINDOW = "window"
    RATE_LIMIT = "rate-limit"
    ACTIVATION = "activation-replicas"
    ASLEEP = "asleep"
    SWITCHED_OFF = "switched-off"
    COOL_OFF = "cool-off"
    DRY_RUN = "dry-run"
    PAUSED = "paused"


BOUNDS: Mapping[Bound, str] = {
    Bound.TARGET: "the targets ask for exactly this",
    Bound.HOLD: "fewer were asked for, but not everything was read (D1)",
    Bound.MIN: "never fewer",
    Bound.MAX: "never more",
    Bound.TOLERANCE: "what was asked for is near enough to the present count",
    Bound.WINDOW: "what was asked for has not been enough for the whole window yet (D3)",
    Bound.RATE_LIMIT: "no more may come or go at once (`scale-up`, `scale-down`)",
    Bound.ACTIVATION: "not proven idle, and so at least these",
    Bound.ASLEEP: "asleep: proven idle, or its last start failed",
    Bound.SWITCHED_OFF: "somebody else set 0, and it stays 0 (D5)",
    Bound.COOL_OFF: "somebody else set this count a moment ago (D5)",
    Bound.DRY_RUN: "it is only said what would be asked for",
    Bound.PAUSED: "the service stands still",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One signal's say: `exact` replicas before rounding up, or None where it could not be read.

    `share_ratio`: the part of the replicas that the signal speaks for; 0 where it was not read.
    """

    signal: str
    exact: float | None
    because: str
    share_ratio: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """How many replicas one service should have.

    `exact` is the demand in replicas before rounding up: tolerance is judged on it. `wished` is
    what the policy asked for; bounds and limits change `replicas` alone.
    """

    replicas: int
    exact: float
    wished: int
    because: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    bound_by: Bound = Bound.TARGET
