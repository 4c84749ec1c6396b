# SPDX-License-Identifier: Apache-2.0
"""One webhook process: get a certificate, listen with TLS, answer, leave in good order.

Of Kubernetes it asks nothing but what its own certificate takes.
"""

import asyncio
import os
import signal
import socket
from dataclasses import dataclass
from typing import Any, Final

import structlog
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from scheduler_extender.adapters.api import Api
from scheduler_extender.admission.app import App
from scheduler_extender.admission.certificates import Certificate, Served
from scheduler_extender.admission.self_signed import SelfSigned
from scheduler_extender.admission.settings import Settings
from scheduler_extender.listening import Server, bound

log = structlog.get_logger(__name__)

LINGER_S: Final = 3.0  # API servers hear a moment later that a pod goes, and do not ask twice
LEAVE_S: Final = 10  # to end what is being answered


@dataclass(frozen=True, slots=True)
class Sockets:
    """`webhook` speaks TLS; `pages`, if there is one, tells health and metrics without."""

    webhook: socket.socket
    pages: socket.socket | None = None


def run(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C. Raises `BadInput` for a certificate or address that is of no use."""
    files = None
    if settings.cert_file is not None and settings.key_file is not None:
        files = Certificate(settings.cert_file, settings.key_file)
    taken = Sockets(
        bound(settings.host, settings.port),
        bound(*settings.pages, option="--pages") if settings.pages else None,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_told(settings, files, taken))


async def serve(
    settings: Settings, certificate: Served, taken: Sockets, stop: asyncio.Event
) -> None:
    """Until `stop` is set."""
    app = App(
        settings.wiring,
        registry=CollectorRegistry(),
        why_unready=lambda: certificate.why_unready,
        ends_at=lambda: certificate.ends_at,
    )
    plain, secure = Server(_config(app.pages)), Server(_config(app, tls=certificate))
    stopping = asyncio.create_task(stop.wait())
    beside: list[asyncio.Task[Any]] = [asyncio.create_task(certificate.begin())]
    serving: list[asyncio.Task[Any]] = []
    if taken.pages is not None:
        serving.append(asyncio.create_task(plain.serve([taken.pages])))
    try:
        await _first_of(stopping, *beside)
        if not stop.is_set():
            beside.append(asyncio.create_task(certificate.keep()))
            serving.append(asyncio.create_task(secure.serve([taken.webhook])))
            await _first_of(stopping, *beside[1:], *serving)
    finally:
        plain.should_exit = secure.should_exit = True
        for task in (stopping, *beside):
            task.cancel()
        await asyncio.wait((stopping, *beside))
        await asyncio.gather(*serving)


async def _first_of(*tasks: asyncio.Task[Any]) -> None:
    """Wait until one is done; raises what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _config(app: Any, *, tls: Served | None = None) -> uvicorn.Config:
    config = uvicorn.Config(
        app, interface="asgi3", log_config=None, access_log=False, lifespan="off", ws="none",
        server_header=False, timeout_graceful_shutdown=LEAVE_S,
    )  # fmt: skip
    config.load()
    if tls is not None:
        config.ssl = tls.tls
    return config


async def _until_told(settings: Settings, files: Certificate | None, taken: Sockets) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, loop.call_later, LINGER_S, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    host, port = taken.webhook.getsockname()[:2]
    log.info("admission started", listen=f"{host}:{port}", scheduler=settings.wiring.scheduler)
    if files is not None:
        await serve(settings, files, taken, stop)
    else:
        async with Api(settings.kubeconfig) as api:
            namespace = settings.namespace or os.environ.get("POD_NAMESPACE") or api.namespace
            own = SelfSigned(api, namespace=namespace, service=settings.self_signed)
            await serve(settings, own, taken, stop)
    log.info("stopped")
