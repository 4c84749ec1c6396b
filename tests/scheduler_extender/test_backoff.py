# SPDX-License-Identifier: Apache-2.0
"""What is in vain again is left alone for longer, within bounds, and not remembered for ever."""

from math import inf

from scheduler_extender.backoff import Backoff


def pauses_s(backoff: Backoff, times: int) -> list[float]:
    found = []
    for _ in range(times):
        backoff.again("a", now_s=100.0)
        found.append(backoff.until_s("a") - 100.0)
    return found


def test_each_pause_is_twice_the_last_up_to_the_longest() -> None:
    assert pauses_s(Backoff(first_s=30.0, most_s=100.0), 4) == [30.0, 60.0, 100.0, 100.0]


def test_the_first_times_may_be_free() -> None:
    assert pauses_s(Backoff(first_s=30.0, most_s=100.0, free=1), 3) == [-inf, 30.0, 60.0]


def test_success_and_long_times_are_new_beginnings() -> None:
    backoff = Backoff(first_s=30.0, most_s=100.0)
    pauses_s(backoff, 5)
    backoff.look(now_s=300.0)
    assert backoff.until_s("a") == 200.0
    backoff.look(now_s=301.0)
    assert pauses_s(backoff, 2) == [30.0, 60.0]
    backoff.over("a")
    assert backoff.until_s("a") == -inf


def test_it_may_be_in_vain_for_ever() -> None:
    assert pauses_s(Backoff(first_s=30.0, most_s=100.0), 5000)[-1] == 100.0
