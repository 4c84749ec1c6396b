# SPDX-License-Identifier: Apache-2.0
"""The model of a replica, and the words it is described in."""

from random import Random

import pytest

from autoscaler.errors import BadInput
from simulations.replicas import ColdStart, ServiceTime, Spread


def test_service_time_is_linear_in_tokens() -> None:
    law = ServiceTime.parse("0.2s + 0.1ms/prompt-token + 20ms/token")
    assert law == ServiceTime(0.2, 0.0001, 0.02)
    assert law.of(prompt_tokens=1000, output_tokens=10) == pytest.approx(0.2 + 0.1 + 0.2)


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("2s", ServiceTime(2.0, 0.0, 0.0)),
        ("20ms/token", ServiceTime(0.0, 0.0, 0.02)),
        ("0.02 s/token+0.2s", ServiceTime(0.2, 0.0, 0.02)),
        ("1e-4s/prompt-token + 1s", ServiceTime(1.0, 0.0001, 0.0)),
    ],
)
def test_terms_may_be_left_out_and_stand_in_any_order(text: str, law: ServiceTime) -> None:
    assert ServiceTime.parse(text) == law


@pytest.mark.parametrize("text", ["", "2", "-1s", "2s + 3s", "2s/word", "2s +", "nan s", "0s"])
def test_other_service_times_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"--service-time: .*; write it like"):
        ServiceTime.parse(text)


@pytest.mark.parametrize(
    ("text", "cold_start"),
    [
        ("30s", ColdStart(Spread.CONSTANT, 30.0)),
        ("1m30s", ColdStart(Spread.CONSTANT, 90.0)),
        ("uniform(20s, 1m)", ColdStart(Spread.UNIFORM, 20.0, 60.0)),
        ("lognormal(30s,0.5)", ColdStart(Spread.LOGNORMAL, 30.0, 0.5)),
    ],
)
def test_cold_starts_are_read(text: str, cold_start: ColdStart) -> None:
    assert ColdStart.parse(text) == cold_start
    assert str(cold_start)


@pytest.mark.parametrize(
    "text",
    ["", "30", "-3s", "uniform(3s)", "uniform(9s,3s)", "lognormal(0s,1)", "lognormal(3s,x)",
     "weibull(3s,2)"],
)  # fmt: skip
def test_other_cold_starts_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--cold-start: "):
        ColdStart.parse(text)


def test_the_median_of_lognormal_starts_is_what_was_asked_for() -> None:
    chance = Random(0)
    drawn = sorted(ColdStart.parse("lognormal(30s,0.5)").draw_s(chance) for _ in range(2001))
    assert drawn[1000] == pytest.approx(30.0, rel=0.05)
