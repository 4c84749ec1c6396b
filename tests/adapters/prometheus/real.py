# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus on this machine, and the pages that it scrapes; only this file starts one."""

import asyncio
import http.client
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

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


class Pages:
    """One target that has the series of all pods, as a federation or a push gateway has."""

    def __init__(self) -> None:
        self.text = ""
        self.scrapes = 0
        pages = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pages.scrapes += 1
                body = pages.text.encode()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Nothing: a scrape a second is no news."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="pages")
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def page(
    lines: Iterable[tuple[str, Mapping[str, str], float]], *, at_s: float | None = None
) -> str:
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

    def start(self) -> None:
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
        ends_s = time.monotonic() + WITHIN_S
        while self._get("/-/ready") is None:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < ends_s, "Prometheus does not become ready"
            time.sleep(0.05)

    def _get(self, path: str) -> str | None:
        """What it answers; None: nothing good."""
        there = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        try:
            there.request("GET", path)
            answer = there.getresponse()
            text = answer.read().decode()
        except OSError:
            return None
        finally:
            there.close()
        return text if answer.status == HTTPStatus.OK else None

    def queries_answered(self) -> float:
        """How many queries it has answered so far, by its own count."""
        counts = (
            line
            for line in (self._get("/metrics") or "").splitlines()
            if line.startswith("prometheus_http_requests_total{")
            and 'handler="/api/v1/query"' in line
        )
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts)

    def freeze(self) -> None:
        """It accepts connections and says nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def up(self) -> None:
        """Running again, whatever a test did to it."""
        if self._process is None:
            self.start()
        self.thaw()

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


async def wait_for(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail with what was waited for."""
    ends_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < ends_s, f"not within {WITHIN_S:g} s: {what}"
        await asyncio.sleep(0.05)
