# SPDX-License-Identifier: Apache-2.0
"""The calendar of a service: `schedule` read from text, and which bounds are in force at a time.

Each window in force has bounds of its own, where it names none the service's; of several windows
the largest min and the largest max count. So the order in which windows are written means nothing,
and min never crosses max. A window may end on the day after it begins.

When clocks change, the longest reading of a window counts: one that begins or ends in an hour that
comes twice has both, one that touches an hour that is skipped is no shorter for it.
"""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from autoscaler.core.policy import ServicePolicy, Window
from autoscaler.text import Unreadable, nearest, parts, whole

PERMITTED = (
    "DAYS HH:MM-HH:MM ZONE min=N max=N; ... such as "
    "Mon-Fri 08:00-20:00 Europe/Berlin min=2; Sat,Sun 22:00-06:00 UTC max=3"
)
MOST_WINDOWS = 50
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_S = 86400
_COUNTS = {"min": whole(0, 10000), "max": whole(1, 10000)}


def read(text: str) -> tuple[Window, ...]:
    """Windows from `Mon-Fri 08:00-20:00 Europe/Berlin min=2; …`. Raises `Unreadable`."""
    windows = tuple(_window(part) for part in parts(text, ";"))
    if len(windows) > MOST_WINDOWS:
        raise Unreadable(f"{len(windows)} windows, at most {MOST_WINDOWS}")
    return windows


def _window(text: str) -> Window:
    words = text.split()
    if len(words) < 4:
        raise Unreadable(f"{text!r} lacks days, hours, a zone or a bound")
    begins_s, ends_s = _hours(words[1])
    bounds: dict[str, int] = {}
    for word in words[3:]:
        name, _, count = word.partition("=")
        if name not in _COUNTS:
            raise Unreadable(f"{word!r} is no bound such as min=2 or max=8")
        if name in bounds:
            raise Unreadable(f"{name} stands twice in {text!r}")
        try:
            bounds[name] = _COUNTS[name](count)
        except Unreadable:
            raise Unreadable(f"{word!r} is out of range, {name} takes up to 10000") from None
    days, zone = _days(words[0]), _zone(words[2])
    return Window(days, begins_s, ends_s, zone, bounds.get("min"), bounds.get("max"))


def _days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin, end = _day(first), _day(last if dash else first)
        days |= {day % 7 for day in range(begin, end + (8 if end < begin else 1))}
    return frozenset(days)


def _day(text: str) -> int:
    if text.title() not in _DAYS:
        raise Unreadable(f"{text!r} is no day such as {', '.join(_DAYS)}")
    return _DAYS.index(text.title())


def _hours(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})", text)
    if not match:
        raise Unreadable(f"{text!r} is not of the form HH:MM-HH:MM")
    hour, minute, end_hour, end_minute = (int(number) for number in match.groups())
    begins_s, ends_s = hour * 3600 + minute * 60, end_hour * 3600 + end_minute * 60
    if max(minute, end_minute) > 59 or begins_s >= _DAY_S or ends_s > _DAY_S:
        raise Unreadable(f"{text!r} has no such time of day, from 00:00 to 24:00")
    if begins_s == ends_s:
        raise Unreadable(f"{text!r} is empty; the whole day is 00:00-24:00")
    return begins_s, ends_s if ends_s > begins_s else ends_s + _DAY_S


def _zone(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+/-]{0,99}", text):
        raise Unreadable(f"{text!r} is no time zone such as Europe/Berlin or UTC")
    try:
        ZoneInfo(text)
    except (LookupError, ValueError, OSError):  # OSError: a folder of zones, as in "Europe"
        near = nearest(text, sorted(available_timezones()))
        raise Unreadable(f"there is no time zone {text!r}{near}") from None
    return text


def bounds_of(window: Window, policy: ServicePolicy) -> tuple[int, int]:
    """The least and the most replicas while only this window is in force."""
    least, most = window.min_replicas, window.max_replicas
    return (
        policy.min_replicas if least is None else least,
        policy.max_replicas if most is None else most,
    )


def bounds_at(policy: ServicePolicy, now: datetime) -> ServicePolicy:
    """The policy with the bounds that are in force at `now`, which knows its zone."""
    in_force = [
        bounds_of(window, policy)
        for window in policy.schedule
        if any(begin <= now < end for begin, end in _spans(window, now, days=range(-2, 2)))
    ]
    if not in_force:
        return policy
    least, most = max(low for low, _ in in_force), max(high for _, high in in_force)
    return replace(
        policy,
        min_replicas=least,
        max_replicas=most,
        initial_replicas=min(policy.initial_replicas, most),
        activation_replicas=min(policy.activation_replicas, most),
    )


def next_edge(policy: ServicePolicy, now: datetime) -> datetime | None:
    """When a window next begins or ends, after `now`; None without a schedule."""
    days = range(-2, 9)  # a window of one weekday comes again after a week
    spans = (span for window in policy.schedule for span in _spans(window, now, days=days))
    return min((edge for span in spans for edge in span if edge > now), default=None)


def _spans(window: Window, now: datetime, *, days: range) -> list[tuple[datetime, datetime]]:
    """When the window is in force, in UTC, for those of `days` around today on which it begins."""
    if now.tzinfo is None:
        raise ValueError("a time without a zone says nothing about a schedule")
    zone = ZoneInfo(window.zone)
    today = now.astimezone(zone).date()
    begun = (today + timedelta(days=ahead) for ahead in days)
    return [
        (min(_instants(day, window.begins_s, zone)), max(_instants(day, window.ends_s, zone)))
        for day in begun
        if day.weekday() in window.days
    ]


def _instants(day: date, clock_s: int, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Both readings of what the clocks show; they differ only around a change of clocks."""
    days, seconds = divmod(clock_s, _DAY_S)
    wall = datetime.combine(day + timedelta(days=days), datetime.min.time())
    wall = (wall + timedelta(seconds=seconds)).replace(tzinfo=zone)
    return wall.astimezone(UTC), wall.replace(fold=1).astimezone(UTC)
