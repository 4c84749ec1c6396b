# SPDX-License-Identifier: Apache-2.0
"""A log that cannot be written costs its lines and nothing else."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from autoscaler.logs import StderrLines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the line that does not fit nor the ones after it."""
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115  its close fails
    monkeypatch.setattr(sys, "stderr", full)
    for _ in range(3):
        StderrLines().error("the disk is full")
    with suppress(OSError):
        full.close()
    StderrLines().error("stderr is closed")
    monkeypatch.setattr(sys, "stderr", None)
    StderrLines().error("there never was one")


def test_a_line_is_written_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """As it is, with its end."""
    StderrLines().info("started")
    assert capsys.readouterr().err == "started\n"
