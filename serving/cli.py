# SPDX-License-Identifier: Apache-2.0
"""The command `tidegate worker`.

Imports nothing heavy: bad input is answered before numpy is loaded.
"""

import os
import socket
from typing import Annotated

import typer

from serving.catalog import ModelFile, model_file
from serving.core.share import Share, Unreadable, share_of
from serving.engines import FORMATS
from serving.errors import BadInput
from serving.settings import (
    DEFAULTS,
    Settings,
    about,
    as_seconds,
    as_size,
    seconds,
    size_bytes,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

EPILOG = """\
Example: tidegate worker --model iris=iris.skops --port 8080, then

curl localhost:8080/v1/models/iris:predict -d '{"instances": [[6.8, 2.8, 4.8, 1.4]]}'

Speaks KServe V1 (/v1/models/NAME:predict) and the Open Inference Protocol V2
(/v2/models/NAME/infer, JSON and binary tensors; NaN and infinities are null in JSON and exact in
binary). /v2/health/live is true as soon as the socket listens, /v2/health/ready once every model is
loaded. /metrics has queue depth, latency and batch sizes for each model. SIGTERM: not ready any
more; whoever still comes is answered with Connection: close, for --linger-s; then nobody new is
taken in, what is in flight is finished, idle connections are closed, and the worker leaves. Ctrl-C:
the same without lingering. A second signal ends it at once.

Models run on the CPU. In a pod with a share of GPUs (docs/worker.md) the worker keeps to it: where
TIDEGATE_GPU_UUIDS names other GPUs than NVIDIA's driver shows it ends with status 1, CUDA is shown
those alone, and models together take no more memory than TIDEGATE_GPU_MEMORY_MIB.

Exit status: 0 after SIGTERM, 1 when a model does not load, GPUs are not those of the share, or
requests had to be cut off, 2 when what was typed cannot be used.
"""


@app.command(epilog=EPILOG)
def worker(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help=f"A model file ({' '.join(FORMATS)}), or a directory with one. Repeatable.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help=about("host"))] = DEFAULTS.host,
    port: Annotated[int, typer.Option(help=about("port"))] = DEFAULTS.port,
    threads: Annotated[int, typer.Option(help=about("threads"))] = DEFAULTS.threads,
    concurrency: Annotated[int, typer.Option(help=about("concurrency"))] = DEFAULTS.concurrency,
    max_batch_size: Annotated[
        int, typer.Option(help=about("max_batch_size"))
    ] = DEFAULTS.max_batch_size,
    max_queue_delay: Annotated[
        str, typer.Option(metavar="DURATION", help=about("max_queue_delay_s"))
    ] = as_seconds(DEFAULTS.max_queue_delay_s),
    max_queue_size: Annotated[
        int, typer.Option(help=about("max_queue_size"))
    ] = DEFAULTS.max_queue_size,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help=about("max_body_bytes"))] = as_size(
        DEFAULTS.max_body_bytes
    ),
    drain_grace: Annotated[
        str, typer.Option(metavar="DURATION", help=about("drain_grace_s"))
    ] = as_seconds(DEFAULTS.drain_grace_s),
    linger_s: Annotated[
        float, typer.Option(metavar="SECONDS", help=about("linger_s"))
    ] = DEFAULTS.linger_s,
    listen_late: Annotated[
        bool, typer.Option("--listen-late", help=about("listen_late"))
    ] = DEFAULTS.listen_late,
    unsafe_pickle: Annotated[
        bool, typer.Option("--unsafe-pickle", help=about("unsafe_pickle"))
    ] = DEFAULTS.unsafe_pickle,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help=about("trusted_types") + " Repeatable.")
    ] = None,
) -> None:
    """Serve ONNX and scikit-learn models over HTTP."""
    try:
        share = _share()
        settings = Settings(
            models=_models(model or [], unsafe_pickle=unsafe_pickle),
            host=host,
            port=port,
            threads=threads,
            concurrency=concurrency,
            max_batch_size=max_batch_size,
            max_queue_delay_s=seconds("--max-queue-delay", max_queue_delay),
            max_queue_size=max_queue_size,
            max_body_bytes=size_bytes("--max-body", max_body),
            drain_grace_s=seconds("--drain-grace", drain_grace),
            linger_s=linger_s,
            listen_late=listen_late,
            unsafe_pickle=unsafe_pickle,
            trusted_types=tuple(trust or ()),
            memory_max_bytes=None if share is None else share.memory_bytes,
        )
        problems = settings.validate()
        if problems:
            raise BadInput(*problems)
        bound = _bind(host, port)
    except BadInput as e:
        for problem in e.problems:
            typer.echo(f"tidegate worker: {problem}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(_run(settings, bound, share=share))


def _share() -> Share | None:
    """What the pod was given of GPUs; None: nobody said. Raises BadInput."""
    share = share_of(os.environ)
    if isinstance(share, Unreadable):
        raise BadInput(share.why)
    return share


def _models(texts: list[str], *, unsafe_pickle: bool) -> tuple[ModelFile, ...]:
    found: list[ModelFile] = []
    problems: list[str] = []
    for text in texts:
        try:
            found.append(model_file(text, unsafe_pickle=unsafe_pickle))
        except BadInput as e:
            problems.extend(e.problems)
    if problems:
        raise BadInput(*problems)
    return tuple(found)


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as e:
        bound.close()
        raise BadInput(
            f"--host {host} --port {port}: cannot listen there ({e.strerror or e}); "
            "choose another, --port 0 takes a free one"
        ) from e
    return bound


def _run(settings: Settings, bound: socket.socket, *, share: Share | None) -> int:
    # The libraries read these once, when they are imported; more threads than asked for also start
    # slower.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(settings.threads))
    if share is not None:
        from serving.gpus import WrongGpus, keep_to

        try:
            keep_to(share)
        except WrongGpus as e:
            typer.echo(f"tidegate worker: {e}", err=True)
            return 1
    from serving.app import run

    return run(settings, bound)


if __name__ == "__main__":
    app()
