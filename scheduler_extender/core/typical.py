# SPDX-License-Identifier: Apache-2.0
"""Which shapes of pods to expect, learned from those that came. Old arrivals fade, none is kept.

A share of a card is expected as its part of a card in thousandths, whatever its unit was: memory
counts against the memory of the card that is looked at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler_extender.core.demand import Demand

MOST = 40  # shapes: the rest is rare, and every one costs time at every decision
COVERED_RATIO = 0.95
HALF_LIFE_PODS = 4000.0


@dataclass(frozen=True, slots=True)
class Typical:
    """Expected shapes with their weights (sum 1), heaviest first."""

    shapes: tuple[Demand, ...]
    weights: tuple[float, ...]

    @staticmethod
    def of(weighed: Mapping[Demand, float], *, most: int | None = MOST) -> "Typical":
        """The fewest heaviest shapes that make up the covered part; at most `most`."""
        merged: dict[Demand, float] = {}
        for demand, weight in weighed.items():
            shape = as_shape(demand)
            merged[shape] = merged.get(shape, 0.0) + weight
        ranked = sorted(merged.items(), key=lambda item: -item[1])  # stable: first seen first
        chosen: list[tuple[Demand, float]] = []
        covered = 0.0
        for shape, weight in ranked[:most]:
            if covered >= COVERED_RATIO * sum(merged.values()):
                break
            chosen.append((shape, weight))
            covered += weight
        return Typical(
            tuple(shape for shape, _ in chosen), tuple(weight / covered for _, weight in chosen)
        )


def as_shape(demand: Demand) -> Demand:
    """The demand without what does not matter to fragments: policy, mesh, memory of the host."""
    return Demand(
        cards=demand.cards,
        whole=demand.whole,
        memory_mib=demand.memory_mib,
        memory_milli=demand.memory_milli,
        milli=demand.milli,
        profile=demand.profile,
        models=demand.models,
        cpu_milli=demand.cpu_milli,
    )


class Arrivals:
    """A histogram of shapes in which an arrival counts half after `half_life_pods` more."""

    def __init__(self, half_life_pods: float = HALF_LIFE_PODS) -> None:
        self._growth = 2 ** (1 / half_life_pods)
        self._next = 1.0
        self._weights: dict[Demand, float] = {}

    def observe(self, demands: Iterable[Demand]) -> None:
        """Count arrivals, oldest first."""
        for demand in demands:
            shape = as_shape(demand)
            self._weights[shape] = self._weights.get(shape, 0.0) + self._next
            # A newer arrival weighs more instead of all older ones less.
            self._next *= self._growth
        if self._next > 1e100:
            self._rescale()

    def typical(self) -> Typical:
        """What to expect now; no shapes before the first arrival."""
        return Typical.of(self._weights)

    def _rescale(self) -> None:
        faded = {shape: weight / self._next for shape, weight in self._weights.items()}
        self._weights = {shape: weight for shape, weight in faded.items() if weight > 1e-9}
        self._next = 1.0
