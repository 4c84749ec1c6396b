# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus and what it scrapes, for one test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.adapters.prometheus.real import Pages, RealPrometheus, program


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    """What the pods say; nothing at first."""
    pages = Pages()
    await pages.start()
    yield pages
    await pages.stop()


@pytest.fixture
async def prometheus(pages: Pages, tmp_path: Path) -> AsyncIterator[RealPrometheus]:
    """Runs, and scrapes `pages` every second."""
    program()
    real = RealPrometheus(tmp_path, pages)
    try:
        await real.start()
        yield real
    finally:
        real.stop()
