# SPDX-License-Identifier: Apache-2.0
"""Only this file ends a listening socket. It loses no connection that the kernel has taken.

Closing such a socket resets every connection that waits in its queue, also those that came since
one last looked. So new ones are kept out first, what waits is accepted, and only then is it closed.
"""

import asyncio
import ctypes
import select
import socket
import struct
import sys

from serving.log import event

_ACCEPT_S = 1.0  # where files have run out nothing is accepted, ever
_HANDSHAKE_S = 0.1  # for the last word of handshakes under way: some round trips of a cluster
_SO_ATTACH_FILTER = 26  # of <asm-generic/socket.h>; Python has no name for it
# For the kernel's classic packet filter, which begins at the TCP header: (code, jt, jf, k).
_NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # load byte 13: the flags
    (0x54, 0, 0, 0x12),  # and SYN|ACK
    (0x15, 0, 1, 0x02),  # SYN alone, the first packet of a connection? else skip one
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF_FFFF),  # pass
)


async def close_to_newcomers(listening: socket.socket) -> None:
    """Let the event loop accept all that reached this socket, so that it can be closed.

    A client that comes meanwhile is not answered; it tries again after a second by itself and is
    refused. Other kernels than Linux cannot do that: there the moment of closing may cost one.
    """
    if sys.platform == "linux":
        _attach_filter(listening)
        await asyncio.sleep(_HANDSHAKE_S)
    waiting = select.poll()
    waiting.register(listening, select.POLLIN)
    now_s = asyncio.get_running_loop().time
    give_up_s = now_s() + _ACCEPT_S
    while waiting.poll(0) and now_s() < give_up_s:  # noqa: ASYNC110  no event tells of it
        await asyncio.sleep(0)


def _attach_filter(listening: socket.socket) -> None:
    program = b"".join(struct.pack("HBBI", *line) for line in _NO_NEW_CONNECTIONS)
    held = ctypes.create_string_buffer(program, len(program))  # until the kernel has copied it
    where = struct.pack("HP", len(_NO_NEW_CONNECTIONS), ctypes.addressof(held))
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, where)
    except OSError as e:  # a sandbox that plays the kernel may lack it
        event("newcomers cannot be kept out before closing", error=str(e))
