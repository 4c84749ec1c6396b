# SPDX-License-Identifier: Apache-2.0
"""The activator as it runs in earnest: its command, told its route by a real hub.

The hub is the controller's end of the channel and runs in this process, on the client's core; the
activator counts, bounds and reports as it always does. Its one endpoint has a slot for each
connection, so that slots are kept account of and no request has to wait for one.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from autoscaler.adapters.activators import ActivatorHub
from autoscaler.bench.children import Child, child
from autoscaler.bench.proxies import Proxy, Running
from autoscaler.core.routes import Endpoint, Route
from autoscaler.errors import GiveUp

_SERVICE = "bench/service"
_COMMAND = (
    "from autoscaler.app.activator import app; "
    "from autoscaler.bench.parent import end_with_parent; "
    "end_with_parent(); app()"
)
_START_S = 20.0
_LOOK_S = 0.02


def tidegate_proxy(folder: Path, *, slots: int, version: str) -> Proxy:
    """The activator; `folder` is where its channel will be."""

    @asynccontextmanager
    async def start(backend_port: int, core: int) -> AsyncIterator[Running]:
        channel = folder / "channel.sock"
        endpoint = Endpoint(id="backend", host="127.0.0.1", port=backend_port, slots=slots)
        route = Route(
            service=_SERVICE,
            host="127.0.0.1",
            port=0,
            endpoints=(endpoint,),
            state="active",
            why="measured",
        )
        hub = ActivatorHub()
        await hub.start(channel)
        try:
            hub.publish({_SERVICE: route})
            argv = [sys.executable, "-c", _COMMAND, "--channel", str(channel), "--grace-s", "1"]
            async with child("the activator", argv, core=core) as process:
                yield Running(process.pid, await _port(hub, process))
        finally:
            await hub.stop()

    return Proxy("tidegate", version, start)


async def _port(hub: ActivatorHub, process: Child) -> int:
    """The port at which the activator says that it listens for the service."""
    try:
        async with asyncio.timeout(_START_S):
            while not hub.held_by(_SERVICE):
                if process.ended:
                    raise GiveUp(f"the activator ended; its last words:\n{process.last_words()}")
                await asyncio.sleep(_LOOK_S)
    except TimeoutError as late:
        raise GiveUp(
            f"the activator took no route within {_START_S:g} s; its last words:\n"
            f"{process.last_words()}"
        ) from late
    return hub.ports(_SERVICE)[0].port
