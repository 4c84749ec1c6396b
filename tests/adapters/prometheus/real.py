# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus on this machine, and the pages that it scrapes; only this file starts one."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

WITHIN_S = 30.0
SCRAPED_EVERY = "1s"


def program() -> str:
    """The program, or a skip that says why; a failure where the lab is required."""
    found = shutil.which("prometheus")
    if found is None:
        why = "no prometheus on the PATH: install Debian's package of that name"
        if os.environ.get("TIDEGATE_LAB_REQUIRED") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def until(holds: Callable[[], Any], what: str) -> None:
    """Wait for a condition; fail with what was waited for."""
    ends_s = asyncio.get_running_loop().time() + WITHIN_S
    while not holds():
        assert asyncio.get_running_loop().time() < ends_s, f"not within {WITHIN_S:g} s: {what}"
        await asyncio.sleep(0.05)


class Pages:
    """One target that has the series of all pods, as a federation or a push gateway has."""

    def __init__(self) -> None:
        self.text = ""
        self.scrapes = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        self.scrapes += 1
        return web.Response(text=self.text)


def page(lines: Iterable[tuple[str, Mapping[str, str], float]], *, at_s: float | None = None) -> str:
    """Samples in Prometheus' text format; `at_s`: the Unix time that they say they are from."""
    when = "" if at_s is None else f" {at_s * 1000:.0f}"

    def one(name: str, labels: Mapping[str, str], value: float) -> str:
        told = ",".join(f'{label}="{text}"' for label, text in labels.items())
        return f"{name}{{{told}}} {value}{when}\n"

    return "".join(one(*line) for line in lines)


class RealPrometheus:
    """The process; its data are in `folder`, so it may be stopped and started anew."""

    def __init__(self, folder: Path, pages: Pages) -> None:
        self._program = program()
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {SCRAPED_EVERY}, scrape_timeout: {SCRAPED_EVERY}}}\n"
            "scrape_configs:\n"
            "- job_name: pods\n"
            "  honor_labels: true\n"
            f"  static_configs: [{{targets: ['127.0.0.1:{pages.port}']}}]\n"
        )

    async def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own words
                [
                    self._program,
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        ends_s = asyncio.get_running_loop().time() + WITHIN_S
        while not await self._ready():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert asyncio.get_running_loop().time() < ends_s, "Prometheus does not become ready"
            await asyncio.sleep(0.05)

    async def _ready(self) -> bool:
        try:
            async with ClientSession() as http, http.get(f"{self.url}/-/ready") as answer:
                return answer.status == HTTPStatus.OK
        except OSError:
            return False

    async def queries_answered(self) -> float:
        """How many queries it has answered so far, by its own count."""
        async with ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        mine = 'handler="/api/v1/query"'
        counts = (one for one in lines if one.startswith("prometheus_http_requests_total{"))
        return sum(float(one.rsplit(" ", 1)[1]) for one in counts if mine in one)

    def freeze(self) -> None:
        """It accepts connections and says nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
