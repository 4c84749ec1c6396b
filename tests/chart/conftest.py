# SPDX-License-Identifier: Apache-2.0
"""The real Helm, or a reason to skip."""

import os

import pytest

from tests.chart.rendering import Helm, find_helm


@pytest.fixture(scope="session")
def helm() -> Helm:
    binary = find_helm()
    if binary is None:
        why = "no helm: run `make lab`, or name a folder that has it with TIDEGATE_LAB_BIN"
        if os.environ.get("TIDEGATE_LAB_REQUIRED") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return Helm(binary)
