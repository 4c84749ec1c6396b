# SPDX-License-Identifier: Apache-2.0
"""How many requests there are, when engines only count them and activators see a part of them."""

from dataclasses import dataclass, field
from random import Random

import pytest

from autoscaler.adapters.kubernetes.sampled import LONGEST_S, SHORTEST_S, Mark, Sampled


@dataclass
class Traffic:
    """A service whose requests pass an activator in part; time goes on in ticks of a second."""

    sampled: Sampled = field(default_factory=Sampled)
    at_s: float = 0.0
    passed: float = 0.0
    spent_s: float = 0.0
    counted: float = 0.0

    def _mark(self) -> Mark:
        return Mark(self.at_s, self.passed, self.spent_s, self.counted, shown=self.counted)

    def seconds(
        self, seconds: float, *, passed: float = 0.0, spent_s: float = 0.0, counted: float = 0.0
    ) -> float | None:
        """So much a second, for so long; returns what is thought to be in flight then."""
        for _ in range(int(seconds)):
            self.sampled.add(self._mark())
            self.at_s += 1.0
            self.passed += passed
            self.spent_s += spent_s
            self.counted += counted
        self.sampled.add(self._mark())
        return self.sampled.in_flight


def test_the_whole_is_the_rate_of_all_times_the_time_of_some() -> None:
    """Five a second of 40 pass, each takes 0.2 s: 8 are in flight."""
    assert Traffic().seconds(60, passed=5, spent_s=1, counted=40) == pytest.approx(8)


def test_it_follows_within_half_a_minute() -> None:
    """What was before is forgotten as soon as enough has passed since."""
    traffic = Traffic()
    traffic.seconds(120, passed=5, spent_s=5, counted=40)
    assert traffic.seconds(SHORTEST_S + 5, passed=5, spent_s=1, counted=10) == pytest.approx(2)


def test_too_little_to_go_by_is_no_number() -> None:
    """A window that is short, or that shows a few of very many."""
    assert Traffic().seconds(SHORTEST_S - 1, passed=5, spent_s=1, counted=40) is None
    assert Traffic().seconds(60, passed=0.1, spent_s=1, counted=40) is None


def test_with_little_traffic_it_looks_further_back() -> None:
    """Three a minute pass: ten of them are seen within ten minutes, and no sooner."""
    traffic = Traffic()
    assert traffic.seconds(100, passed=0.05, spent_s=0.1, counted=0.5) is None
    assert traffic.seconds(150, passed=0.05, spent_s=0.1, counted=0.5) == pytest.approx(1.0)


def test_half_of_few_requests_is_enough() -> None:
    """Else a service that is hardly used keeps all of its replicas."""
    traffic = Traffic()
    assert traffic.seconds(LONGEST_S, passed=0.01, spent_s=0.02, counted=0.02) == pytest.approx(
        0.04, rel=0.4
    )


def test_nothing_at_all_for_ten_minutes_is_nothing_in_flight() -> None:
    """Sooner it may be one that takes long."""
    traffic = Traffic()
    traffic.seconds(60, passed=5, spent_s=1, counted=40)
    assert traffic.seconds(LONGEST_S / 2) is not None
    assert traffic.seconds(LONGEST_S) == 0.0
    assert Traffic().seconds(LONGEST_S / 2) is None


def test_engines_that_count_less_than_what_passed_do_not_count_all() -> None:
    """Their rate is then not that of all."""
    traffic = Traffic()
    assert traffic.seconds(60, passed=5, spent_s=1, counted=4) is None
    assert traffic.sampled.incomplete
    traffic.seconds(60, passed=5, spent_s=1, counted=5)
    assert not traffic.sampled.incomplete


def test_requests_that_pass_no_activator_at_all_have_no_known_time() -> None:
    """Clients that keep their connections to pods."""
    assert Traffic().seconds(LONGEST_S, counted=40) is None


def test_what_was_before_a_sleep_is_forgotten() -> None:
    """Over all of the time together the rate would seem to be next to nothing."""
    traffic = Traffic()
    traffic.seconds(60, passed=5, spent_s=1, counted=40)
    traffic.at_s += 600
    assert traffic.seconds(SHORTEST_S - 1, passed=5, spent_s=1, counted=40) is None
    assert traffic.seconds(5, passed=5, spent_s=1, counted=40) == pytest.approx(8)


def test_what_was_counted_before_it_forgot_is_no_part_of_it() -> None:
    """After engines told more for a while."""
    traffic = Traffic()
    traffic.seconds(60, passed=5, spent_s=1, counted=40)
    traffic.sampled.forget()
    assert traffic.seconds(10, passed=5, spent_s=1, counted=40) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_random_third_of_the_requests_tells_the_whole(seed: int) -> None:
    """Within a fifth, whatever the times are like: here half are ten times as long."""
    random, traffic, inside = Random(seed), Traffic(), 0.0
    seen = []
    for n in range(400):
        times = [random.choice((0.1, 1.0)) for _ in range(30)]
        passing = [time for time in times if random.random() < 1 / 3]
        traffic.seconds(1, passed=len(passing), spent_s=sum(passing), counted=30)
        inside += sum(times) / 400
        if n > 60:
            seen.append(traffic.sampled.in_flight or 0.0)
    assert all(abs(one - inside) < inside / 5 for one in seen)
