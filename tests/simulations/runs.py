# SPDX-License-Identifier: Apache-2.0
"""Runs and recordings for the simulator's tests, every setting filled in."""

import os
from pathlib import Path

import pytest

from autoscaler.contract import policy_from
from simulations.replay import Settings
from simulations.replicas import ColdStart, ServiceTime
from simulations.traces.arrivals import Arrival


def a_run(
    *,
    slots: int = 1,
    cold_start: str = "10s",
    service_time: str = "2s",
    tick_s: float = 1.0,
    tail_s: float = 0.0,
    slo_s: float | None = None,
    seed: int = 0,
    **policy: str,
) -> Settings:
    """One slot, 2 s a request, 10 s of cold start; at most one replica, asleep at first.

    Further words are the policy's keys, with `_` for `-`.
    """
    words = {"initial-replicas": "0"} | {k.replace("_", "-"): v for k, v in policy.items()}
    return Settings(
        policy=policy_from(words, slots=slots),
        slots=slots,
        cold_start=ColdStart.parse(cold_start),
        service_time=ServiceTime.parse(service_time),
        tick_s=tick_s,
        tail_s=tail_s,
        slo_s=slo_s,
        seed=seed,
    )


def at(*times_s: float, prompt_tokens: int = 100, output_tokens: int = 10) -> list[Arrival]:
    return [Arrival(at_s, prompt_tokens, output_tokens) for at_s in times_s]


def recorded(path: str) -> Path:
    """A recording under $TIDEGATE_DATA or ../shared/data; without it the test is skipped."""
    root = Path(__file__).resolve().parents[2]
    data = os.environ.get("TIDEGATE_DATA")
    folder = Path(data) if data else root.parent / "shared" / "data"
    if not (folder / path).is_file():
        pytest.skip(f"no recording {path} under {folder}; set TIDEGATE_DATA to where it is")
    return folder / path
