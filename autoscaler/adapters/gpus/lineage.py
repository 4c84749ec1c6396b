# SPDX-License-Identifier: Apache-2.0
"""Which processes a process descends from. Only this file reads that from the system."""

import os
from pathlib import Path
from typing import Final

DEEPEST: Final = 64  # a tree of processes that is deeper is not followed


def lineage(pid: int) -> frozenset[int]:
    """The process, those it descends from, and the leader of its group.

    The leader stands in for parents that have ended: an orphan keeps its group.
    """
    found = {pid}
    try:
        found.add(os.getpgid(pid))
    except OSError:  # it has ended, or is no process of ours to see
        return frozenset(found)
    parent = _parent(pid)
    while parent is not None and len(found) < DEEPEST:
        found.add(parent)
        parent = _parent(parent)
    return frozenset(found)


def _parent(pid: int) -> int | None:
    """None: it has none, or the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name of the program stands in parentheses and may have any letter in it.
    parent = int(stat.rpartition(")")[2].split()[1])
    return parent if parent > 1 else None
