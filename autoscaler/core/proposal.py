# SPDX-License-Identifier: Apache-2.0
"""What every stage of a decision returns: a count, and the trail that led there."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One signal's say: `exact` replicas before rounding up, or None where it could not be read."""

    signal: str
    exact: float | None
    because: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """How many replicas one service should have.

    `exact` is the demand in replicas before rounding up: tolerance is judged on it.
    """

    replicas: int
    exact: float
    because: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
