# SPDX-License-Identifier: Apache-2.0
"""A service's calendar: read as written, by its zone's clocks, through every change of them."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.core.policy import ServicePolicy, Window
from autoscaler.schedule import bounds_at, next_edge, read
from autoscaler.text import Unreadable

BERLIN = ZoneInfo("Europe/Berlin")
OFFICE = "Mon-Fri 08:00-20:00 Europe/Berlin min=2"


def a_policy(schedule: str, *, least: int = 0, most: int = 10) -> ServicePolicy:
    return ServicePolicy(min_replicas=least, max_replicas=most, schedule=read(schedule))


def at(text: str, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


def bounds(policy: ServicePolicy, now: datetime) -> tuple[int, int]:
    found = bounds_at(policy, now)
    return found.min_replicas, found.max_replicas


def test_windows_are_read() -> None:
    """Days, hours, zone and one or both bounds; several with a semicolon between."""
    first, second = read("Mon-Fri 08:00-20:00 Europe/Berlin min=2; sat 22:00-06:00 UTC min=1 max=3")
    assert first == Window(frozenset(range(5)), 8 * 3600, 20 * 3600, "Europe/Berlin", 2, None)
    assert second == Window(frozenset({5}), 22 * 3600, 30 * 3600, "UTC", 1, 3)
    assert read("") == ()


@pytest.mark.parametrize(
    ("days", "read_as"),
    [("Mon", {0}), ("Mon,Wed,Fri", {0, 2, 4}), ("Sat-Mon", {5, 6, 0}), ("Mon-Tue,Sun", {0, 1, 6}),
     ("Mon-Sun", set(range(7)))],
)  # fmt: skip
def test_days_are_single_listed_or_a_range_even_over_the_weekend(
    days: str, read_as: set[int]
) -> None:
    """As one would say them."""
    (window,) = read(f"{days} 00:00-24:00 UTC min=1")
    assert window.days == read_as


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mon-Fri 08:00-20:00 min=2", "lacks days, hours, a zone or a bound"),
        ("Mon-Fri 08:00-20:00 Europe/Berlin", "lacks days, hours, a zone or a bound"),
        ("Mon-Fir 08:00-20:00 UTC min=2", "'Fir' is no day"),
        ("Mon 8:00-20:00 UTC min=2", "HH:MM-HH:MM"),
        ("Mon 08:00-25:00 UTC min=2", "no such time of day"),
        ("Mon 08:61-09:00 UTC min=2", "no such time of day"),
        ("Mon 24:00-09:00 UTC min=2", "no such time of day"),
        ("Mon 08:00-08:00 UTC min=2", "empty"),
        ("Mon 08:00-09:00 Europe/Berln min=2", "did you mean 'Europe/Berlin'?"),
        ("Mon 08:00-09:00 Europe min=2", "no time zone 'Europe'"),
        ("Mon 08:00-09:00 ../../etc/passwd min=2", "no time zone such as"),
        ("Mon 08:00-09:00 UTC mim=2", "no bound such as"),
        ("Mon 08:00-09:00 UTC min=2 min=3", "stands twice"),
        ("Mon 08:00-09:00 UTC max=0", "out of range"),
        ("; ".join([OFFICE] * 51), "at most 50"),
    ],
)
def test_each_mistake_is_named(text: str, words: str) -> None:
    """The piece that is wrong, and what it should look like."""
    with pytest.raises(Unreadable, match=words.replace("?", r"\?").replace("/", "/")):
        read(text)


def test_a_window_is_in_force_from_its_first_minute_to_before_its_last() -> None:
    """08:00 is in, 20:00 is out, and Saturday is neither."""
    office = a_policy(OFFICE)
    assert bounds(office, at("2026-03-02T07:59:59")) == (0, 10)
    assert bounds(office, at("2026-03-02T08:00:00")) == (2, 10)
    assert bounds(office, at("2026-03-02T19:59:59")) == (2, 10)
    assert bounds(office, at("2026-03-02T20:00:00")) == (0, 10)
    assert bounds(office, at("2026-03-07T12:00:00")) == (0, 10)
    assert bounds(office, datetime(2026, 3, 2, 7, 30, tzinfo=UTC)) == (2, 10)  # 08:30 in Berlin


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    """Friday night lasts into Saturday, and Thursday night does not begin."""
    night = a_policy("Fri 22:00-06:00 UTC max=3")
    assert bounds(night, at("2026-03-06T23:00", ZoneInfo("UTC"))) == (0, 3)
    assert bounds(night, at("2026-03-07T05:59", ZoneInfo("UTC"))) == (0, 3)
    assert bounds(night, at("2026-03-07T06:00", ZoneInfo("UTC"))) == (0, 10)
    assert bounds(night, at("2026-03-06T05:00", ZoneInfo("UTC"))) == (0, 10)


def test_of_several_windows_the_largest_min_and_the_largest_max_count() -> None:
    """In whichever order they are written; what a window does not name is the service's."""
    windows = ["Mon 00:00-24:00 UTC min=1 max=20", "Mon 09:00-10:00 UTC min=5", OFFICE]
    noon = at("2026-03-02T09:30", ZoneInfo("UTC"))
    for order in (windows, windows[::-1]):
        assert bounds(a_policy("; ".join(order)), noon) == (5, 20)
    assert bounds(a_policy("Mon 00:00-24:00 UTC min=0", least=3), noon) == (0, 10)
    assert bounds(a_policy("Mon 00:00-24:00 UTC max=2", least=1), noon) == (1, 2)


