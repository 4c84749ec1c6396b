# SPDX-License-Identifier: Apache-2.0
"""The fake API server keeps the contract that the real one is held to in `tests/lab`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi
from tests.adapters.kubernetes.contract import ApiContract, Place
from tests.adapters.kubernetes.fake_api_server import FakeApiServer


@pytest.fixture
def place(api: KubeApi, server: FakeApiServer) -> Place:
    server.absent.add("leaderworkersets")

    @asynccontextmanager
    async def away() -> AsyncIterator[None]:
        await server.down()
        server.compact()
        yield
        await server.up()

    return Place(api, "here", away)


class TestFake(ApiContract):
    """Over the fake."""
