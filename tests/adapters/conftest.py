# SPDX-License-Identifier: Apache-2.0
"""What the tests of the adapters share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.adapters.machine import Machine


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine without services; whatever a test starts on it is gone afterwards."""
    machine = Machine(tmp_path)
    yield machine
    await machine.down()
