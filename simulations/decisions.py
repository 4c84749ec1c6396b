# SPDX-License-Identifier: Apache-2.0
"""Counts what a run's loop decided, by state and by reason; numbers in a reason are left out."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.core.decide import Decision

NUMBER = re.compile(r"(?<![A-Za-z0-9_.-])\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(slots=True)
class DecisionCount:
    """Counts decisions by what they did and by their reasons, the numbers in them left out."""

    total: int = 0
    raised: int = 0
    lowered: int = 0
    refused: int = 0
    by_state: Counter[str] = field(default_factory=Counter)
    by_why: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    moves_by_reason: Counter[str] = field(default_factory=Counter)

    def add(self, decision: Decision, *, refused: bool) -> None:
        self.total += 1
        self.refused += refused
        if decision.changes:
            self.raised += decision.replicas > decision.current
            self.lowered += decision.replicas < decision.current
        self.by_state[str(decision.state)] += 1
        self.by_why[NUMBER.sub("#", decision.why)] += 1
        for reason in decision.because:
            self.by_reason[NUMBER.sub("#", reason)] += 1
            if decision.changes:
                self.moves_by_reason[NUMBER.sub("#", reason)] += 1

    def as_report(self) -> Mapping[str, object]:
        return {
            "total": self.total,
            "raised": self.raised,
            "lowered": self.lowered,
            "refused": self.refused,
            "by_state": ranked_counts(self.by_state),
            "by_why": ranked_counts(self.by_why),
            "by_reason": ranked_counts(self.by_reason),
            "moves_by_reason": ranked_counts(self.moves_by_reason),
        }


def ranked_counts(counts: Mapping[str, int]) -> Mapping[str, int]:
    """The most frequent first, ties in the order of the alphabet."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
