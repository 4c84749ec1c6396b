# SPDX-License-Identifier: Apache-2.0
"""`tidegate activator`: starts one activator process. Only this file reads its command line."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from autoscaler import logs
from autoscaler.activator.app import Activator, Settings, raise_descriptor_limit
from autoscaler.activator.link import FixedController
from autoscaler.errors import BadInput

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def activator(
    channel: Annotated[
        Path,
        typer.Option(help="Unix socket on which the controller hands out routes.", metavar="PATH"),
    ],
    process: Annotated[
        str,
        typer.Option(
            help="Number of this process, from 0, and of how many that share all ports.",
            metavar="N/K",
        ),
    ] = "0/1",
    grace_s: Annotated[
        float,
        typer.Option(help="Seconds to finish what is held and in flight when told to stop.", min=0),
    ] = 30.0,
) -> None:
    """Hold requests for services while they wake, and pass them on when they can be served.

    Listens for each service on the port that the controller assigns. Requests that find no replica
    wait, oldest first, within the service's hold limits; the controller is told at once. If the
    controller goes away, the last routes stay in force. SIGTERM: closes the ports, finishes what is
    held and in flight, exits with 0.
    """
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", process)
    if match is None or not int(match[1]) < int(match[2]):
        raise BadInput(
            f"--process: {process!r} is not permitted; permitted: N/K with 0 <= N < K, "
            "such as 0/2 for the first of two"
        )
    logs.configure()
    settings = Settings(process=int(match[1]), of=int(match[2]), grace_s=grace_s)
    descriptors = raise_descriptor_limit()

    async def serve() -> None:
        controller = FixedController(channel)
        one = Activator(settings, controller=controller, descriptors=descriptors)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, one.stop)
        await one.run()

    uvloop.run(serve())
