# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab.dns`: the cluster's name server, for `*.svc.cluster.local` and no more.

`service.namespace.svc.cluster.local` is the Service's ClusterIP; of a headless Service its ready
addresses, over all its EndpointSlices, in chance order; `host.service.namespace…` one endpoint by
its hostname. Only A records: AAAA is empty for a name that exists. It listens on a normal address,
the node's; on an unused ClusterIP kube-proxy would drop what is sent there.
"""

import argparse
import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import structlog

from autoscaler.logs import configure
from tests.lab.rest import Mirror, Object, connect
from tests.lab.running import run_until_signalled

log = structlog.get_logger(__name__)

DOMAIN = ("svc", "cluster", "local")
TTL_S = 1
UDP_MAX_BYTES = 1232
SLICE_SERVICE = "kubernetes.io/service-name"


class Zone:
    """The names of one cluster, as its Services and EndpointSlices say."""

    def __init__(self, services: Mirror, slices: Mirror, *, chance: random.Random) -> None:
        self._services = services
        self._slices = slices
        self._chance = chance

    def addresses(self, name: str) -> list[str] | None:
        """The IPv4 addresses of a name; None where there is no such name."""
        labels = tuple(name.rstrip(".").lower().split("."))
        if labels[-3:] != DOMAIN or len(labels) not in (5, 6):
            return None
        *host, service, namespace = labels[:-3]
        found = self._services.objects.get((namespace, service))
        if found is None:
            return None
        if host:
            return self._of_host(host[0], namespace=namespace, service=service) or None
        if found["spec"].get("type") == "ExternalName":
            return None
        address = found["spec"].get("clusterIP", "")
        if address and address != "None":
            return [address]
        ready = {ip for endpoint in self._ready(namespace, service) for ip in endpoint["addresses"]}
        return self._chance.sample(sorted(ready), len(ready))

    def _of_host(self, host: str, *, namespace: str, service: str) -> list[str]:
        endpoints = self._ready(namespace, service)
        return [ip for one in endpoints if one.get("hostname") == host for ip in one["addresses"]]

    def _ready(self, namespace: str, service: str) -> Iterator[Object]:
        """Endpoints that may get requests; all of them where the Service asks for unready ones."""
        spec = self._services.objects[(namespace, service)]["spec"]
        every = spec.get("publishNotReadyAddresses", False)
        for (where, _), one in self._slices.objects.items():
            labels = one["metadata"].get("labels") or {}
            if where != namespace or labels.get(SLICE_SERVICE) != service:
                continue
            for endpoint in one.get("endpoints") or ():
                if every or endpoint.get("conditions", {}).get("ready", True):
                    yield endpoint


def answer(asked: bytes, zone: Zone, *, max_bytes: int) -> bytes | None:
    """The wire form of the answer; None for what is no question."""
    try:
        query = dns.message.from_wire(asked)
        reply = dns.message.make_response(query)
    except dns.exception.DNSException:
        return None
    reply.flags |= dns.flags.AA
    if len(query.question) != 1:
        reply.set_rcode(dns.rcode.FORMERR)
        return reply.to_wire()
    question = query.question[0]
    addresses = zone.addresses(question.name.to_text())
    if addresses is None:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    elif addresses and question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "A", *addresses))
    try:
        return reply.to_wire(max_size=max_bytes)
    except dns.exception.TooBig:
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire()


class OverUdp(asyncio.DatagramProtocol):
    """One datagram, one answer."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if (said := answer(data, self._zone, max_bytes=UDP_MAX_BYTES)) is not None:
            self._transport.sendto(said, addr)


async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, zone: Zone) -> None:
    """Questions with their length before them, until the peer closes."""
    try:
        while True:
            length = int.from_bytes(await reader.readexactly(2), "big")
            said = answer(await reader.readexactly(length), zone, max_bytes=65535)
            if said is None:
                return
            writer.write(len(said).to_bytes(2, "big") + said)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


async def serve(args: argparse.Namespace) -> None:
    host, _, port = args.listen.rpartition(":")
    async with connect(args.kubeconfig) as rest, asyncio.TaskGroup() as group:
        services = Mirror(rest, "/api/v1/services")
        slices = Mirror(rest, "/apis/discovery.k8s.io/v1/endpointslices")
        zone = Zone(services, slices, chance=random.Random())
        for mirror in (services, slices):
            group.create_task(mirror.run())
            await mirror.synced.wait()
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: OverUdp(zone), local_addr=(host, int(port)))
        await asyncio.start_server(lambda r, w: over_tcp(r, w, zone), host, int(port))
        log.info("dns_serves", listen=args.listen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.dns", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--listen", required=True, metavar="IP:PORT")
    configure()
    run_until_signalled(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
