# SPDX-License-Identifier: Apache-2.0
"""How many files and sockets this process may have open."""

import resource


def raise_descriptor_limit() -> int:
    """Let this process open as many descriptors as it may; returns how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
