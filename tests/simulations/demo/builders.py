# SPDX-License-Identifier: Apache-2.0
"""A demo's services and their status with every field filled in."""

from pathlib import Path
from typing import Any

from simulations.demo.stage import DemoService


def a_service(name: str, *, rows: int = 100) -> DemoService:
    return DemoService(name, 8081, Path("m.skops"), [[0.0]] * rows, [0] * rows, 32)


def a_status() -> dict[str, Any]:
    return {"cold_starts": 2, "lead_time_s": {"p50": 1.23456, "p95": 2.0}}
