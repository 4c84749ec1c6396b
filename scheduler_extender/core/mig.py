# SPDX-License-Identifier: Apache-2.0
"""Where MIG instances can stand on a card. Slots of memory are numbered; no two instances overlap.

A card of eight slots takes an instance only at the starts that its profile permits, so the order
in which instances come decides what still fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of instance: how many slots it takes, and at which it may begin."""

    size: int
    starts: tuple[int, ...]
    memory_mib: int = 0
    milli: int = 0

    def places(self) -> Sequence[tuple[int, int]]:
        """(start, size), in the order in which they are taken.

        Small odd pieces and the ones of half a card go high, all others low: so the low slots stay
        whole for pieces that must begin there.
        """
        high = self.size in (1, 4)
        return [(start, self.size) for start in sorted(self.starts, reverse=high)]


Profiles = Mapping[str, Profile]
Places = Sequence[tuple[int, int]]  # (start, size) of instances that are there


def place(profile: Profile, taken: Places) -> int | None:
    """Where the next instance begins; None where it does not fit beside those that are there."""
    for start, size in profile.places():
        if all(start + size <= other or other + long <= start for other, long in taken):
            return start
    return None


def place_all(
    profiles: Profiles, order: Sequence[str], taken: Places = ()
) -> tuple[int, ...] | None:
    """Where each instance begins when they come in this order; None where one does not fit."""
    now, starts = list(taken), []
    for name in order:
        start = place(profiles[name], now)
        if start is None:
            return None
        now.append((start, profiles[name].size))
        starts.append(start)
    return tuple(starts)


def feasible(profiles: Profiles, wanted: Sequence[str], taken: Places = ()) -> bool:
    """Whether all the instances fit on the card together, wherever each of them stands."""
    if not wanted:
        return True
    # The largest first: it has the fewest places, so a dead end shows early.
    largest = max(wanted, key=lambda name: profiles[name].size)
    rest = list(wanted)
    rest.remove(largest)
    return any(
        feasible(profiles, rest, [*taken, (start, size)])
        for start, size in profiles[largest].places()
        if all(start + size <= other or other + long <= start for other, long in taken)
    )


def for_memory(profiles: Profiles, memory_mib: int, taken: Places = ()) -> tuple[str, int] | None:
    """The smallest profile with that much memory that fits, and where its instance begins."""
    for name, profile in sorted(profiles.items(), key=lambda item: item[1].memory_mib):
        start = place(profile, taken) if profile.memory_mib >= memory_mib else None
        if start is not None:
            return name, start
    return None
