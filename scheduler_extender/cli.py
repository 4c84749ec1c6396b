# SPDX-License-Identifier: Apache-2.0
"""The command `tidegate extender`: reads options and starts the process; decides nothing."""

from pathlib import Path
from typing import Annotated

import typer

from scheduler_extender import logs
from scheduler_extender.errors import BadInput, ExtenderError
from scheduler_extender.settings import PlaceholderSettings, Settings, labels, listen_address

DEFAULTS = Settings()
PLACEHOLDERS = DEFAULTS.placeholders

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

EPILOG = """\
Beside it runs a kube-scheduler whose KubeSchedulerConfiguration names it:

extenders: [{urlPrefix: "http://127.0.0.1:8073", filterVerb: pick, bindVerb: bind,
preemptVerb: preempt, nodeCacheCapable: true, ignorable: false, httpTimeout: 6s, managedResources:
[{name: tidegate.dev/gpu, ignoredByScheduler: true}, {name: tidegate.dev/gpu-mem-mib,
ignoredByScheduler: true}, …]}]

A pod asks by annotations, tidegate.dev/gpu-memory: 12Gi and tidegate.dev/gpu-core: 30%, or
tidegate.dev/gpu-count: "2" for whole GPUs, and by extended resources of the same meaning. Nodes
tell of their GPUs by the annotation tidegate.dev/gpus. docs/extender.md has all of it.

Several may run: the holder of the Lease answers, the others say 503. /healthz, /readyz (200 once it
leads and knows the whole cluster), /metrics. Exit status: 0 after SIGTERM; 1 when the Lease was
lost or Kubernetes cannot be logged in to; 2 when what was typed cannot be used.
"""


@app.command(epilog=EPILOG)
def extender(
    listen: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where kube-scheduler reaches us; plain HTTP."),
    ] = f"{DEFAULTS.host}:{DEFAULTS.port}",
    pages: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where /healthz, /readyz and /metrics are told too, and no verb: who can bind "
            "pods to nodes should be reached by kube-scheduler alone.",
        ),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="How to reach the cluster; left out in a pod with a ServiceAccount."),
    ] = None,
    lease: Annotated[str, typer.Option(help="The Lease that extenders share.")] = DEFAULTS.lease,
    namespace: Annotated[
        str,
        typer.Option(help="Its namespace and that of placeholders; left out: the pod's own."),
    ] = DEFAULTS.namespace,
    audit_s: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between two audits of all GPUs.")
    ] = DEFAULTS.audit_s,
    preempt: Annotated[
        bool,
        typer.Option(
            help="Evict pods of lower priority where GPUs alone are scarce: kube-scheduler's own "
            "preemption does not see those."
        ),
    ] = DEFAULTS.preempt,
    reservation_pod: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A Pod as YAML that is made for each card which we take from the device plugin "
            "of a mixed node; without it such nodes get no pods of ours.",
        ),
    ] = None,
    reservation_idle_s: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long such a pod stays that nobody uses."),
    ] = DEFAULTS.reservation_idle_s,
    placeholders: Annotated[
        bool,
        typer.Option(
            "--placeholders",
            help="For GPU pods that fit nowhere make placeholder pods, for which cluster "
            "autoscalers add nodes.",
        ),
    ] = PLACEHOLDERS.enabled,
    most_placeholders: Annotated[
        int, typer.Option(metavar="COUNT", help="Placeholders at the same time.")
    ] = PLACEHOLDERS.most,
    gpu_nodes: Annotated[
        str,
        typer.Option(
            metavar="LABEL=VALUE,…",
            help="Labels of nodes with GPUs; placeholders go nowhere else.",
        ),
    ] = ",".join(f"{key}={value}" for key, value in PLACEHOLDERS.node_selector),
    placeholder_image: Annotated[
        str, typer.Option(metavar="IMAGE", help="Of placeholders: one that does nothing.")
    ] = PLACEHOLDERS.image,
    placeholder_priority: Annotated[
        str,
        typer.Option(metavar="NAME", help="Of placeholders: a PriorityClass that evicts nobody."),
    ] = PLACEHOLDERS.priority_class,
    scheduler_name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The schedulerName of the pods that placeholders are made for: that of the "
            "kube-scheduler beside us.",
        ),
    ] = DEFAULTS.scheduler,
) -> None:
    """Place pods on GPUs for a kube-scheduler: whole ones, shares of memory and compute, MIG."""
    logs.configure()
    try:
        host, port = listen_address(listen)
        told = listen_address(pages, option="--pages") if pages else None
        settings = Settings(
            host, port, kubeconfig, lease, namespace, audit_s, told, preempt,
            reservation_pod, reservation_idle_s,
            PlaceholderSettings(
                placeholders,
                most_placeholders,
                labels(gpu_nodes, option="--gpu-nodes"),
                placeholder_image,
                placeholder_priority,
            ),
            scheduler_name,
        )  # fmt: skip
        settings.validate()
        from scheduler_extender.process import run

        run(settings)
    except BadInput as bad:
        for problem in bad.problems:
            typer.echo(f"tidegate extender: {problem}", err=True)
        raise typer.Exit(2) from None
    except ExtenderError as failed:
        typer.echo(f"tidegate extender: {failed}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
