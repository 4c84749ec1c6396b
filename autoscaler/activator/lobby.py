# SPDX-License-Identifier: Apache-2.0
"""One port that several services share: the Host of each request says whose it is.

The one way to tell headless Services apart: their clients connect to the address of a pod, so every
Service port arrives at the same port of the activator. HTTP/2 by prior knowledge names its host
only inside compressed headers, which are not read here: such a connection is told to go away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoscaler.activator.desk import Desk, Shared
from autoscaler.activator.listener import Listener
from autoscaler.activator.proxy import Client
from autoscaler.core.routes import Route

if TYPE_CHECKING:
    from collections.abc import Iterable


class Lobby:
    """The shared port, and the desks behind it. `desk` is where a client stands until it is told.

    A host that several services claim (the bare name of Services in two namespaces) is nobody's.
    """

    def __init__(self, shared: Shared, host: str, port: int) -> None:
        self.desk = Desk(shared, Route("", host, port))
        self._desks: dict[str, Desk | None] = {}
        self.listener = Listener(
            host,
            port,
            make_client=lambda: Client(self.desk, lobby=self),
            shares_port=shared.shares_ports,
        )

    def seat(self, desks: Iterable[Desk]) -> None:
        """Replace the desks behind this port."""
        claims: dict[str, list[Desk]] = {}
        for desk in desks:
            for host in {host.lower() for host in desk.route.hosts}:
                claims.setdefault(host, []).append(desk)
        before = self._desks
        self._desks = {h: each[0] if len(each) == 1 else None for h, each in claims.items()}
        if self._desks != before:
            for desk in {desk for desk in before.values() if desk is not None}:
                for client in desk.clients:
                    client.unlearn()

    def find(self, host: bytes) -> Desk | str:
        """Whose request it is; or why that cannot be told."""
        name = host.decode("ascii", "replace").lower()
        for known_as in (name, _bare(name)):
            if known_as in self._desks:
                desk = self._desks[known_as]
                if desk is not None:
                    return desk
                return f"several services are called {name!r}: ask for one as NAME.NAMESPACE"
        return f"no service that is served here is called {name!r}"


def _bare(name: str) -> str:
    """The host without its port, and without the dot that ends a full name."""
    if name.startswith("["):  # an IPv6 address
        return name
    return name.partition(":")[0].removesuffix(".")
