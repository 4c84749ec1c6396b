# SPDX-License-Identifier: Apache-2.0
"""Where the leading controller takes in activators: an annotation of the Lease that it holds.

Only read here. A Lease whose holder has fallen silent still names the last known place: who leads
is not decided by those who look for the leader.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from autoscaler.adapters.kubernetes.api import KubeApi, Raw
from autoscaler.adapters.kubernetes.informer import Informer
from autoscaler.adapters.kubernetes.resources import LEASES

CHANNEL_ANNOTATION: Final = "tidegate.dev/channel"

Address = tuple[str, int]


def parse_address(raw: Raw) -> Address | None:
    """The channel's address in a Lease, `IP:PORT` or `[IP]:PORT`; None: nobody holds it."""
    if not (raw.get("spec") or {}).get("holderIdentity"):
        return None
    words = (raw["metadata"].get("annotations") or {}).get(CHANNEL_ANNOTATION, "")
    host, _, port = words.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return host, int(port)


class LeadingController:
    """Follows one Lease; `address` is the present leader's, None while nobody is known to lead."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self._news = asyncio.Event()

    async def moves(self, address: object) -> None:
        """Return once a leader is known to be somewhere, and not at `address`."""
        while self.address is None or self.address == address:
            await self._news.wait()

    def lead(self, address: Address | None) -> None:
        """The Lease says something else."""
        self.address = address
        self._news.set()
        self._news = asyncio.Event()


@contextlib.asynccontextmanager
async def leading_controller(
    api: KubeApi, *, namespace: str, lease: str
) -> AsyncIterator[LeadingController]:
    """Whoever holds the Lease of this name, for as long as the context lasts."""
    leader = LeadingController()
    informer = Informer(
        api,
        LEASES,
        parse=parse_address,
        namespaces=(namespace,),
        field_selector=f"metadata.name={lease}",
        on_change=lambda key, old, new: leader.lead(new),
    )
    informer.start()
    try:
        yield leader
    finally:
        await informer.stop()
