# SPDX-License-Identifier: Apache-2.0
"""Reads the samples of a metrics page: Prometheus' text format 0.0.4 and OpenMetrics 1.0. Pure.

Only lines that were asked for are decoded, so what is wrong elsewhere in a page does no harm. A
page that is cut off is refused whole: nobody knows what else it would have said (rule D1).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from autoscaler.core.signals import NoReading

NOT_METRICS: Final = "not in Prometheus' text format"

# No expression here may take more than a time in proportion to the page: a pod could be hostile.
_NUMBER = r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[iI][nN][fF](?:inity)?|[nN][aA][nN])"
_QUOTED = r'[^"\\]*(?:\\.[^"\\]*)*'
_LABEL = rf'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"({_QUOTED})"[ \t]*'
_LINE = re.compile(
    # name {labels} value timestamp # exemplar
    r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)"
    rf'(?:[ \t]*\{{([^"}}]*(?:"{_QUOTED}"[^"}}]*)*)\}}|(?=[ \t]))[ \t]*'
    rf"({_NUMBER})(?:[ \t]+({_NUMBER}))?[ \t]*(?:#.*)?\r?",
    re.ASCII,
)
_LABELS = re.compile(rf"(?:{_LABEL}(?:,{_LABEL})*(?:,[ \t]*)?|[ \t]*)")
_EACH_LABEL = re.compile(_LABEL)
_ESCAPED = re.compile(r'\\([\\n"])')
_ENDED = re.compile(r"^# EOF[ \t]*\r?\n?\Z", re.MULTILINE)
_REMEMBERED: Final = 1024  # letters of labels
_ANY_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of a page. `timestamp_s`: when it was taken, where the page says so."""

    name: str
    labels: Mapping[str, str]
    value: float
    timestamp_s: float | None = None


def samples(text: str, *, names: re.Pattern[str] | None = None) -> tuple[Sample, ...] | NoReading:
    """The samples whose whole name fits `names` (without it: all), in the order of the page.

    Empty if there is none; `NoReading` for a page that cannot be believed. Numbers are as they
    stand: NaN, infinities and negatives are for those to judge who know what they mean.
    """
    why = _unbelievable(text)
    if why is not None:
        return NoReading(why)
    ended = text.rfind("# EOF", -16) >= 0 and _ENDED.search(text) is not None
    unit_s = 1.0 if ended else 0.001  # OpenMetrics tells seconds, the older format milliseconds
    found = []
    for line in _lines_of(names or _ANY_NAME).findall(f"\n{text}"):
        match = _LINE.fullmatch(line)
        labels = None if match is None else _labels_of(match[2] or "")
        if match is None or labels is None:
            return NoReading(f"{NOT_METRICS}: {_shown(line)}")
        at_s = None if match[4] is None else float(match[4]) * unit_s
        found.append(Sample(match[1], labels, float(match[3]), at_s))
    return tuple(found)


def named(names: Iterable[str]) -> re.Pattern[str]:
    """What asks for exactly these names."""
    # Sorted, so that what names share is compared once.
    return re.compile("|".join(map(re.escape, sorted(set(names)))) or "(?!)")


def _unbelievable(text: str) -> str | None:
    """Why nothing of a page can be believed; None: its lines can be read."""
    if text.startswith(("\x1f", "\x00")):
        return f"{NOT_METRICS}: it is binary"
    if text.lstrip()[:1] == "<":
        return f"{NOT_METRICS}: it is HTML or XML"
    if text and not text.endswith("\n") and _ENDED.search(text) is None:
        return "cut off: it does not end with a newline"
    return None


@lru_cache(maxsize=64)
def _lines_of(names: re.Pattern[str]) -> re.Pattern[str]:
    """Finds the lines of these names. They begin at a newline, which is found fastest."""
    return re.compile(rf"\n[ \t]*(?:{names.pattern})(?![a-zA-Z0-9_:])[^\n]*", names.flags)


def _labels_of(body: str) -> Mapping[str, str] | None:
    """As `_labels`; what is remembered is short, so that no pod can fill our memory with it."""
    return _labels(body) if len(body) <= _REMEMBERED else _labels.__wrapped__(body)


@lru_cache(maxsize=8192)  # the same replica says the same labels a second later
def _labels(body: str) -> Mapping[str, str] | None:
    """None: broken."""
    if _LABELS.fullmatch(body) is None:
        return None
    labels = {}
    for name, value in _EACH_LABEL.findall(body):
        if name in labels:
            return None
        labels[name] = _ESCAPED.sub(_unescaped, value) if "\\" in value else value
    return MappingProxyType(labels)


def _unescaped(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]


def _shown(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 80 else f"{line[:80]}...")
