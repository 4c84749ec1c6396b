# SPDX-License-Identifier: Apache-2.0
"""`tidegate signals`: what Tidegate reads in the metrics of a model server or a GPU exporter."""

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.callback()
def signals() -> None:
    """What Tidegate reads in the metrics of a model server or a GPU exporter."""
