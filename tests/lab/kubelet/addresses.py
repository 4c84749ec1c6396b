# SPDX-License-Identifier: Apache-2.0
"""The pod addresses of one node: none is given while in use, a freed one rests longest."""

import ipaddress
from collections import deque

from autoscaler.errors import RetryLater


class Addresses:
    """Hands out the hosts of a CIDR, the longest unused first; `taken` are never given."""

    def __init__(self, cidr: str, *, taken: frozenset[str]) -> None:
        hosts = (str(host) for host in ipaddress.ip_network(cidr).hosts())
        self._cidr = cidr
        self._free = deque(host for host in hosts if host not in taken)
        self._used: set[str] = set()

    def take(self, *, wished: str = "") -> str:
        """An address, the wished one if it is free. Raises `RetryLater`."""
        if wished in self._free:
            self._free.remove(wished)
        elif self._free:
            wished = self._free.popleft()
        else:
            raise RetryLater(f"no address of {self._cidr} is free; give a wider one", after_s=1.0)
        self._used.add(wished)
        return wished

    def give_back(self, address: str) -> None:
        if address in self._used:
            self._used.remove(address)
            self._free.append(address)
