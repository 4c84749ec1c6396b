# SPDX-License-Identifier: Apache-2.0
"""A network of its own for the process that calls, with an address for every pod and Service.

After `enter` the caller's main thread, and whatever it starts, is in the new network: a test can
connect straight to a ClusterIP. Nothing of it is seen outside, and it ends with its last process.
"""

import ctypes
import os
import shutil
import subprocess
from typing import Final

NODE_IP: Final = "10.244.255.1"
POD_NETWORK: Final = "10.244.0.0/16"
SERVICE_NETWORK: Final = "10.96.0.0/16"
DNS_IP: Final = NODE_IP  # what is sent to a ClusterIP without a Service, kube-proxy drops

_CLONE_NEWNET: Final = 0x40000000

# Without `src` a connection to a ClusterIP would come from that very address, and find no way back.
_SETUP: Final = (
    "link set lo up",
    f"addr add {NODE_IP}/32 dev lo",
    f"route add local {POD_NETWORK} dev lo src {NODE_IP}",
    f"route add local {SERVICE_NETWORK} dev lo src {NODE_IP}",
)


def why_impossible() -> str | None:
    """What this machine lacks for a network of one's own; None: nothing."""
    if os.geteuid() != 0:
        return "a network namespace needs root; run as root"
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("openssl", "openssl")):
        if which(program) is None:
            return f"there is no {program}; install {package}"
    return None


def which(program: str) -> str | None:
    """Where a program lies, also if only root's PATH has its folder."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def enter() -> None:
    """Move the calling thread into a new network and give it its addresses. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    for words in _SETUP:
        subprocess.run(["ip", *words.split()], check=True)  # noqa: S603, S607  the words above
