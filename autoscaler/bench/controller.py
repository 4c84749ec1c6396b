# SPDX-License-Identifier: Apache-2.0
"""A controller as a process of its own: `tidegate run --platform kubernetes`, and what it says.

Its memory is read from the kernel and its metrics only where a phase ends: a scrape of thousands of
services would be a part of what is measured.
"""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from autoscaler.bench.children import Child, child
from autoscaler.bench.scrape import Scrape, read
from autoscaler.errors import GiveUp

_COMMAND: Final = (
    "from autoscaler.app.run import cli; "
    "from autoscaler.bench.parent import end_with_parent; "
    "end_with_parent(); cli()"
)
LOOK_S: Final = 0.05
ANSWER_S: Final = 30.0  # a scrape of thousands of services takes its time
STOP_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Controller:
    """A running controller. `began_s`: when it was started, as `time.perf_counter` tells."""

    process: Child
    session: aiohttp.ClientSession
    url: str
    began_s: float

    async def scrape(self) -> Scrape:
        at_s = time.perf_counter()
        return read((await self._get("/metrics")).decode(), at_s=at_s)

    async def wanted(self, namespace: str, name: str) -> int | None:
        """The count that the controller holds for right; None: it does not know the service."""
        try:
            answer: dict[str, Any] = orjson.loads(
                await self._get(f"/v1/services/{namespace}/{name}")
            )
        except GiveUp:
            return None
        return int(answer["wanted"])

    async def until(self, what: str, *, path: str = "/readyz", within_s: float) -> float:
        """Wait for a good answer; returns the time since the start. Raises `GiveUp`."""
        ends_s = time.perf_counter() + within_s
        while True:
            try:
                await self._get(path)
            except (GiveUp, aiohttp.ClientError, OSError) as trouble:
                if self.process.ended or time.perf_counter() > ends_s:
                    raise GiveUp(
                        f"the controller was not {what} within {within_s:g} s ({trouble}); its "
                        f"last words:\n{self.process.last_words()}"
                    ) from None
                await asyncio.sleep(LOOK_S)
            else:
                return time.perf_counter() - self.began_s

    def rss_bytes(self) -> int:
        """Resident memory, as the kernel counts it now. Raises `GiveUp` if the process ended."""
        if self.process.ended:
            raise GiveUp(f"the controller ended; its last words:\n{self.process.last_words()}")
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kib) * 1024

    async def _get(self, path: str) -> bytes:
        async with self.session.get(f"{self.url}{path}") as response:
            body = await response.read()
            if response.status != 200:
                raise GiveUp(f"{path}: {response.status} {body[:200].decode(errors='replace')}")
            return body


@asynccontextmanager
async def controller(
    folder: Path, kubeconfig: Path, *, namespace: str
) -> AsyncIterator[Controller]:
    """Start one that looks at a single namespace, and end it with the block."""
    api, channel = _free_port(), _free_port()
    config = folder / "tidegate.toml"
    config.write_text(
        f'[controller]\napi = "127.0.0.1:{api}"\nchannel = "127.0.0.1:{channel}"\n'
        f'[kubernetes]\nnamespaces = ["{namespace}"]\n'
    )
    argv = [sys.executable, "-c", _COMMAND, "--platform", "kubernetes"]
    argv += ["--kubeconfig", str(kubeconfig), "--config", str(config)]
    place = {"POD_NAME": "tidegate-bench", "POD_NAMESPACE": namespace, "POD_IP": "127.0.0.1"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    began_s = time.perf_counter()
    async with (
        child("the controller", argv, core=None, environment=place) as process,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        try:
            yield Controller(process, session, f"http://127.0.0.1:{api}", began_s)
        finally:
            await process.terminate(within_s=STOP_S)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
