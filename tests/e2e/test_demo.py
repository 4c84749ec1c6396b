# SPDX-License-Identifier: Apache-2.0
"""`tidegate demo` in a plain pipe, as CI and newcomers without a terminal run it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import TIDEGATE, free_port


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_goes_from_zero_to_many_and_back_and_loses_nothing(tmp_path: Path) -> None:
    """One JSON object on stdout, the same in the report file, and everything it promises in it."""
    report_file = tmp_path / "demo-report.json"
    done = subprocess.run(  # noqa: S603  our own command
        [*TIDEGATE, "demo", "--json", "--report", str(report_file), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report == json.loads(report_file.read_text())
    assert report["sent"] == report["answered"] > 1000
    assert report["lost"] == 0
    for service in report["services"].values():
        path = service["replica_path"]
        assert path[0] == path[-1] == 0
        assert max(path) >= 2
        assert service["cold_start_s"]["count"] >= 2
        assert 0 < service["cold_start_s"]["p50"] <= service["cold_start_s"]["p95"]
    assert "held" in done.stderr
