# SPDX-License-Identifier: Apache-2.0
"""The command `tidegate node-agent`: reads options and starts the process; decides nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from scheduler_extender import logs
from scheduler_extender.core.node_report import Enforcement
from scheduler_extender.errors import BadInput, ExtenderError
from scheduler_extender.node_agent.agent import Round
from scheduler_extender.node_agent.settings import AUTO, Settings
from scheduler_extender.settings import listen_address

DEFAULTS = Settings()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

EPILOG = """\
It writes the node's annotation tidegate.dev/gpus, which the extender reads, when that changes, and
tidegate.dev/gpus-heartbeat with it. A GPU with a critical event (XID), uncorrected memory errors or
no answer stays listed and gets no pods; while the driver is silent, that holds for all known ones.
Where none are known, the node has none. It needs the rights to get and patch its node and to list
pods. docs/packing-on-nodes.md has all of it.

/healthz, /readyz (200 once the report is on the node), /metrics. Exit status: 0 after SIGTERM or
--once; 1 when Kubernetes cannot be logged in to, or --once could not write; 2 when what was typed
cannot be used.
"""


@app.command(epilog=EPILOG)
def node_agent(
    node: Annotated[
        str, typer.Option(envvar="NODE_NAME", help="This node, as `kubectl get nodes` names it.")
    ] = DEFAULTS.node,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="How to reach the cluster; left out in a pod with a ServiceAccount."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where metrics are served; plain HTTP.")
    ] = f"{DEFAULTS.host}:{DEFAULTS.port}",
    every_s: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two readings of the GPUs.")
    ] = DEFAULTS.every_s,
    heartbeat_s: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two writes if nothing changes.")
    ] = DEFAULTS.heartbeat_s,
    enforcement: Annotated[
        str,
        typer.Option(
            metavar="|".join((AUTO, *Enforcement)),
            help="What holds pods to their shares here; auto claims only what it sees.",
        ),
    ] = DEFAULTS.enforcement,
    holds: Annotated[
        int,
        typer.Option(
            metavar="GPUS",
            help="How many nvidia.com/gpu our own pod asks for; where the device plugin has more "
            "to give out, no GPU of this node is given to pods by us.",
        ),
    ] = DEFAULTS.holds,
    mps_pipes: Annotated[
        Path | None, typer.Option(help="Where an MPS server of this node has its pipe.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Read and write once, say what was found, and end.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="With --once: print the report as JSON.")
    ] = False,
) -> None:
    """Tell the cluster which GPUs this node has, how they are linked and whether they are well."""
    logs.configure()
    try:
        host, port = listen_address(listen)
        pipes = mps_pipes or DEFAULTS.mps_pipes
        settings = Settings(
            node,
            kubeconfig,
            host,
            port,
            every_s,
            heartbeat_s,
            enforcement,
            holds,
            pipes,
            once,
            json,
        )
        settings.validate()
        _run(settings)
    except BadInput as bad:
        for problem in bad.problems:
            typer.echo(f"tidegate node-agent: {problem}", err=True)
        raise typer.Exit(2) from None
    except ExtenderError as failed:
        typer.echo(f"tidegate node-agent: {failed}", err=True)
        raise typer.Exit(1) from None


def _run(settings: Settings) -> None:
    from scheduler_extender.node_agent.process import run, run_once

    if not settings.once:
        run(settings)
        return
    made = run_once(settings)
    for line in [made.text] if settings.json else _words(settings, made):
        typer.echo(line)


def _words(settings: Settings, made: Round) -> Iterator[str]:
    gpus, level = made.report.gpus, made.report.enforcement
    well = sum(card.healthy for card in gpus.cards)
    written = "written" if made.wrote else "nothing to write" if settings.node else "not written"
    yield (
        f"{settings.node or 'this node'}: {len(gpus.cards)} GPUs, {well} healthy; "
        f"model {gpus.model or 'none'}; enforcement {level}; {written}"
    )
    yield from (f"  {note}" for note in made.notes)
    yield from (f"  {uuid}: {why}" for uuid, why in made.report.ill)


if __name__ == "__main__":
    app()
