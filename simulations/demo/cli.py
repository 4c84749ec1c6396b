# SPDX-License-Identifier: Apache-2.0
"""The command `tidegate demo`."""

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from autoscaler.errors import BadInput, GiveUp
from simulations.demo import report as reports
from simulations.demo import stage, traffic
from simulations.demo.traffic import Tally
from simulations.demo.view import LOOKS_EVERY_S, Watch

ASLEEP_WITHIN_S = 60.0
API_PORT_AFTER = 9  # the first service's port

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def demo(
    hold_open: Annotated[
        bool, typer.Option(help="Keep the sleeping services until Ctrl-C, to be asked by hand.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="An Azure LLM trace (csv) to replay, instead of the one it finds."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the synthetic trace, where none is found.")] = 0,
    port: Annotated[
        int,
        typer.Option(
            help="The first service's port; the next ones follow if free.",
            min=1,
            max=65535 - API_PORT_AFTER,
        ),
    ] = 8081,
    report_file: Annotated[
        Path, typer.Option("--report", help="Where the report is written.")
    ] = Path("demo-report.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Show the main job on this machine: two services from zero to many and back.

    Trains two scikit-learn models, starts the controller with its activator, and replays ten
    minutes of recorded chat traffic in one against both. Every request is real and its answer
    is checked. The trace is $TIDEGATE_DATA/traces/azure-llm-2023 or ../shared/data/traces if
    there, else a seeded synthetic one.

    Exit 0 only if no request was lost and both services went from 0 to 2 or more replicas and back.
    """
    if trace is not None and not trace.is_file():
        raise BadInput(f"--trace: there is no file {trace}; name an Azure LLM trace in csv")
    _check_report(report_file)
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=120)  # a pipe has no width of its own to keep to
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as folder:
        playing = _play(
            Path(folder),
            console,
            trace=trace or traffic.recorded_trace(),
            seed=seed,
            first_port=port,
            report_file=report_file,
            hold_open=hold_open,
        )
        try:
            report = asyncio.run(_stoppable(playing))
        except asyncio.CancelledError:
            raise typer.Abort from None
    if as_json:
        json.dump(report, sys.stdout)
        sys.stdout.write("\n")
    if problems := reports.failures(report):
        raise GiveUp("the demo did not show what it should: " + "; ".join(problems))


def _check_report(path: Path) -> None:
    """Before the wait, not after it."""
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as trouble:
        raise BadInput(
            f"--report: {path}: {trouble.strerror}; name a file that can be written"
        ) from None


async def _stoppable(playing: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Play until the end or until told to stop: the controller must not stay behind alone.

    SIGHUP is what closing the terminal sends.
    """
    task = asyncio.ensure_future(playing)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


async def _play(
    folder: Path,
    console: Console,
    *,
    trace: Path | None,
    seed: int,
    first_port: int,
    report_file: Path,
    hold_open: bool,
) -> dict[str, Any]:
    # 1. Set the stage.
    console.print("training two models ...", highlight=False)
    wanted = {
        "sklearn-iris": first_port,
        "sklearn-digits": first_port + 1,
        "api": first_port + API_PORT_AFTER,
    }
    ports = stage.free_ports(wanted)
    services = stage.train(folder, ports)
    config = stage.write_config(folder, services, api_port=ports["api"])
    name, arrivals = traffic.arrivals(trace, seed=seed)
    planned = traffic.shots(arrivals, services)
    tallies = {service.name: Tally() for service in services}
    loop = asyncio.get_running_loop()
    async with stage.controller_running(config, api_port=ports["api"]) as controller:
        # 2. Send the traffic and watch, until everything sleeps again.
        watch = Watch(tallies, console)
        began_s = loop.time()
        sending = asyncio.create_task(traffic.send(planned, services, tallies))
        title = f"{len(planned)} requests of {name}, {traffic.SPEEDUP:g} times as fast"
        with watch.showing(title):
            asleep_by_s = None
            while True:
                watch.seen(await controller.services())
                watch.draw()
                if sending.done():
                    asleep_by_s = asleep_by_s or loop.time() + ASLEEP_WITHIN_S
                    if _all_asleep(watch) or loop.time() > asleep_by_s:
                        break
                await asyncio.sleep(LOOKS_EVERY_S)
        await sending
        report = reports.build(
            tallies, watch.paths, watch.status, trace=name, seconds=loop.time() - began_s
        )
        # 3. Say how it went, and leave the rest to the user, if asked to.
        _tell(report, report_file, console)
        if hold_open:
            await _held_open(console, services, ports["api"])
    return report


def _tell(report: dict[str, Any], report_file: Path, console: Console) -> None:
    report_file.write_text(json.dumps(report, indent=2) + "\n")
    console.print(reports.summary(report))
    console.print(f"report: {report_file}", highlight=False)


def _all_asleep(watch: Watch) -> bool:
    return all(
        status["state"] == "asleep" and not any(status["replicas"].values())
        for status in watch.status.values()
    )


async def _held_open(
    console: Console, services: tuple[stage.DemoService, ...], api_port: int
) -> None:
    iris = services[0]
    console.print(
        "\nThe services sleep. Wake one:\n\n"
        f"  curl -X POST localhost:{iris.port}/v1/models/{iris.name}:predict "
        "-H 'Content-Type: application/json' "
        """-d '{"instances": [[6.8,2.8,4.8,1.4],[6.0,3.4,4.5,1.6]]}'\n\n"""
        f"and see how it stands: curl localhost:{api_port}/v1/services\n"
        "Ctrl-C ends it.",
        highlight=False,
        soft_wrap=True,
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    with contextlib.suppress(asyncio.CancelledError):
        await ended.wait()
