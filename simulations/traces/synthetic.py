# SPDX-License-Identifier: Apache-2.0
"""Makes a trace by seeded chance: a day's curve, bursts on top of it, and gaps with nothing at all.

Arrivals are a Poisson process whose rate moves; tokens are lognormal. Same numbers, same trace.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, inf, log, pi
from random import Random

from autoscaler.errors import BadInput
from simulations.traces.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class Synthetic:
    """The numbers of a made trace. Times in seconds, rates in requests per second.

    `rate_per_s` is the mean of the day's curve, which starts at its trough; `peak_to_trough` is how
    many times the trough its peak is (1: flat). Bursts multiply the rate by `burst_factor`; an idle
    gap sets it to 0. `..._every_s` is the mean distance between two, 0 for none; `..._lasts_s` the
    mean length. `token_sigma` is the standard deviation of the logarithm of both token counts.
    """

    duration_s: float = 3600.0
    rate_per_s: float = 1.0
    period_s: float = 86_400.0
    peak_to_trough: float = 1.0
    burst_every_s: float = 0.0
    burst_lasts_s: float = 30.0
    burst_factor: float = 10.0
    idle_every_s: float = 0.0
    idle_lasts_s: float = 300.0
    prompt_tokens: float = 1000.0
    output_tokens: float = 200.0
    token_sigma: float = 0.8

    def check(self) -> None:
        """Raise `BadInput` with every number that is out of range."""
        above = (
            *("duration_s", "rate_per_s", "period_s", "burst_lasts_s", "idle_lasts_s"),
            *("prompt_tokens", "output_tokens"),
        )
        from_0 = ("burst_every_s", "idle_every_s", "token_sigma")
        from_1 = ("peak_to_trough", "burst_factor")
        problems = [self._problem(name, "above 0") for name in above if not self._of(name) > 0]
        problems += [self._problem(name, "0 or more") for name in from_0 if not self._of(name) >= 0]
        problems += [self._problem(name, "1 or more") for name in from_1 if not self._of(name) >= 1]
        problems += [
            self._problem(name, "a finite number")
            for name in (*above, *from_0, *from_1)
            if self._of(name) == inf
        ]
        if problems:
            raise BadInput(*problems)

    def _of(self, name: str) -> float:
        value: float = getattr(self, name)
        return value

    def _problem(self, name: str, permitted: str) -> str:
        option = name.removesuffix("_per_s").removesuffix("_s").replace("_", "-")
        return f"--{option}: {self._of(name):g} is not permitted; permitted: {permitted}"


def synthesize(numbers: Synthetic, chance: Random) -> Sequence[Arrival]:
    """Draw a trace. Raises `BadInput` for numbers out of range."""
    numbers.check()
    bursts = _spells(numbers, numbers.burst_every_s, numbers.burst_lasts_s, chance)
    gaps = _spells(numbers, numbers.idle_every_s, numbers.idle_lasts_s, chance)
    # Thinning: draw at the highest rate there can be, keep each by its moment's part of that rate.
    swing = (numbers.peak_to_trough - 1) / (numbers.peak_to_trough + 1)
    highest = numbers.rate_per_s * (1 + swing) * (numbers.burst_factor if bursts else 1.0)
    arrivals: list[Arrival] = []
    at_s = chance.expovariate(highest)
    while at_s < numbers.duration_s:
        day = 1 - swing * cos(2 * pi * at_s / numbers.period_s)
        rate = numbers.rate_per_s * day * (numbers.burst_factor if _within(bursts, at_s) else 1.0)
        if chance.random() * highest < rate and not _within(gaps, at_s):
            arrivals.append(
                Arrival(
                    round(at_s, 6),
                    _tokens(numbers.prompt_tokens, numbers.token_sigma, chance),
                    _tokens(numbers.output_tokens, numbers.token_sigma, chance),
                )
            )
        at_s += chance.expovariate(highest)
    return arrivals


def _within(spells: Sequence[tuple[float, float]], at_s: float) -> bool:
    nearest = bisect_right(spells, at_s, key=lambda spell: spell[0]) - 1
    return nearest >= 0 and at_s < spells[nearest][1]


def _spells(
    numbers: Synthetic, every_s: float, lasts_s: float, chance: Random
) -> Sequence[tuple[float, float]]:
    """Stretches of time, half-open; each begins after the one before has ended."""
    if every_s == 0:
        return ()
    spells = []
    at_s = chance.expovariate(1 / every_s)
    while at_s < numbers.duration_s:
        end_s = at_s + chance.expovariate(1 / lasts_s)
        spells.append((at_s, end_s))
        at_s = end_s + chance.expovariate(1 / every_s)
    return spells


def _tokens(mean: float, sigma: float, chance: Random) -> int:
    """A lognormal count with this mean, at least 1."""
    return max(1, round(chance.lognormvariate(log(mean) - sigma * sigma / 2, sigma)))
