# SPDX-License-Identifier: Apache-2.0
"""How the table of engines is written: which samples a quantity is made of, in one line. Pure.

a | b                 a where it is exposed, else b: an engine's newer and older names
a + b, a - b          both together
a + b?                b counts where it is exposed
a{kind="x"}           of a, the samples with this label
a[blocks size]        a times the numbers in these labels
a * 0.001             a in our unit: seconds, bytes, parts of a whole
a / b                 (times alone) a total of time, over how many times it took
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_TERM: Final = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{(?P<label>\w+)="(?P<value>[^"]*)"\})?'
    r"(?:\[(?P<times>[\w ]+)\])?"
    r"(?P<optional>\?)?"
    r"(?: \* (?P<factor>[0-9.e-]+))?"
)


@dataclass(frozen=True, slots=True)
class Line:
    """The samples of one name; of those only the ones that carry all labels of `where`.

    Each counts `factor` times its value, times the numbers in the labels `times`.
    """

    name: str
    where: Mapping[str, str]
    factor: float = 1.0
    times: tuple[str, ...] = ()
    optional: bool = False

    def __str__(self) -> str:
        where = ",".join(f'{label}="{value}"' for label, value in self.where.items())
        return f"{self.name}{{{where}}}" if where else self.name


@dataclass(frozen=True, slots=True)
class Mean:
    """A time that is only known as a total of seconds and a count."""

    total: Line
    count: Line


Way = tuple[Line, ...]  # lines that are summed
Ways = tuple[Way, ...]  # the first whose lines are exposed counts
TimeWays = tuple[Line | Mean, ...]  # a `Line` is a histogram or a summary of that name


def ways(written: str) -> Ways:
    """What a quantity is made of."""
    return tuple(_summed(way) for way in written.split(" | "))


def time_ways(written: str) -> TimeWays:
    """What tells how long something takes."""
    return tuple(_time(way) for way in written.split(" | "))


def _summed(way: str) -> Way:
    signed = re.split(r" ([+-]) ", f" + {way}")[1:]
    return tuple(
        _line(term, sign=-1.0 if sign == "-" else 1.0)
        for sign, term in zip(signed[::2], signed[1::2], strict=True)
    )


def _time(way: str) -> Line | Mean:
    total, divided, count = way.partition(" / ")
    return Mean(_line(total), _line(count)) if divided else _line(total)


def _line(term: str, *, sign: float = 1.0) -> Line:
    match = _TERM.fullmatch(term)
    if match is None:
        raise ValueError(f"{term!r} is not written as `notation.py` says")
    return Line(
        match["name"],
        {match["label"]: match["value"]} if match["label"] else {},
        factor=sign * float(match["factor"] or 1),
        times=tuple((match["times"] or "").split()),
        optional=bool(match["optional"]),
    )
