# SPDX-License-Identifier: Apache-2.0
"""Cuts and scales a trace before it is replayed; every step is a pure function of its arguments.

The order is fixed: one service, the window, the rate, the limit, the speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from autoscaler.errors import BadInput
from simulations.traces.arrivals import Arrival

SPREAD_S = 1.0  # copies of one request come within this time of it: the curve stays, echoes do not


@dataclass(frozen=True, slots=True)
class Shape:
    """What to replay of a trace. `from_s` and `until_s` are the trace's own seconds, half-open.

    `rate_scale`: requests per recorded request; `speedup`: recorded seconds per simulated second.
    """

    service: str | None = None
    from_s: float = 0.0
    until_s: float | None = None
    rate_scale: float = 1.0
    limit: int | None = None
    speedup: float = 1.0


def shaped(arrivals: Sequence[Arrival], shape: Shape, *, chance: Random) -> Sequence[Arrival]:
    """What is left of `arrivals`, counted from the window's start. Raises `BadInput` if nothing."""
    chosen = _of_service(arrivals, shape.service)
    last_s = chosen[-1].at_s
    chosen = [
        replace(arrival, at_s=arrival.at_s - shape.from_s)
        for arrival in chosen
        if shape.from_s <= arrival.at_s and (shape.until_s is None or arrival.at_s < shape.until_s)
    ]
    if not chosen:
        until = "the end" if shape.until_s is None else f"{shape.until_s:g} s"
        raise BadInput(
            f"--from/--until: no request from {shape.from_s:g} s until {until}; "
            f"the trace's last comes at {last_s:g} s"
        )
    chosen = _scaled(chosen, shape.rate_scale, chance)
    if not chosen:
        raise BadInput(f"--rate-scale {shape.rate_scale:g}: leaves no request; take a larger one")
    chosen = chosen[: shape.limit]
    if shape.speedup == 1.0:
        return chosen
    return [replace(arrival, at_s=arrival.at_s / shape.speedup) for arrival in chosen]


def _of_service(arrivals: Sequence[Arrival], service: str | None) -> Sequence[Arrival]:
    names = sorted({arrival.service for arrival in arrivals if arrival.service is not None})
    if service is None:
        if len(names) > 1:
            raise BadInput(
                f"--service: the trace holds {len(names)} services; name one: {', '.join(names)}"
            )
        return arrivals
    chosen = [arrival for arrival in arrivals if arrival.service == service]
    if not chosen:
        permitted = (
            f"permitted: {', '.join(names)}" if names else "leave it out: the trace names none"
        )
        raise BadInput(f"--service {service}: not in the trace; {permitted}")
    return chosen


def _scaled(arrivals: list[Arrival], scale: float, chance: Random) -> list[Arrival]:
    """Each arrival `floor(scale)` times, and once more by the chance that is left over."""
    if scale == 1.0:
        return arrivals
    whole, part = int(scale), scale - int(scale)
    scaled = []
    for arrival in arrivals:
        for copy in range(whole + (chance.random() < part)):
            late_s = chance.random() * SPREAD_S if copy else 0.0
            scaled.append(replace(arrival, at_s=arrival.at_s + late_s))
    scaled.sort(key=lambda arrival: arrival.at_s)
    return scaled
