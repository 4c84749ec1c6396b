# SPDX-License-Identifier: Apache-2.0
"""`tidegate activator`: starts one activator process. Only this file reads its command line."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from autoscaler import logs
from autoscaler.activator.app import Activator, Settings
from autoscaler.activator.health import health_of
from autoscaler.activator.link import FixedController
from autoscaler.descriptors import raise_descriptor_limit
from autoscaler.errors import BadInput

app = typer.Typer(add_completion=False, rich_markup_mode=None)

TOKEN = Path("/var/run/secrets/tidegate/token")
LEASE = "tidegate-controller"


class Platform(StrEnum):
    """Where an activator runs."""

    LOCAL = "local"
    KUBERNETES = "kubernetes"


@app.command()
def activator(
    platform: Annotated[
        Platform, typer.Option(help="On this machine, or as a pod of a cluster.")
    ] = Platform.LOCAL,
    channel: Annotated[
        Path | None,
        typer.Option(
            help="Unix socket on which the controller hands out routes; local only.",
            metavar="PATH",
        ),
    ] = None,
    process: Annotated[
        str,
        typer.Option(
            help="Number of this process, from 0, and of how many that share all ports; local "
            "only.",
            metavar="N/K",
        ),
    ] = "0/1",
    linger_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds to go on taking in clients when told to stop, until nobody is sent here "
            "any more.  [default: 3 on Kubernetes, else 0]",
            min=0,
        ),
    ] = None,
    grace_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds to finish what is held and in flight after that.  [default: 600 on "
            "Kubernetes, else 30]",
            min=0,
        ),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            help="Port of /healthz, /readyz and /metrics.  [default: 8072 on Kubernetes, else "
            "none]",
            min=0,
            max=65535,
        ),
    ] = None,
    token: Annotated[
        Path,
        typer.Option(
            help="File of the token that vouches for this pod; Kubernetes only.",
            envvar="TIDEGATE_TOKEN_FILE",
            metavar="PATH",
        ),
    ] = TOKEN,
    lease: Annotated[
        str, typer.Option(help="The Lease that the leading controller holds; Kubernetes only.")
    ] = LEASE,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            help="How to reach the cluster, if not as the pod that this is; Kubernetes only.",
            metavar="PATH",
        ),
    ] = None,
) -> None:
    """Hold requests for services while they wake, and pass them on when they can be served.

    Listens for each service on the port that the controller assigns. Requests that find no replica
    wait, oldest first, within the service's hold limits; the controller is told at once. If the
    controller goes away, the last routes stay in force. SIGTERM: says that it is not ready, lingers
    while clients are still sent here, closes the ports, finishes what is held and in flight, exits
    with 0. A pod's terminationGracePeriodSeconds has to be a little more than both together.

    On Kubernetes POD_NAME, POD_NAMESPACE and POD_IP say which pod this is (downward API).
    """
    logs.configure()
    if platform is Platform.KUBERNETES:
        from autoscaler.app import activator_pod  # where there is no cluster, none of it is needed

        serving = activator_pod.serving(
            linger_s=3.0 if linger_s is None else linger_s,
            grace_s=600.0 if grace_s is None else grace_s,
            health_port=8072 if health_port is None else health_port,
            token=token,
            lease=lease,
            kubeconfig=kubeconfig,
        )
    else:
        number, of = _share(process)
        settings = Settings(
            process=number,
            of=of,
            linger_s=linger_s or 0.0,
            grace_s=30.0 if grace_s is None else grace_s,
        )
        serving = _serving_locally(settings, channel=channel, health_port=health_port)
    uvloop.run(_serve(serving))


@asynccontextmanager
async def _serving_locally(
    settings: Settings, *, channel: Path | None, health_port: int | None
) -> AsyncIterator[Activator]:
    if channel is None:
        raise BadInput("--channel: where is the controller's socket? It has to be given here")
    one = Activator(
        settings, controller=FixedController(channel), descriptors=raise_descriptor_limit()
    )
    if health_port is None:
        yield one
        return
    async with health_of(one, "127.0.0.1", health_port):
        yield one


async def _serve(serving: AbstractAsyncContextManager[Activator]) -> None:
    async with serving as one:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, one.stop)
        await one.run()


def _share(process: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", process)
    if match is None or not int(match[1]) < int(match[2]):
        raise BadInput(
            f"--process: {process!r} is not permitted; permitted: N/K with 0 <= N < K, "
            "such as 0/2 for the first of two"
        )
    return int(match[1]), int(match[2])
