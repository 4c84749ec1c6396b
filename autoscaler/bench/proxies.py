# SPDX-License-Identifier: Apache-2.0
"""What stands between client and backend, one process each; here the rivals.

A rival that cannot be had here is told apart by a word (`Missing`) and its figures are null.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from autoscaler.bench.children import listening_child

_GO_SOURCE = Path(__file__).parent / "go"
_GO_ENVIRONMENT = {"GOFLAGS": "-mod=mod", "GOWORK": "off", "GOTOOLCHAIN": "local"}


@dataclass(frozen=True, slots=True)
class Running:
    """A started proxy: its process, and the port at which it takes what goes to the backend."""

    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class Proxy:
    """One contender. `start(backend_port, core)` runs it for the length of the block."""

    name: str
    version: str
    start: Callable[[int, int], AbstractAsyncContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Missing:
    """A contender that cannot be measured here, and why."""

    name: str
    why: str


def aiohttp_proxy() -> Proxy | Missing:
    """The proxy of `aiohttp_proxy.py`; missing without the extra `bench`."""
    if importlib.util.find_spec("aiohttp") is None:
        return Missing("aiohttp", "aiohttp is not installed (pip install 'tidegate[bench]')")

    @asynccontextmanager
    async def start(backend_port: int, core: int) -> AsyncIterator[Running]:
        target = f"http://127.0.0.1:{backend_port}"
        argv = [sys.executable, "-m", "autoscaler.bench.aiohttp_proxy", target]
        async with listening_child("the aiohttp proxy", argv, core=core) as (process, port):
            yield Running(process.pid, port)

    return Proxy("aiohttp", importlib.metadata.version("aiohttp"), start)


async def go_proxy(build_in: Path) -> Proxy | Missing:
    """The proxy of `go/main.go`, built into the folder `build_in`; missing without Go."""
    go = shutil.which("go")
    if go is None:
        return Missing("go", "go is not installed")
    binary = build_in / "go-proxy"
    environment = {**os.environ, **_GO_ENVIRONMENT}
    status, said = await _output(
        go, "build", "-o", str(binary), ".", folder=_GO_SOURCE, environment=environment
    )
    if status != 0:
        return Missing("go", f"`go build` failed: {said.splitlines()[-1] if said else status}")
    _, version = await _output(go, "env", "GOVERSION", folder=_GO_SOURCE, environment=environment)

    @asynccontextmanager
    async def start(backend_port: int, core: int) -> AsyncIterator[Running]:
        argv = [str(binary), "-target", f"http://127.0.0.1:{backend_port}"]
        async with listening_child(
            "the Go proxy", argv, core=core, environment={"GOMAXPROCS": "1"}
        ) as (process, port):
            yield Running(process.pid, port)

    return Proxy("go", version, start)


async def _output(*argv: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and everything said by a command that ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode(errors="replace").strip()
