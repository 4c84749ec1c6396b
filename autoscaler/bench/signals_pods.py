# SPDX-License-Identifier: Apache-2.0
"""The pods that are scraped: one process that answers each path as another vLLM replica, cheaply.

`python -m autoscaler.bench.signals_pods` prints the port that it listens on and ends when its
standard input does. Each pod's counters grow from second to second.
"""

import asyncio
import gc
import time
from typing import Final, cast

import uvloop

from autoscaler.bench.parent import parent_ended, tell
from autoscaler.bench.signals_page import page
from autoscaler.descriptors import raise_descriptor_limit

PATH: Final = "/pods/{}/metrics"
_AHEAD: Final = 16  # pods that are looked at in one second are so many steps apart
_STEPS: Final = 400  # made when they are due; then the last is shown again

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    b"Server: uvicorn\r\nContent-Length: %d\r\n\r\n"
)


class Pages:
    """What each pod answers now."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._answers: list[bytes] = []
        for _ in range(_AHEAD + 1):
            self.make_next()

    def make_next(self) -> None:
        body = page(len(self._answers))
        self._answers.append(_HEAD % len(body) + body)

    async def make_more(self) -> None:
        """One a second, before it is asked for."""
        while len(self._answers) < _STEPS:
            await asyncio.sleep(1.0)
            self.make_next()

    def of(self, pod: int) -> bytes:
        step = int(time.monotonic() - self._began_s) + pod % _AHEAD
        return self._answers[min(step, len(self._answers) - 1)]


class Pod(asyncio.Protocol):
    """One connection to one pod after another; a scraper asks no second time before the answer."""

    transport: asyncio.Transport

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        pod = data.split(b"/", 3)[2]
        self.transport.write(self._pages.of(int(pod)))
        if b"Connection: close" in data:
            self.transport.close()


async def serve() -> None:
    """Until the parent ends."""
    raise_descriptor_limit()
    pages = Pages()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Pod(pages), "127.0.0.1", 0, backlog=4096)
    more = asyncio.create_task(pages.make_more())
    tell(server.sockets[0].getsockname()[1])
    await parent_ended()
    more.cancel()
    server.close()


if __name__ == "__main__":
    gc.disable()
    uvloop.run(serve())
