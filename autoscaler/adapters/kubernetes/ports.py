# SPDX-License-Identifier: Apache-2.0
"""Which port on the activators belongs to which route. Pure.

A route keeps its port for life: where a node's proxy lags, connections still come to the old place.
The same name leads to the same port after a restart, unless another route came first.
"""

import zlib
from typing import Final

from autoscaler.errors import GiveUp

FIRST: Final = 20000
COUNT: Final = 10000


class PortsOfRoutes:
    """Route key -> port, from 20000 to 29999."""

    def __init__(self) -> None:
        self._ports: dict[str, int] = {}
        self._routes: dict[int, str] = {}

    def keep(self, route: str, port: int) -> None:
        """A slice that is in force says so already; unless the port is somebody else's by now."""
        if FIRST <= port < FIRST + COUNT and self._routes.get(port, route) == route:
            self._forget(route)
            self._ports[route], self._routes[port] = port, route

    def of(self, route: str) -> int:
        """The route's port. Raises `GiveUp` when all are taken."""
        port = self._ports.get(route)
        if port is not None:
            return port
        start = zlib.crc32(route.encode())
        for step in range(COUNT):
            port = FIRST + (start + step) % COUNT
            if port not in self._routes:
                self._ports[route], self._routes[port] = port, route
                return port
        raise GiveUp(
            f"no port is left on the activators for {route}: {COUNT} Service ports have one "
            f"already; run another Tidegate for some of the namespaces"
        )

    def _forget(self, route: str) -> None:
        port = self._ports.pop(route, None)
        if port is not None:
            del self._routes[port]
