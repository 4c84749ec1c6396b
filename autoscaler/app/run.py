# SPDX-License-Identifier: Apache-2.0
"""`tidegate run`: reads the command line and starts the controller of the platform it names."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


class Platform(StrEnum):
    LOCAL = "local"


@cli.command()
def run(
    config_file: Annotated[
        Path, typer.Option("--config", help="The TOML file that names the services.")
    ] = Path("tidegate.toml"),
    platform: Annotated[
        Platform, typer.Option(help="Where replicas run: `local` starts them as processes here.")
    ] = Platform.LOCAL,
) -> None:
    """Run the controller: scale services by their traffic, to zero and back.

    On the local platform each service's replicas are processes on this machine. Clients connect to
    the service's `listen` address; requests that come while it sleeps wait there until a replica is
    ready. An example of the config file:

    \b
      [services.iris]
      listen = "127.0.0.1:8081"
      models = { iris = "iris.skops" }
      targets = "concurrency=2"
      max-replicas = 4
      scale-to-zero-after = "5m"

    docs/settings.md lists every key. `GET /v1/services` on the controller's address
    (127.0.0.1:8070) says how each service stands and why. SIGTERM or Ctrl-C lets requests finish
    and stops every process; a second one kills them at once.
    """
    # Here, so that each platform imports what it needs and no more.
    from autoscaler.app.local import run_local

    run_local(config_file)
