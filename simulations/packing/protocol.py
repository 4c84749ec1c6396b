# SPDX-License-Identifier: Apache-2.0
"""One run: pods come one by one, each is placed for good or dropped, until the list is through.

The protocol of the fragmentation benchmark (Weng et al., USENIX ATC 2023): the list in random
order, then pods drawn from it until it asks for 130 % of the GPUs (or pods taken out, where it asks
for more); one fixed random order of nodes settles ties; nothing leaves. What depends on chance
depends on the seed alone.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.cache import ScoreCache, Scores
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import cards_that_fit
from scheduler_extender.core.gpus import Fleet, Grant, Ints, NodeGpus
from scheduler_extender.core.outlook import Outlook, fragments
from scheduler_extender.core.score import NO_FIT, scores, winner
from scheduler_extender.core.typical import Arrivals, Typical, heaviest
from simulations.packing import rivals

INFLATION = 1.3
FULL = 100  # per cent arrived: where runs are compared

RANKINGS: Mapping[str, Callable[[Fleet], Scores]] = {
    "tidegate": lambda fleet: scores,
    "fgd": lambda fleet: rivals.fgd,
    "bestfit": lambda fleet: rivals.bestfit,
    "dotprod": lambda fleet: rivals.dotprod,
    "gpupacking": lambda fleet: rivals.gpupacking,
    "gpuclustering": rivals.GpuClustering,
    "random": lambda fleet: rivals.random,
}


@dataclass(frozen=True, slots=True)
class Moment:
    """The cluster while `arrived_percent` of its GPUs had been asked for, rounded."""

    arrived_percent: int
    allocated_percent: float  # the mean over the arrivals of this per cent
    fragments_percent: float  # after the last of them; of all GPUs


@dataclass(frozen=True, slots=True)
class Run:
    """What one seed came to."""

    seed: int
    curve: tuple[Moment, ...]
    placed: int
    dropped: int
    calls: int = 0  # of the extender's verbs; 0: its core was asked in this process

    def at(self, arrived_percent: int) -> Moment:
        """The last moment that is not later than `arrived_percent`."""
        return max(
            (m for m in self.curve if m.arrived_percent <= arrived_percent),
            key=lambda moment: moment.arrived_percent,
        )


def workload(pods: Sequence[Demand], *, capacity_milli: int, chance: Random) -> list[Demand]:
    """The pods of a run in the order in which they come."""
    target = INFLATION * capacity_milli
    arrivals = list(pods)
    chance.shuffle(arrivals)
    asked = sum(pod.gpu_milli for pod in arrivals)
    while asked > target:
        asked -= arrivals.pop(chance.randrange(len(arrivals))).gpu_milli
    while True:
        pod = chance.choice(pods)
        # One card of it decides, however many it asks for: so the published runs stopped.
        if asked + pod.gpu_milli // max(pod.cards, 1) > target:
            return arrivals
        asked += pod.gpu_milli
        arrivals.append(pod)


Choose = Callable[[Demand], Grant | None]


class Packing:
    """One run of one policy, whose `arrivals` are to be placed one after the other."""

    def __init__(
        self, nodes: Sequence[NodeGpus], pods: Sequence[Demand], *, policy: str, seed: int
    ) -> None:
        self.seed = seed
        self._chance = Random(f"{seed}/packing")  # noqa: S311  meant to be repeatable
        self._policy = policy
        self.fleet = Fleet(nodes)
        order = list(range(self.fleet.rows))
        self._chance.shuffle(order)
        self.fleet.set_order(np.array(order))
        self._rows = self.fleet.all_rows()
        self.capacity = int(self.fleet.milli_total.sum())
        self.arrivals = workload(pods, capacity_milli=self.capacity, chance=self._chance)
        # The paper judges by the shapes of the list itself, models included.
        shapes, weights = heaviest(Counter(_without_ram(pod) for pod in pods), most=None)
        known = Typical(shapes, weights)
        self._judge = Outlook(self.fleet, known)
        self._learned = Arrivals()
        typical = Typical() if policy == "tidegate" else known
        self._ranking = RANKINGS[policy](self.fleet)
        self._cache = ScoreCache(self.fleet, typical, by=self._ranking)

    def place(self, pod: Demand, choose: Choose) -> bool:
        """Place one pod where `choose` says, or drop it."""
        grant = choose(pod)
        if grant is None:
            return False
        self.fleet.take(grant)
        if isinstance(self._ranking, rivals.GpuClustering):
            self._ranking.placed(pod, self.fleet.row_of[grant.node])
        return True

    def choose(self, pod: Demand) -> Grant | None:
        """What the policy gives the pod; None where it fits nowhere."""
        if self._policy == "tidegate":
            self._learned.observe([pod])
            news = self._learned.news()
            if news is not None:
                self._cache.expect(news)
        found = self._cache.scores(pod, self._rows)
        row = self._any(found) if self._policy == "random" else winner(found, self.fleet.order())
        if row is None:
            return None
        return self.fleet.grant(row, cards=self._cards(pod, row), demand=pod)

    def fragments_milli(self) -> float:
        return float(fragments(self._judge, self.fleet.all_rows()).sum())

    def _any(self, found: Ints) -> int | None:
        fit = np.flatnonzero(found != NO_FIT)
        return int(self._chance.choice(fit)) if len(fit) else None

    def _cards(self, pod: Demand, row: int) -> tuple[int, ...]:
        if self._policy == "fgd" and pod.cards == 1 and not pod.exclusive:
            return rivals.fgd_card(self.fleet, pod, row, self._judge)
        if self._policy == "random":
            ok = np.flatnonzero(cards_that_fit(self.fleet, pod, np.array([row]))[0])
            return tuple(sorted(self._chance.sample([int(card) for card in ok], pod.cards)))
        return choose_cards(self.fleet, pod, row) or ()


def run(nodes: Sequence[NodeGpus], pods: Sequence[Demand], *, policy: str, seed: int) -> Run:
    """Run one seed to the end of its list."""
    packing = Packing(nodes, pods, policy=policy, seed=seed)
    return play(packing, packing.choose)


def play(packing: Packing, choose: Choose) -> Run:
    """Let all pods come; `choose` says what each gets."""
    placed = arrived = allocated = 0
    shares: dict[int, list[float]] = {}
    left: dict[int, float] = {}
    now = 0
    for pod in packing.arrivals:
        arrived += pod.gpu_milli
        percent = round(100 * arrived / packing.capacity)
        if percent != now:
            left[now] = packing.fragments_milli()
            now = percent
        if packing.place(pod, choose):
            placed += 1
            allocated += pod.gpu_milli
        shares.setdefault(percent, []).append(100 * allocated / packing.capacity)
    left[now] = packing.fragments_milli()
    curve = tuple(
        Moment(percent, sum(part) / len(part), 100 * left[percent] / packing.capacity)
        for percent, part in sorted(shares.items())
    )
    return Run(packing.seed, curve, placed, len(packing.arrivals) - placed)


def _without_ram(pod: Demand) -> Demand:
    return Demand(
        cards=pod.cards,
        whole=pod.whole,
        milli=pod.milli,
        models=pod.models,
        cpu_milli=pod.cpu_milli,
    )
