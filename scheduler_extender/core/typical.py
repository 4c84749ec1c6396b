# SPDX-License-Identifier: Apache-2.0
"""Which shapes of pods to expect, learned from those that came. Old arrivals fade, none is kept.

A shape is what matters to fragments: cards, the part of each, CPU. Which models pods insist on is
told apart from that, as claims, so that a rare pair of shape and model does not fall off the list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from scheduler_extender.core.demand import Demand

MOST = 40  # shapes: the rest is rare, and every one costs time at every decision
COVERED_RATIO = 0.95
HALF_LIFE_PODS = 4000.0
FIRST_NEWS_PODS = 64  # fewer tell little
UNIT = 1 << 20  # weights are whole numbers of this: sums of them are exact in any order


@dataclass(frozen=True, slots=True)
class Typical:
    """What to expect. `weights` sum to about UNIT, heaviest first."""

    shapes: tuple[Demand, ...] = ()
    weights: tuple[int, ...] = ()
    claims: tuple[tuple[tuple[str, ...], float], ...] = ()  # models, part of all GPU demand
    cpu_per_gpu: float | None = None  # milli CPU for a thousandth of a GPU, in the mean

    @staticmethod
    def of(weighed: Mapping[Demand, float], *, most: int | None = MOST) -> "Typical":
        """The fewest heaviest shapes that make up the covered part; at most `most`."""
        shapes, weights = heaviest(_merged(weighed, models=False), most=most)
        gpus = sum(shape.gpu_milli * weight for shape, weight in weighed.items())
        if not gpus:
            return Typical(shapes, weights)
        claims: dict[tuple[str, ...], float] = {}
        for shape, weight in weighed.items():
            if shape.models and shape.cards:
                part = shape.gpu_milli * weight / gpus
                claims[shape.models] = claims.get(shape.models, 0.0) + part
        cpu = sum(shape.cpu_milli * weight for shape, weight in weighed.items())
        return Typical(shapes, weights, tuple(sorted(claims.items())), cpu / gpus or None)


def heaviest(
    weighed: Mapping[Demand, float], *, most: int | None
) -> tuple[tuple[Demand, ...], tuple[int, ...]]:
    """The fewest shapes that make up the covered part, heaviest first, and their weights."""
    ranked = sorted(weighed.items(), key=lambda item: -item[1])  # stable: first seen first
    enough = COVERED_RATIO * sum(weighed.values())
    chosen: list[Demand] = []
    covered = 0.0
    for shape, weight in ranked[:most]:
        if covered >= enough:
            break
        chosen.append(shape)
        covered += weight
    return tuple(chosen), tuple(round(UNIT * weighed[shape] / covered) for shape in chosen)


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


def _merged(weighed: Mapping[Demand, float], *, models: bool) -> Mapping[Demand, float]:
    merged: dict[Demand, float] = {}
    for demand, weight in weighed.items():
        shape = demand if models else replace(demand, models=())
        merged[shape] = merged.get(shape, 0.0) + weight
    return merged


class Arrivals:
    """A histogram of shapes in which an arrival counts half after `half_life_pods` more."""

    def __init__(self, half_life_pods: float = HALF_LIFE_PODS) -> None:
        self._growth = 2 ** (1 / half_life_pods)
        self._next = 1.0
        self._weights: dict[Demand, float] = {}
        self._count = 0
        self._learned_at = 0

    def observe(self, demands: Iterable[Demand]) -> None:
        """Count arrivals, oldest first."""
        for demand in demands:
            shape = as_shape(demand)
            self._weights[shape] = self._weights.get(shape, 0.0) + self._next
            # A newer arrival weighs more instead of all older ones less.
            self._next *= self._growth
            self._count += 1
            if self._next > 1e100:
                self._rescale()

    def typical(self) -> Typical:
        """What to expect now; nothing before the first arrival."""
        return Typical.of(self._weights) if self._weights else Typical()

    def news(self) -> Typical | None:
        """What to expect, when enough came since the last news: then scores are worth the cost.

        Early the picture changes fast, later slowly: news come whenever the count has trebled, and
        every half-life.
        """
        since = self._count - self._learned_at
        if self._count < FIRST_NEWS_PODS or since < min(2 * self._learned_at, HALF_LIFE_PODS):
            return None
        self._learned_at = self._count
        return self.typical()

    def _rescale(self) -> None:
        faded = {shape: weight / self._next for shape, weight in self._weights.items()}
        self._weights = {shape: weight for shape, weight in faded.items() if weight > 1e-9}
        self._next = 1.0
