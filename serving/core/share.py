# SPDX-License-Identifier: Apache-2.0
"""The pod's share of GPUs: what its environment says, whether it is what one sees, what fits in.

The variables come from annotations that were written when the pod was bound. They are empty in a
pod that was bound by another hand: it was given nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

UUIDS: Final = "TIDEGATE_GPU_UUIDS"
MEMORY_MIB: Final = "TIDEGATE_GPU_MEMORY_MIB"
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Share:
    """`memory_mib`: on each GPU; None: nobody said how much."""

    uuids: tuple[str, ...]
    memory_mib: int | None = None

    @property
    def memory_bytes(self) -> int | None:
        """For all models together."""
        return None if self.memory_mib is None else self.memory_mib * len(self.uuids) * MIB


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An environment that makes no sense."""

    why: str


def share_of(environment: Mapping[str, str]) -> Share | Unreadable | None:
    """None: nobody speaks of shares here, as on a machine of one's own."""
    if UUIDS not in environment:
        return None
    uuids = tuple(uuid.strip() for uuid in environment[UUIDS].split(",") if uuid.strip())
    memory = environment.get(MEMORY_MIB, "").strip()
    if memory and not (memory.isascii() and memory.isdecimal()):
        return Unreadable(
            f"{MEMORY_MIB}: {memory!r} is no number of MiB; it is what the annotation "
            "tidegate.dev/gpu-mem-mib of the pod says, as a whole number"
        )
    return Share(uuids, int(memory or 0) or None)


def mismatch(share: Share, seen: Iterable[str]) -> str:
    """Why these GPUs are not those of the share; empty: they are."""
    given, found = set(share.uuids), set(seen)
    words = []
    if missing := sorted(given - found):
        words.append(f"{', '.join(missing)} cannot be seen")
    if strange := sorted(found - given):
        words.append(f"{', '.join(strange)} can be seen and belong to others")
    if not words:
        return ""
    return (
        f"{UUIDS} gives this pod {', '.join(share.uuids) or 'no GPU'}, but {' and '.join(words)}; "
        "is NVIDIA_VISIBLE_DEVICES set from the same annotation, and its runtime in use?"
    )


def no_room(needs_bytes: int, *, taken_bytes: int, limit_bytes: int | None) -> str:
    """Why one more model does not fit beside those that are loaded; empty: it does."""
    if limit_bytes is None or taken_bytes + needs_bytes <= limit_bytes:
        return ""
    left = max(0, limit_bytes - taken_bytes)
    return (
        f"it takes {_mib(needs_bytes)}, and {_mib(left)} are left of the {_mib(limit_bytes)} that "
        f"{MEMORY_MIB} gives this pod; ask for more by tidegate.dev/gpu-memory, or serve fewer"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"
