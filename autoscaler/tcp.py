# SPDX-License-Identifier: Apache-2.0
"""What both ends of a long TCP connection ask of the kernel, so that a vanished peer is noticed.

A machine that loses its power sends no farewell. Without this, a side that only listens would wait
for it for ever, and one that writes for a quarter of an hour.
"""

import socket
from typing import Final

IDLE_S: Final = 2  # silence after which the kernel asks whether the peer is still there ...
INTERVAL_S: Final = 1  # ... again and again at this pace ...
UNANSWERED: Final = 3  # ... until so many of its questions got no answer
UNACKNOWLEDGED_S: Final = 5  # and so long what was written may stay unacknowledged


def notice_loss(sock: socket.socket) -> None:
    """Have the kernel end this connection within seconds of its peer's vanishing."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, UNANSWERED)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_S * 1000)
