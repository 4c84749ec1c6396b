# SPDX-License-Identifier: Apache-2.0
"""`tidegate run`: reads the command line and starts the controller of the platform it names."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autoscaler.errors import BadInput

cli = typer.Typer(add_completion=False, rich_markup_mode=None)

LOCAL_CONFIG = Path("tidegate.toml")


class Platform(StrEnum):
    LOCAL = "local"
    KUBERNETES = "kubernetes"


@cli.command()
def run(
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The TOML file of settings. Local: names the services, tidegate.toml if not said. "
            "Kubernetes: may be left out.",
        ),
    ] = None,
    platform: Annotated[
        Platform,
        typer.Option(
            help="Where replicas run: `local` starts them as processes here, `kubernetes` scales "
            "annotated objects of a cluster."
        ),
    ] = Platform.LOCAL,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            help="Kubernetes: how to reach the cluster from outside; else the pod's own account, "
            "or what $KUBECONFIG names."
        ),
    ] = None,
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

    On Kubernetes services are InferenceServices, Deployments and whatever else has a scale
    subresource, once they carry the annotation tidegate.dev/enabled: "true"; the Helm chart runs
    controller and activators. Several controllers may run: one leads, the others stand by.

    docs/settings.md lists every key. `GET /v1/services` on the controller's address
    (127.0.0.1:8070) says how each service stands and why. SIGTERM or Ctrl-C lets requests finish
    and stops every process of the local platform; a second one kills them at once. On Kubernetes it
    hands over to the next controller and touches no replica.
    """
    # Here, so that each platform imports what it needs and no more.
    if platform is Platform.KUBERNETES:
        from autoscaler.app.kubernetes import run_kubernetes

        if kubeconfig is not None and not kubeconfig.is_file():
            raise BadInput(
                f"--kubeconfig: there is no file {kubeconfig}; name one that is there, or leave it "
                f"out inside a pod"
            )
        run_kubernetes(config_file, kubeconfig)
        return
    from autoscaler.app.local import run_local

    if kubeconfig is not None:
        raise BadInput("--kubeconfig: only the platform kubernetes has one; leave it out")
    run_local(config_file or LOCAL_CONFIG)
