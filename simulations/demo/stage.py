# SPDX-License-Identifier: Apache-2.0
"""Sets the stage: trains the models, writes the config file, runs `tidegate run` as a child."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from autoscaler.errors import GiveUp

STARTS_WITHIN_S = 30.0
STOPS_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class DemoService:
    """One service of the demo: its model, and rows to ask about with the answers it must give."""

    name: str
    port: int
    model: Path
    rows: list[list[float]]
    answers: list[int]
    tokens_per_row: int  # how a recorded prompt's length becomes an amount of work


def train(folder: Path, ports: Mapping[str, int]) -> tuple[DemoService, ...]:
    """Train both models on data that scikit-learn ships, and save them without pickle."""
    import skops.io
    from sklearn.datasets import load_digits, load_iris
    from sklearn.svm import SVC

    services = []
    for name, load, model, tokens_per_row in (
        ("sklearn-iris", load_iris, SVC(gamma=0.1), 256),
        ("sklearn-digits", load_digits, SVC(gamma=0.001), 32),
    ):
        rows, labels = load(return_X_y=True)
        model.fit(rows, labels)
        path = folder / f"{name}.skops"
        skops.io.dump(model, path)
        services.append(
            DemoService(
                name=name,
                port=ports[name],
                model=path,
                rows=rows.tolist(),
                answers=model.predict(rows).tolist(),
                tokens_per_row=tokens_per_row,
            )
        )
    return tuple(services)


# Seconds where a production service has minutes: the recorded traffic is compressed as much.
CONFIG = """\
[controller]
api = "127.0.0.1:{api_port}"
tick = "250ms"
state-dir = "state"
"""

SERVICE = """
[services.{name}]
listen = "127.0.0.1:{port}"
models = {{ {name} = "{model}" }}
slots = 4
targets = "concurrency=6, rps=25"
initial-replicas = 0
max-replicas = 3
scale-to-zero-after = "5s"
scale-down = "window=4s"
signal-window = "3s"
hold-timeout = "60s"
"""


def write_config(folder: Path, services: tuple[DemoService, ...], *, api_port: int) -> Path:
    path = folder / "tidegate.toml"
    path.write_text(
        CONFIG.format(api_port=api_port)
        + "".join(SERVICE.format(name=s.name, port=s.port, model=s.model.name) for s in services)
    )
    return path


def free_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """The wanted port of each name where it is free, else one that the kernel picks."""
    with contextlib.ExitStack() as bound:
        ports = {}
        for name, port in wanted.items():
            listener = bound.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
        return ports


class Controller:
    """The status API of the controller that the demo started."""

    def __init__(self, api_port: int) -> None:
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{api_port}", timeout=5.0)

    async def services(self) -> dict[str, dict[str, Any]]:
        """Service name -> its status; empty before the first tick."""
        answer = await self._http.get("/v1/services")
        answer.raise_for_status()
        return {s["service"].partition("/")[2]: s for s in answer.json()["services"]}

    async def close(self) -> None:
        await self._http.aclose()


@contextlib.asynccontextmanager
async def controller_running(config: Path, *, api_port: int) -> AsyncIterator[Controller]:
    """Run `tidegate run` until the block ends; SIGTERM then, and all its processes go with it."""
    log = config.parent / "controller.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "autoscaler.cli", "run", "--config", str(config)),
            stdout=sink,
            stderr=sink,
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the controller
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    controller = Controller(api_port)
    try:
        await _listening(controller, process, log)
        yield controller
    finally:
        await controller.close()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOPS_WITHIN_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _listening(
    controller: Controller, process: asyncio.subprocess.Process, log: Path
) -> None:
    loop = asyncio.get_running_loop()
    gives_up_s = loop.time() + STARTS_WITHIN_S
    while loop.time() < gives_up_s and process.returncode is None:
        try:
            if await controller.services():
                return
        except httpx.HTTPError:
            pass  # not up yet; the bound above ends this
        await asyncio.sleep(0.1)
    raise GiveUp(f"the controller did not start; its log {log} ends:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-3:])
