# SPDX-License-Identifier: Apache-2.0
"""What was in vain is left alone for a while, and for twice as long each time that it is again."""

from dataclasses import dataclass
from math import inf
from typing import Final

# In vain that long ago, in times of the longest back-off, is forgotten.
_FORGOTTEN: Final = 2


@dataclass(frozen=True, slots=True)
class _Vain:
    times: int
    since_s: float


class Backoff:
    """By UID. `free`: so many times there is no consequence. Times are on the caller's clock."""

    def __init__(self, *, first_s: float, most_s: float, free: int = 0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._free = free
        self._vain: dict[str, _Vain] = {}

    def again(self, uid: str, *, now_s: float) -> None:
        """It was in vain."""
        known = self._vain.get(uid)
        self._vain[uid] = _Vain(known.times + 1 if known is not None else 1, now_s)

    def over(self, uid: str) -> None:
        """It was of use."""
        self._vain.pop(uid, None)

    def times(self, uid: str) -> int:
        """How often it was in vain."""
        vain = self._vain.get(uid)
        return vain.times if vain is not None else 0

    def until_s(self, uid: str) -> float:
        """Until when to leave it alone; -inf where there is no reason to."""
        vain = self._vain.get(uid)
        if vain is None or vain.times <= self._free:
            return -inf
        doublings = min(vain.times - self._free - 1, 30)
        return vain.since_s + min(self._first_s * 2.0**doublings, self._most_s)

    def look(self, *, now_s: float) -> None:
        """Forget what was long ago, whatever became of it."""
        for uid, vain in tuple(self._vain.items()):
            if now_s - vain.since_s > _FORGOTTEN * self._most_s:
                del self._vain[uid]
