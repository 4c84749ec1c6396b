# SPDX-License-Identifier: Apache-2.0
"""What every stage of a decision returns: a count, and the trail that led there."""

from dataclasses import dataclass
from enum import StrEnum


class Bound(StrEnum):
    """What made a count what it is: the last stage that had its way."""

    TARGET = "target"  # the targets ask for exactly this
    HOLD = "hold"  # rule D1: fewer were wished for, but not everything was read
    MIN = "min-replicas"
    MAX = "max-replicas"
    TOLERANCE = "tolerance"  # near enough to the present count
    WINDOW = "window"  # rule D3: not wished for long enough yet
    RATE_LIMIT = "rate-limit"  # as many as may come or go at once
    ACTIVATION = "activation-replicas"  # awake, and so at least these
    ASLEEP = "asleep"  # the table of sleep and wake says 0
    SWITCHED_OFF = "switched-off"  # rule D5: somebody else set 0
    COOL_OFF = "cool-off"  # rule D5: somebody else set this a moment ago
    DRY_RUN = "dry-run"
    PAUSED = "paused"


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

    `exact` is the demand in replicas before rounding up: tolerance is judged on it.
    """

    replicas: int
    exact: float
    because: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    bound_by: Bound = Bound.TARGET
