# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus for all tests of this folder: it looks at its targets five seconds late."""

from collections.abc import Iterator
from itertools import count

import pytest

from autoscaler.core.signals import ServiceId
from tests.adapters.prometheus.between import Between
from tests.adapters.prometheus.real import Pages, RealPrometheus, program


@pytest.fixture(scope="session")
def _pages() -> Iterator[Pages]:
    pages = Pages()
    yield pages
    pages.stop()


@pytest.fixture(scope="session")
def _prometheus(
    _pages: Pages, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealPrometheus]:
    program()
    real = RealPrometheus(tmp_path_factory.mktemp("prometheus"), _pages)
    try:
        real.start()
        yield real
    finally:
        real.stop()


@pytest.fixture
def pages(_pages: Pages) -> Iterator[Pages]:
    """What the pods say; nothing at first."""
    yield _pages
    _pages.text = ""


@pytest.fixture
def prometheus(_prometheus: RealPrometheus) -> Iterator[RealPrometheus]:
    """Runs, and scrapes `pages` every second."""
    yield _prometheus
    _prometheus.up()


_NUMBERS = count()


@pytest.fixture
def chat() -> ServiceId:
    """A service that no other test has told Prometheus of."""
    return ServiceId(f"team-{next(_NUMBERS)}", "chat")


@pytest.fixture
def between(prometheus: RealPrometheus) -> Iterator[Between]:
    """Hands on to the real Prometheus."""
    between = Between(prometheus.port)
    yield between
    between.stop()
