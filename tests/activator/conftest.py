# SPDX-License-Identifier: Apache-2.0
"""The activator's tests run on the event loop that it runs on: uvloop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.activator.peers import Front, Peers


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    """A desk for one service, asleep: no endpoint, and a hold timeout beyond any test."""
    front = Front()
    await front.start()
    yield front
    await front.close()


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    """Makes replicas and clients, and ends them all."""
    peers = Peers()
    yield peers
    await peers.close()


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    return tmp_path / "channel.sock"
