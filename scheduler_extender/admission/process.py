# SPDX-License-Identifier: Apache-2.0
"""One webhook process: listen with TLS, answer, leave in good order. It asks Kubernetes nothing."""

import asyncio
import signal
import socket
from typing import Final

import structlog
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from scheduler_extender.admission.app import App
from scheduler_extender.admission.certificates import Certificate
from scheduler_extender.admission.settings import Settings
from scheduler_extender.listening import Server, bound

log = structlog.get_logger(__name__)

LEAVE_S: Final = 10  # to end what is being answered


def run(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C. Raises `BadInput` for a certificate or address that is of no use."""
    certificate = Certificate(settings.cert_file, settings.key_file)
    taken = bound(settings.host, settings.port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_told(settings, certificate, taken))


async def serve(
    settings: Settings, certificate: Certificate, taken: socket.socket, stop: asyncio.Event
) -> None:
    """Until `stop` is set."""
    app = App(settings.wiring, registry=CollectorRegistry())
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_graceful_shutdown=LEAVE_S,
    )  # fmt: skip
    config.load()
    config.ssl = certificate.tls
    server = Server(config)
    keeping = asyncio.create_task(certificate.keep())
    serving = asyncio.create_task(server.serve([taken]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((stopping, serving, keeping), return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
    finally:
        server.should_exit = True
        stopping.cancel()
        keeping.cancel()
        await serving


async def _until_told(settings: Settings, certificate: Certificate, taken: socket.socket) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host, port = taken.getsockname()[:2]
    log.info("admission started", listen=f"{host}:{port}", scheduler=settings.wiring.scheduler)
    await serve(settings, certificate, taken, stop)
    log.info("stopped")
