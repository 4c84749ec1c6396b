# SPDX-License-Identifier: Apache-2.0
"""Where the leading controller takes in activators: an annotation of the Lease that it holds.

Only read here. A Lease whose holder has fallen silent still names the last known place: who leads
is not decided by those who look for the leader.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.election import Holder, LeaseHolder

CHANNEL_ANNOTATION: Final = "tidegate.dev/channel"

Address = tuple[str, int]


def channel_of(holder: Holder) -> Address | None:
    """The channel's address, `IP:PORT` or `[IP]:PORT`; None: nobody leads, or says no place."""
    host, _, port = holder.annotations.get(CHANNEL_ANNOTATION, "").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not holder.identity or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return host, int(port)


class LeadingController:
    """Who leads; `address` is where its channel is, None while nobody is known to lead."""

    def __init__(self) -> None:
        self.address: Address | None = None
        self._news = asyncio.Event()

    async def moves(self, address: object) -> None:
        """Return once a leader is known to be somewhere, and not at `address`."""
        while self.address is None or self.address == address:
            await self._news.wait()

    def lead(self, holder: Holder) -> None:
        """Another holds the Lease, or nobody, or the same one says something else."""
        self.address = channel_of(holder)
        self._news.set()
        self._news = asyncio.Event()


@contextlib.asynccontextmanager
async def leading_controller(
    api: KubeApi, *, namespace: str, lease: str
) -> AsyncIterator[LeadingController]:
    """Whoever holds the Lease of this name, for as long as the context lasts."""
    leader = LeadingController()
    holder = LeaseHolder(api, namespace, lease, on_change=leader.lead)
    holder.start()
    try:
        yield leader
    finally:
        await holder.stop()
