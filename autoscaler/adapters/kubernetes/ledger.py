# SPDX-License-Identifier: Apache-2.0
"""The totals of one service, whoever counts: its pods' engines where they tell, else the activator.

A total never falls; a request that arrives anywhere makes `requests` rise; what both count is
counted once, but for one request a look: rather one too many than one taken for known. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoscaler.adapters.engines.growth import Growth, Look
from autoscaler.adapters.kubernetes.sampled import Mark, Sampled
from autoscaler.core.routes import Demand
from autoscaler.core.signals import Measure, NoReading

# What a counter grew by while nobody read it for longer than this came nobody knows when: added
# at once it would look like a burst.
LONGEST_GAP_S = 5.0


@dataclass(frozen=True, slots=True)
class _Grown:
    """`first`: the sum of counters that were seen for the first time; how old it is, none knows."""

    by: float = 0.0
    first: float = 0.0


@dataclass(slots=True)
class _Engines:
    """One total of all engines together."""

    measure: Measure
    growth: Growth = field(default_factory=Growth)
    told_at_s: dict[str, float] = field(default_factory=dict)
    missed: bool = False  # a pod was not read for so long that what it counted meanwhile is lost

    def grown(self, looks: Mapping[str, Look], *, now_s: float) -> _Grown | None:
        """Since they were last asked; None where no pod tells."""
        if not looks and not self.told_at_s:
            return None
        oldest_s = now_s - LONGEST_GAP_S
        told_at_s = {pod: at_s for pod, at_s in self.told_at_s.items() if at_s >= oldest_s}
        self.missed = len(told_at_s) < len(self.told_at_s)
        self.told_at_s = told_at_s
        self.growth.forget_all_but(self.told_at_s)
        by, first, told = 0.0, 0.0, False
        for pod, look in looks.items():
            counters = look.page.values.get(self.measure)
            if counters is None or isinstance(counters, NoReading):
                continue
            told = True
            self.told_at_s[pod] = look.at_s
            grown = self.growth.add(pod, counters)
            by += grown or 0.0
            first += sum(counters.values()) if grown is None else 0.0
        return _Grown(by, first) if told else None


@dataclass(slots=True)
class Ledger:
    """`enter` what was seen, at every look; the five totals are there to be read.

    Where engines count requests and do not tell their time, `sampled` is how many there are as far
    as those tell that pass an activator; `incomplete`: more pass than the engines count.
    """

    requests: float = 0.0
    request_s: float = 0.0
    held_s: float = 0.0
    tokens: float = 0.0
    prompt_tokens: float = 0.0
    sampled: float | None = None
    incomplete: bool = False
    engines_time: bool = False  # engines told how long requests take
    _sample: Sampled = field(default_factory=Sampled)
    _passed: Mark = field(default_factory=lambda: Mark(0.0, 0.0, 0.0, 0.0, 0.0))
    _activator: Demand | None = None  # as last told
    _requests: _Engines = field(default_factory=lambda: _Engines(Measure.REQUESTS_TOTAL))
    _request_s: _Engines = field(default_factory=lambda: _Engines(Measure.REQUEST_SECONDS_TOTAL))
    _tokens: _Engines = field(default_factory=lambda: _Engines(Measure.TOKENS_TOTAL))
    _prompt_tokens: _Engines = field(default_factory=lambda: _Engines(Measure.PROMPT_TOKENS_TOTAL))
    _engines_count: bool = False
    # Requests counted at the activator, which the engines will show too.
    _to_come: float = 0.0

    def enter(self, demand: Demand | NoReading, looks: Mapping[str, Look], *, now_s: float) -> None:
        """`looks`: what the ready pods said lately, of those that said anything."""
        before = self._activator
        told = before if isinstance(demand, NoReading) else demand
        self._activator = told
        counted = self._requests.grown(looks, now_s=now_s)
        self.requests += self._arrived(before, told, counted)
        inside, began = self._request_s.grown(looks, now_s=now_s), not self.engines_time
        self.engines_time = inside is not None
        held_s, all_s = 0.0, 0.0
        if before is not None and told is not None:
            held_s = max(0.0, told.held_seconds_total - before.held_seconds_total)
            all_s = max(0.0, told.request_seconds_total - before.request_seconds_total)
        self.held_s += held_s
        if inside is None:
            self.request_s += held_s
            self.request_s += self._at_replicas(before, told, all_s - held_s, counted, now_s)
        else:  # at their first look engines show no time yet, and until then all passed us
            self.request_s += max(held_s + inside.by, all_s if began else 0.0)
            self._sample.forget()
            self.sampled, self.incomplete = None, False
        tokens = self._tokens.grown(looks, now_s=now_s)
        self.tokens += 0.0 if tokens is None else tokens.by
        prompts = self._prompt_tokens.grown(looks, now_s=now_s)
        self.prompt_tokens += 0.0 if prompts is None else prompts.by

    def _at_replicas(
        self,
        before: Demand | None,
        told: Demand | None,
        spent_s: float,
        counted: _Grown | None,
        now_s: float,
    ) -> float:
        """Request-seconds at replicas since the last look: no less than `spent_s` of ours."""
        last = self._passed
        grown = counted or _Grown()
        self._passed = now = Mark(
            now_s,
            last.passed + max(0.0, _sent_on(told) - _sent_on(before) if before else 0.0),
            last.spent_s + spent_s,
            last.counted + grown.by,
            last.shown + grown.by + grown.first,
        )
        if self._requests.missed or _tunnelled(before, told):
            self._sample.forget()
        if counted is None:
            self.sampled = None
            return spent_s
        self._sample.add(now)
        self.sampled, self.incomplete = self._sample.in_flight, self._sample.incomplete
        elapsed_s = min(now_s - last.at_s, LONGEST_GAP_S)
        return max(spent_s, (self.sampled or 0.0) * elapsed_s)

    def _arrived(self, before: Demand | None, told: Demand | None, grown: _Grown | None) -> float:
        """How many requests came since the last look."""
        outstanding = max(_outstanding(before), _outstanding(told))
        counted, self._engines_count = self._engines_count, grown is not None
        if grown is None:
            return _risen(before, told)
        arrived = 0.0
        if not counted:  # they begin to count: what the activator has, it has counted
            arrived = _risen(before, told)
            self._to_come = outstanding
        shown = grown.by + grown.first
        arrived += max(grown.by - self._to_come, 1.0 if shown else 0.0)
        if counted and not shown and _risen(before, told):
            # The engines may never count it: it is on a route or in a process of its own.
            arrived += 1.0
            self._to_come += 1.0
        # A request that left the activator in another way than to a pod is not to come any more.
        self._to_come = min(max(self._to_come - shown, 0.0), outstanding)
        return arrived


def _sent_on(demand: Demand | None) -> float:
    """How many requests ever went on to a replica, but for those whose clients left."""
    if demand is None:
        return 0.0
    return demand.in_flight + demand.answered_total + demand.broken_total


def _tunnelled(before: Demand | None, told: Demand | None) -> bool:
    """Whether any went through a connection of which only bytes are seen."""
    if told is None:
        return False
    return told.tunnels > 0 or before is None or told.tunnels_total != before.tunnels_total


def _outstanding(demand: Demand | None) -> int:
    return 0 if demand is None else demand.held + demand.in_flight


def _risen(before: Demand | None, told: Demand | None) -> float:
    """By how much the activators' count rose; one, where it is new or fell: some began anew."""
    if told is None:
        return 0.0
    if before is None or told.requests_total < before.requests_total:
        return min(1.0, told.requests_total)
    return told.requests_total - before.requests_total
