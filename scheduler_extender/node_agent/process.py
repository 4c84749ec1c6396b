# SPDX-License-Identifier: Apache-2.0
"""One agent process: ask what stands on the node, then round after round, and serve its metrics."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any, Final

import pynvml
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from scheduler_extender.adapters.api import Api
from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.node_report import Enforcement
from scheduler_extender.errors import GiveUp, Refused, Unreachable
from scheduler_extender.listening import TEXT, Receive, Scope, Send, Server, bound, reply
from scheduler_extender.node_agent.agent import Agent, GpusOnAThread, Round
from scheduler_extender.node_agent.enforcement import CGROUP_V2, has_mps_server, in_force
from scheduler_extender.node_agent.gpus import Machine
from scheduler_extender.node_agent.metrics import NodeCollector
from scheduler_extender.node_agent.node_object import KubernetesNode
from scheduler_extender.node_agent.nvml import NvmlGpus
from scheduler_extender.node_agent.report import Written, written_of
from scheduler_extender.node_agent.settings import Settings

log = structlog.get_logger(__name__)

PODS_S: Final = 60.0  # between two looks at the node's pods
BOOT_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
# What a reader may stumble on in what somebody else wrote.
MISSHAPEN: Final = (KeyError, TypeError, ValueError, AttributeError)
ABOUT: Final = b"GET /healthz, /readyz, /metrics: the agent of a node with GPUs\n"


def run(settings: Settings, *, library: Any = pynvml) -> None:
    """Until SIGTERM or Ctrl-C. `library` has the functions of the module `pynvml`."""
    taken = bound(settings.host, settings.port)
    asyncio.run(_until_told(settings, taken, library))


def run_once(settings: Settings, *, library: Any = pynvml) -> Round:
    """One round. Raises `ExtenderError` where what it made could not be written."""
    return asyncio.run(_once(settings, library))


class Process:
    """`stop` ends it. The report that stands on the node stays when it ends."""

    def __init__(
        self, settings: Settings, api: Api, taken: socket.socket, *, library: Any = pynvml
    ) -> None:
        self.stop = asyncio.Event()
        self._settings = settings
        self._node = KubernetesNode(api, settings.node, holds=settings.holds)
        self._socket = taken
        self._library = library
        self._last: Round | None = None
        self._pods: tuple[PodSeen, ...] = ()
        self._stands = False
        registry = CollectorRegistry()
        registry.register(NodeCollector(lambda: self._last, pods=lambda: self._pods))
        self._registry = registry

    async def run(self) -> None:
        config = uvicorn.Config(
            self._answer, interface="asgi3", log_config=None, access_log=False, lifespan="off",
            ws="none", server_header=False,
        )  # fmt: skip
        server = Server(config)
        serving = asyncio.create_task(server.serve([self._socket]))
        tasks = [
            asyncio.create_task(work)
            for work in (self._rounds(), self._look_at_pods(), self.stop.wait())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            server.should_exit = True
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await serving

    async def _rounds(self) -> None:
        """Ends only by raising."""
        standing = await self._standing()
        reader, agent = _an_agent(self._settings, self._library, self._node, standing)
        try:
            while True:
                made = await agent.round()
                _log(made, before=self._last)
                self._last = made
                self._stands = self._stands or not made.trouble
                await asyncio.sleep(self._settings.every_s)
        finally:
            reader.close()

    async def _standing(self) -> str | None:
        """Waits for the API server: nothing is told before it is known what was told before."""
        said = ""
        while True:
            try:
                return await self._node.report()
            except (Refused, Unreachable) as trouble:
                if str(trouble) != said:
                    log.warning("the node was not read; trying again", why=str(trouble))
                said = str(trouble)
            await asyncio.sleep(self._settings.every_s)

    async def _look_at_pods(self) -> None:
        """Ends only by raising."""
        while True:
            try:
                self._pods = await self._node.pods()
                await self._node.report()
            except (Refused, Unreachable, *MISSHAPEN) as trouble:
                self._pods = ()
                log.info("the node's pods were not read", why=str(trouble))
            await asyncio.sleep(PODS_S)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = TEXT
        match scope["path"] if scope["type"] == "http" else "":
            case "/healthz":
                status, body = 200, b"ok\n"
            case "/readyz" if self._stands:
                status, body = 200, b"ok\n"
            case "/readyz":
                status, body = 503, b"the report is not on the node yet\n"
            case "/metrics":
                status, body = 200, generate_latest(self._registry)
                kind = CONTENT_TYPE_LATEST.encode()
            case _:
                status, body = 404, ABOUT
        await reply(send, status=status, kind=kind, body=body)


async def _until_told(settings: Settings, taken: socket.socket, library: Any) -> None:
    async with Api(settings.kubeconfig) as api:
        process, loop = Process(settings, api, taken, library=library), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, process.stop.set)
        host, port = taken.getsockname()[:2]
        log.info("node agent started", node=settings.node, listen=f"{host}:{port}")
        await process.run()
        log.info("stopped")


async def _once(settings: Settings, library: Any) -> Round:
    if not settings.node:
        return await _one_round(settings, library, None)
    async with Api(settings.kubeconfig) as api:
        node = KubernetesNode(api, settings.node, holds=settings.holds)
        made = await _one_round(settings, library, node)
    if made.trouble:
        raise GiveUp(f"the report was not written: {made.trouble}")
    return made


async def _one_round(settings: Settings, library: Any, node: KubernetesNode | None) -> Round:
    standing = await node.report() if node else None
    reader, agent = _an_agent(settings, library, node, standing)
    try:
        return await agent.round()
    finally:
        reader.close()


def _an_agent(
    settings: Settings, library: Any, node: KubernetesNode | None, standing: str | None
) -> tuple[GpusOnAThread, Agent]:
    boot = BOOT_FILE.read_text(encoding="ascii").strip() if BOOT_FILE.exists() else ""
    earlier = _earlier(settings.node, standing, boot)
    reader = GpusOnAThread(NvmlGpus(library, xids=earlier.xids if earlier else {}))

    def level(machine: Machine) -> tuple[Enforcement, str]:
        return in_force(
            settings.stated,
            machine,
            mps_server=has_mps_server(settings.mps_pipes),
            cgroup_v2=CGROUP_V2.exists(),
        )

    agent = Agent(
        settings.node,
        gpus=reader,
        node=node,
        level=level,
        boot=boot,
        heartbeat_s=settings.heartbeat_s,
        standing=standing,
        earlier=earlier,
        contested=lambda: node.contested if node else "",
    )
    return reader, agent


def _earlier(name: str, standing: str | None, boot: str) -> Written | None:
    if standing is None:
        return None
    try:
        return written_of(name, standing, boot=boot)
    except MISSHAPEN as error:
        log.warning("what stands on the node is not ours, and is replaced", why=repr(error))
        return None


def _log(made: Round, *, before: Round | None) -> None:
    """Only what is new."""
    cards = made.report.gpus.cards
    if before is None or made.text != before.text:
        log.info(
            "the node's GPUs",
            gpus=len(cards),
            healthy=sum(card.healthy for card in cards),
            enforcement=made.report.enforcement,
        )
        for uuid, why in made.report.ill:
            log.warning("a GPU gets no pods", uuid=uuid, why=why)
        for note in made.notes:
            log.warning(note)
    if made.trouble and (before is None or made.trouble != before.trouble):
        log.warning("the report was not written; trying again", why=made.trouble)
