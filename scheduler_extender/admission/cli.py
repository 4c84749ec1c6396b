# SPDX-License-Identifier: Apache-2.0
"""The command `tidegate admission`: reads options and starts the process; decides nothing."""

from pathlib import Path
from typing import Annotated

import typer

from scheduler_extender import logs
from scheduler_extender.admission.pods import Wiring
from scheduler_extender.admission.settings import Settings
from scheduler_extender.errors import BadInput, ExtenderError
from scheduler_extender.settings import listen_address

DEFAULTS = Settings()
WIRING = Wiring()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

EPILOG = """\
The API server asks it about pods: a MutatingWebhookConfiguration names the path /mutate, a
ValidatingWebhookConfiguration the path /validate. The chart makes both, so that pods which have
to do with GPUs fail without us and no others do; docs/packing-on-nodes.md says how.

Several may run. Their certificate is in files, which are read again when they change; or they make
it themselves with --self-signed NAME, share it by the Secret NAME-tls, renew it, and have the
webhook configurations NAME trust it. /healthz, /readyz, /metrics are on the same port, with TLS,
and on --pages without. Exit status: 0 after SIGTERM; 1 when Kubernetes cannot be logged in to; 2
when what was typed cannot be used.
"""


@app.command(epilog=EPILOG)
def admission(
    cert_file: Annotated[
        Path | None, typer.Option(help="The certificate and its chain, in PEM.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="The certificate's key, in PEM.")] = None,
    self_signed: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Make the certificate and renew it; NAME is that of our Service and of both "
            "webhook configurations, and NAME-tls that of a Secret which is there.",
        ),
    ] = DEFAULTS.self_signed,
    namespace: Annotated[
        str, typer.Option(help="Where that Service is; empty: the pod's, else the kubeconfig's.")
    ] = DEFAULTS.namespace,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="How to reach the cluster; left out in a pod with a ServiceAccount."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the API server reaches us; HTTPS.")
    ] = f"{DEFAULTS.host}:{DEFAULTS.port}",
    pages: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where health and metrics are told too, in plain HTTP; empty: nowhere.",
        ),
    ] = "",
    scheduler_name: Annotated[
        str, typer.Option(help="The scheduler that pods are given which ask for GPUs.")
    ] = WIRING.scheduler,
    runtime_class: Annotated[
        str,
        typer.Option(
            help="The RuntimeClass that such pods are given, such as nvidia; empty: none."
        ),
    ] = WIRING.runtime_class,
) -> None:
    """Make pods that ask for GPUs ready for the extender, and refuse those that take them."""
    logs.configure()
    try:
        host, port = listen_address(listen)
        settings = Settings(
            cert_file,
            key_file,
            self_signed,
            namespace,
            kubeconfig,
            host,
            port,
            listen_address(pages, option="--pages") if pages else None,
            Wiring(scheduler_name, runtime_class),
        )
        settings.validate()
        from scheduler_extender.admission.process import run

        run(settings)
    except BadInput as bad:
        for problem in bad.problems:
            typer.echo(f"tidegate admission: {problem}", err=True)
        raise typer.Exit(2) from None
    except ExtenderError as failed:
        typer.echo(f"tidegate admission: {failed}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
