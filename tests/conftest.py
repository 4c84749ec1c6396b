# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures for all tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write the golden tapes anew; review them as a diff"
    )