def test_first_sizes_stay_within_a_smaller_maximum() -> None:
    """A service does not start larger than the hour permits."""
    policy = ServicePolicy(
        max_replicas=8,
        initial_replicas=4,
        activation_replicas=3,
        schedule=read("Mon 00:00-24:00 UTC max=2"),
    )
    found = bounds_at(policy, at("2026-03-02T12:00"))
    assert (found.initial_replicas, found.activation_replicas) == (2, 2)


def test_a_window_within_the_hour_that_comes_twice_is_in_force_both_times() -> None:
    """Berlin, 25 October 2026: after 02:59 CEST it is 02:00 CET."""
    policy = a_policy("Sun 02:15-02:45 Europe/Berlin min=2")
    first, second = (
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
        datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
    )
    assert bounds(policy, first) == bounds(policy, second) == (2, 10)
    between = datetime(2026, 10, 25, 1, 5, tzinfo=UTC)  # 02:05 CET: no going down in the middle
    assert bounds(policy, between) == (2, 10)
    assert bounds(policy, datetime(2026, 10, 25, 1, 46, tzinfo=UTC)) == (0, 10)


def test_a_window_that_touches_the_hour_that_is_skipped_is_not_lost() -> None:
    """Berlin, 29 March 2026: after 01:59 CET it is 03:00 CEST."""
    inside = a_policy("Sun 02:15-02:45 Europe/Berlin min=2")
    assert bounds(inside, datetime(2026, 3, 29, 1, 0, tzinfo=UTC)) == (2, 10)
    into = a_policy("Sun 02:30-05:00 Europe/Berlin min=2")
    assert bounds(into, at("2026-03-29T03:00")) == (2, 10)
    assert bounds(into, at("2026-03-29T05:00")) == (0, 10)


def test_the_next_edge_is_when_something_changes() -> None:
    """Asleep on Friday evening, the next edge is Monday morning."""
    office = a_policy(OFFICE)
    assert next_edge(office, at("2026-03-06T20:00")) == at("2026-03-09T08:00")
    assert next_edge(office, at("2026-03-09T08:00")) == at("2026-03-09T20:00")
    assert next_edge(a_policy(""), at("2026-03-09T08:00")) is None


def test_a_time_without_a_zone_is_refused() -> None:
    """It would mean another hour on every machine."""
    with pytest.raises(ValueError, match="zone"):
        bounds_at(a_policy(OFFICE), datetime(2026, 3, 2, 9))


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu",
         "America/St_Johns", "Pacific/Apia", "Africa/Casablanca"]  # fmt: skip
clock = st.integers(0, 23 * 60 + 59)


@st.composite
def schedules(draw: st.DrawFn) -> str:
    windows = []
    for _ in range(draw(st.integers(1, 3))):
        begin, end = draw(st.lists(clock, min_size=2, max_size=2, unique=True))
        days = draw(st.sampled_from(["Mon", "Sat-Mon", "Mon-Sun", "Tue,Thu", "Sun"]))
        hours = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
        least = draw(st.integers(0, 5))
        bound = draw(st.sampled_from([f"min={least}", f"max={least + 5}", f"min={least} max=9"]))
        windows.append(f"{days} {hours} {draw(st.sampled_from(ZONES))} {bound}")
    return "; ".join(windows)


moments = st.datetimes(
    datetime(1990, 1, 1),
    datetime(2100, 1, 1),
    timezones=st.sampled_from([ZoneInfo(zone) for zone in ZONES]),
)


@given(schedules(), moments, st.integers(0, 5))
def test_bounds_never_cross_and_change_at_edges_only(text: str, now: datetime, least: int) -> None:
    """Between now and the next edge nothing changes, so looking at edges is enough."""
    policy = a_policy(text, least=least)
    assert bounds(policy, now)[0] <= bounds(policy, now)[1]
    edge = next_edge(policy, now)
    assert edge is not None
    assert now < edge <= now.astimezone(UTC) + timedelta(days=8, hours=2)
    before = edge - timedelta(microseconds=1)
    middle = now.astimezone(UTC) + (edge - now.astimezone(UTC)) / 2
    assert bounds(policy, before) == bounds(policy, middle) == bounds(policy, now)


@given(schedules(), moments)
def test_where_one_looks_from_makes_no_difference(text: str, now: datetime) -> None:
    """The same instant in another zone has the same bounds."""
    policy = a_policy(text)
    elsewhere = now.astimezone(timezone(timedelta(hours=-11)))
    assert bounds(policy, now) == bounds(policy, elsewhere)
    assert next_edge(policy, now) == next_edge(policy, elsewhere)


@given(
    st.text(max_size=60) | st.from_regex(r"\A[MTF][a-z]{2} [0-9:-]{9,12} [A-Z]{3} m[a-z]+=[0-9]+")
)
def test_any_text_is_a_schedule_or_unreadable(text: str) -> None:
    """No other error reaches who reads it."""
    with suppress(Unreadable):
        read(text)
