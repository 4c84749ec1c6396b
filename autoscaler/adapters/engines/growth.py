# SPDX-License-Identifier: Apache-2.0
"""Totals over replicas that restart, come and go: what grew since they were last looked at. Pure.

What an engine does not total itself is made up here from one look to the next.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from autoscaler.adapters.engines.page import Page, Series
from autoscaler.adapters.engines.stillness import Moved, Stillness
from autoscaler.core.signals import Measure, NoReading

STALE_S = 3.0  # older than that, what a replica said is no reading
# Of one replica and total. Engines have a few; one that makes up new labels all the time must not
# fill our memory with them.
SERIES_MOST = 4096

_OURS: Series = frozenset({("", "made up between looks")})


@dataclass(slots=True)
class Growth:
    """A total of a service that never falls, whatever its replicas' counters do."""

    total: float = 0.0
    last: dict[str, dict[Series, float]] = field(default_factory=dict)

    def add(self, replica: str, counters: Mapping[Series, float]) -> float | None:
        """By how much a replica's counters grew, which is added to the total.

        None, and nothing is added, for a replica that is itself new to us: how much of what it
        counted is old cannot be known.
        """
        known = self.last.get(replica)
        self.last[replica] = {**(known or {}), **counters}
        if len(self.last[replica]) > SERIES_MOST:
            self.last[replica] = dict(counters)  # those that are gone would count anew
        if known is None:
            return None
        grown = 0.0
        for series, value in counters.items():
            before = known.get(series, 0.0)
            grown += value - before if value >= before else value  # it began anew
        self.total += grown
        return grown

    def forget_all_but(self, replicas: Collection[str]) -> None:
        self.last = {name: last for name, last in self.last.items() if name in replicas}


@dataclass(frozen=True, slots=True)
class Look:
    """What one replica said at one time, with the totals that its engine does not have.

    `stirred`: the sum of what stirs when it was last seen without a request. `still`: of an engine
    that has no gauge of what runs.
    """

    page: Page
    at_s: float
    stirred: float | None = None
    still: Stillness | None = None

    @property
    def working(self) -> float | NoReading | None:
        """Signs of work of an engine that has no gauge of what runs; None: others have no need."""
        if self.still is not None:
            signs = self.still.working
            return NoReading("it was asked only once yet") if signs is None else signs
        return self.page.moved if isinstance(self.page.moved, NoReading) else None


def followed_up(page: Page, *, at_s: float, before: Look | None) -> Look:
    """The next look at a replica.

    Request-seconds that an engine does not total are the level, integrated from look to look.
    Where it counts no requests, one is counted when it is empty again and something has stirred.
    """
    if before is not None and before.page.engine is not page.engine:
        before = None
    if isinstance(page.moved, Moved):
        return Look(page, at_s, still=_stilled(page.moved, at_s=at_s, before=before))
    look = Look(page, at_s, None if before is None else before.stirred)
    if page.total(Measure.IN_FLIGHT) is None:
        return look
    if Measure.REQUEST_SECONDS_TOTAL not in page.engine.samples:
        look = _with(look, Measure.REQUEST_SECONDS_TOTAL, _integrated(look, before))
    return _counted(look, before) if page.stirs else look


def _stilled(moved: Moved, *, at_s: float, before: Look | None) -> Stillness:
    known = None if before is None else before.still
    return Stillness.first(moved, at_s=at_s) if known is None else known.after(moved, at_s=at_s)


def _integrated(look: Look, before: Look | None) -> float:
    if before is None:
        return 0.0
    spent_s = before.page.total(Measure.REQUEST_SECONDS_TOTAL) or 0.0
    was, now = before.page.total(Measure.IN_FLIGHT), look.page.total(Measure.IN_FLIGHT)
    elapsed_s = look.at_s - before.at_s
    if was is None or now is None or elapsed_s > STALE_S:
        return spent_s
    return spent_s + (was + now) / 2 * elapsed_s


def _counted(look: Look, before: Look | None) -> Look:
    counted = 0.0 if before is None else before.page.total(Measure.REQUESTS_TOTAL) or 0.0
    stirred = sum(look.page.stirs.values())
    if look.page.total(Measure.IN_FLIGHT) == 0:
        counted += look.stirred is not None and stirred != look.stirred
        look = replace(look, stirred=stirred)
    return _with(look, Measure.REQUESTS_TOTAL, counted)


def _with(look: Look, measure: Measure, total: float) -> Look:
    values = {**look.page.values, measure: {_OURS: total}}
    return replace(look, page=replace(look.page, values=values))
