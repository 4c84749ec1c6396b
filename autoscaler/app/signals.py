# SPDX-License-Identifier: Apache-2.0
"""`tidegate signals`: what Tidegate reads in the metrics of a model server or a GPU exporter."""

import typer

from autoscaler.app.signals_gpus import gpus

app = typer.Typer(help=__doc__, no_args_is_help=True)
app.command("gpus")(gpus)


@app.callback()
def signals() -> None:
    """What Tidegate reads in the metrics of a model server or a GPU exporter."""
