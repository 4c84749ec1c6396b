# SPDX-License-Identifier: Apache-2.0
"""An API server that misbehaves on request, and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler.adapters.kubernetes.api import KubeApi, Limits
from autoscaler.adapters.kubernetes.credentials import Credentials
from tests.adapters.kubernetes.fake_api_server import FakeApiServer


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer()
    await server.up()
    yield server
    await server.down()


@pytest.fixture
async def api(server: FakeApiServer, tmp_path: Path) -> AsyncIterator[KubeApi]:
    """A client with little patience."""
    limits = Limits(request_s=2.0, silence_s=2.0, page_items=2)
    async with KubeApi(Credentials(server.kubeconfig(tmp_path)), limits=limits) as api:
        yield api
