# SPDX-License-Identifier: Apache-2.0
"""A whole controller for a test: `tidegate run` as users start it, on ports of its own."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

SLOW_SERVER = Path(__file__).with_name("slow_server.py")
TIDEGATE = (sys.executable, "-m", "autoscaler.cli")
BOUND_S = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Running:
    """`tidegate run` with one service, and what a test asks of it."""

    folder: Path
    process: asyncio.subprocess.Process
    api: str
    url: str
    http: httpx.AsyncClient

    async def status(self) -> dict[str, Any]:
        answer = await self.http.get(f"{self.api}/v1/services/local/slow")
        answer.raise_for_status()
        status: dict[str, Any] = answer.json()
        return status

    async def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The service's status once `holds` is true of it; fails after a minute."""
        ends_s = time.monotonic() + BOUND_S
        status: dict[str, Any] = {}
        while time.monotonic() < ends_s:
            with contextlib.suppress(httpx.HTTPError):
                status = await self.status()
                if holds(status):
                    return status
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited {BOUND_S:g} s in vain: {what}; {status}; {self.log()}")

    async def until_metric(self, sample: str) -> None:
        """Wait until the controller's metrics show this sample; fails after a minute."""
        ends_s = time.monotonic() + BOUND_S
        text = ""
        while f"tidegate_{sample}\n" not in text:
            assert time.monotonic() < ends_s, f"no {sample} in {text}"
            await asyncio.sleep(0.05)
            text = (await self.http.get(f"{self.api}/metrics")).text

    async def work(self, seconds: float) -> httpx.Response:
        return await self.http.post(f"{self.url}/work?s={seconds}", content=b"{}")

    def log(self) -> str:
        return (self.folder / "controller.log").read_text()[-2000:]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs because of this controller, itself included."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), BOUND_S)


@pytest.fixture
async def running(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A controller with the service `slow`; tests set its keys by `parametrize(indirect=True)`."""
    keys: dict[str, Any] = {
        "slots": 2,
        "targets": "concurrency=2",
        "initial-replicas": 0,
        "max-replicas": 3,
        "scale-to-zero-after": "2s",
        "scale-down": "window=1s",
        "signal-window": "1s",
        "drain-grace": "10s",
    } | getattr(request, "param", {})
    command = keys.pop("command", [sys.executable, "-I", "-S", str(SLOW_SERVER)])
    listen, api = free_port(), free_port()
    lines = [
        f'[controller]\napi = "127.0.0.1:{api}"\ntick = "200ms"\nstate-dir = "state"',
        f'[activator]\ndrain = "20s"\nprocesses = {keys.pop("processes", 1)}',
        f'[services.slow]\nlisten = "127.0.0.1:{listen}"\ncommand = {json.dumps(command)}',
        *(f"{key} = {json.dumps(value)}" for key, value in keys.items()),
    ]
    config = tmp_path / "tidegate.toml"
    config.write_text("\n".join(lines))
    with (tmp_path / "controller.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*TIDEGATE, "run", "--config", str(config)),
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=dict(os.environ),
        )
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=BOUND_S, limits=limits) as http:
        controller = Running(
            tmp_path, process, f"http://127.0.0.1:{api}", f"http://127.0.0.1:{listen}", http
        )
        await controller.until(lambda status: True, "the controller starts")
        try:
            yield controller
        finally:
            await controller.stop()
