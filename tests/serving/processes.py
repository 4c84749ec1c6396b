# SPDX-License-Identifier: Apache-2.0
"""Real workers for the tests: started, watched, ended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import httpx
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 30.0
ROOT = Path(__file__).parents[2]


def until(what: str, true: Callable[[], bool], *, within_s: float = WAIT_S) -> None:
    """Wait for a condition, with a bound."""
    end_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.01)


def command(*arguments: str) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-c", "from serving.cli import app; app()", *arguments]


def environment() -> dict[str, str]:
    """The environment of a worker: this source tree first."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A worker that is expected to end by itself."""
    return subprocess.run(  # noqa: S603 - our own command line
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=WAIT_S
    )


class RunningWorker:
    """A worker process that listens. `log`: its stderr so far."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                command("--port", "0", *arguments), env=environment(), stderr=stderr
            )
        until("the worker listens", lambda: "listening" in self.log or self.ended)
        found = re.search(r'"port":(\d+)', self.log)
        if found is None:
            raise AssertionError(self.log)
        self.port = int(found[1])
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def until_ready(self) -> None:
        until("the worker is ready", lambda: self.http.get("/v2/health/ready").is_success)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics, summed over the labels that are not named."""
        text = self.http.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for the end."""
        return self.process.wait(WAIT_S)

    def __enter__(self) -> "RunningWorker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.http.close()
        if not self.ended:
            self.process.kill()
        self.process.wait(WAIT_S)


@contextmanager
def ready_worker(log: Path, *arguments: str) -> Iterator[RunningWorker]:
    """A worker with all its models loaded."""
    with RunningWorker(log, *arguments) as worker:
        worker.until_ready()
        yield worker


def tensor(name: str, datatype: str, data: list[object]) -> dict[str, object]:
    """One V2 input as JSON, its shape taken from two levels of nesting."""
    inner = [len(data[0])] if data and isinstance(data[0], list) else []
    return {"name": name, "datatype": datatype, "shape": [len(data), *inner], "data": data}


def events(log: str) -> list[str]:
    """The names of the events of a log, in order."""
    return [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]
