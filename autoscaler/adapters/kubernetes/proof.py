# SPDX-License-Identifier: Apache-2.0
"""Proof that an activator receives what is sent to a Service: it is asked through the Service.

kube-proxy takes up to a second to follow an EndpointSlice. Until a request that went the way of a
client's was answered by an activator, nobody may take the last replica away.
"""

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Final

import httptools
import structlog

from autoscaler.adapters.kubernetes.inventory import Name
from autoscaler.adapters.kubernetes.objects import KubeService, ServicePort
from autoscaler.core.signals import ServiceId
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)

PROBE = "X-Tidegate-Probe"
ANSWER = "x-tidegate-activator"

ROUND_S: Final = 0.2  # between two rounds over what is not proven
TRIES: Final = 24  # a round: with 8 replicas and one activator all miss it in 6 rounds of 100
TIMEOUT_S: Final = 0.5
SETTLED_S: Final = 1.0  # other nodes' proxies may be this much later than this one's
# Clients of a headless Service go by name: CoreDNS lets them keep an answer for 5 s.
SETTLED_HEADLESS_S: Final = 6.0
AT_ONCE: Final = 32


class Proofs:
    """Of which Services it is proven, and since when."""

    def __init__(self, *, clock: Clock, on_proof: Callable[[ServiceId], None]) -> None:
        self._clock = clock
        self._on_proof = on_proof
        self._proven_at_s: dict[Name, float] = {}
        self._settled: dict[Name, float] = {}
        self._forgotten: dict[Name, int] = {}  # how often
        self._asking = asyncio.Semaphore(AT_ONCE)

    def proven(self, name: Name) -> bool:
        """Whether an activator answered, and everybody else has had the time to hear of it."""
        at_s = self._proven_at_s.get(name)
        return at_s is not None and self._clock.now_s() - at_s >= self._settled[name]

    def forget(self, name: Name) -> None:
        """What was proven is no longer so, nor is what is being proven at this moment."""
        self._proven_at_s.pop(name, None)
        self._forgotten[name] = self._forgotten.get(name, 0) + 1

    async def run(self, wanted: Callable[[], Collection[tuple[ServiceId, KubeService]]]) -> None:
        """Ask for what is not proven yet, round after round, until cancelled."""
        while True:
            todo = [(s, kube) for s, kube in wanted() if kube.key not in self._proven_at_s]
            await asyncio.gather(*(self._prove(service, kube) for service, kube in todo))
            await asyncio.sleep(ROUND_S)

    async def _prove(self, service: ServiceId, kube: KubeService) -> None:
        forgotten = self._forgotten.get(kube.key, 0)
        async with self._asking:
            ask = _through_service if kube.cluster_ip else _by_name
            if not all([await ask(kube, port) for port in kube.ports]):
                return
        if forgotten != self._forgotten.get(kube.key, 0):
            return  # what answered may have been a path that is gone by now
        settled_s = SETTLED_S if kube.cluster_ip else SETTLED_HEADLESS_S
        self._proven_at_s[kube.key] = self._clock.now_s()
        self._settled[kube.key] = settled_s
        log.debug("an activator receives a Service's requests", service=kube.key)
        asyncio.get_running_loop().call_later(settled_s, self._on_proof, service)


async def _through_service(kube: KubeService, port: ServicePort) -> bool:
    """Whether one of a few new connections to the Service's address reached an activator."""
    for _ in range(TRIES):
        if await answered_by_activator(kube.cluster_ip, port.port, host=kube.name):
            return True
    return False


async def _by_name(kube: KubeService, port: ServicePort) -> bool:
    """Whether the name leads to an activator, among others."""
    if not isinstance(port.target, int):
        return False
    name = f"{kube.name}.{kube.namespace}.svc"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            name, port.target, type=socket.SOCK_STREAM
        )
    except OSError:
        return False
    hosts = {str(info[4][0]) for info in found}
    return any([await answered_by_activator(at, port.target, host=name) for at in hosts])


async def answered_by_activator(address: str, port: int, *, host: str) -> bool:
    """One request on a new connection; false for any other answer, and for none."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reads, writes = await asyncio.open_connection(address, port)
            try:
                writes.write(
                    f"GET /.well-known/tidegate HTTP/1.1\r\nHost: {host}\r\n{PROBE}: 1\r\n"
                    f"Connection: close\r\n\r\n".encode()
                )
                return await _says_activator(reads)
            finally:
                writes.close()
    except (OSError, TimeoutError, httptools.HttpParserError, httptools.HttpParserUpgrade):
        return False


class _Head:
    """The names of an answer's headers."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.add(name.decode("latin-1").lower())

    def on_headers_complete(self) -> None:
        self.complete = True


async def _says_activator(reads: asyncio.StreamReader) -> bool:
    head = _Head()
    parser = httptools.HttpResponseParser(head)
    while not head.complete:
        data = await reads.read(4096)
        if not data:
            return False
        parser.feed_data(data)
    return ANSWER in head.names
