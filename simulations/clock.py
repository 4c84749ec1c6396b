# SPDX-License-Identifier: Apache-2.0
"""Virtual time: only the run moves it, and never backwards."""

from simulations.invariants import MONOTONE_CLOCK, InvariantViolated


class VirtualClock:
    """Seconds since the run began; the loop and the ports read it, the run alone moves it on."""

    __slots__ = ("_now_s",)

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance_to(self, at_s: float) -> None:
        if at_s < self._now_s:
            raise InvariantViolated(MONOTONE_CLOCK, f"asked to go from {self._now_s} s to {at_s} s")
        self._now_s = at_s
