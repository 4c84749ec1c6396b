# SPDX-License-Identifier: Apache-2.0
"""How one value that a user wrote is read from text, and how a wrong one is told.

Every reader raises `Unreadable` and nothing else. Which keys there are is `contract.py`'s to say.
"""

import re
from collections.abc import Callable, Collection
from difflib import get_close_matches

DURATION = "a duration such as 200ms, 90s, 10m or 1h30m"
BYTES = "bytes such as 512Ki, 64Mi or 2Gi"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

# Beyond any use, and still exact as a double and as a number on the wire.
LONGEST_S = 365 * 86400.0
LARGEST_BYTES = 2**50
LARGEST_RATIO = 1e6
SHOWN_MOST = 200  # characters of a wrong value that are repeated to who wrote it


class Unreadable(ValueError):
    """A value that does not fit its key; the message says what is wrong with it, where known."""


def duration_s(text: str) -> float:
    """Seconds from `1h30m`, `200ms`, `0s`."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise Unreadable
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > LONGEST_S:
        raise Unreadable("at most 365d")
    return seconds


def positive_s(text: str) -> float:
    """Seconds above 0."""
    seconds = duration_s(text)
    if seconds <= 0:
        raise Unreadable
    return seconds


def size_bytes(text: str) -> int:
    """Bytes from `64Mi`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|Ti|)", text.strip())
    if not match:
        raise Unreadable
    size = float(match[1]) * _BYTES[match[2]]
    if size > LARGEST_BYTES:
        raise Unreadable("at most 1024Ti")
    return int(size)


def percent_ratio(text: str) -> float:
    """0.1 from `10%`."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text):
        raise Unreadable(f"{text!r} is not a percentage such as 10%")
    ratio = float(text[:-1]) / 100
    if ratio > LARGEST_RATIO:
        raise Unreadable(f"at most {LARGEST_RATIO * 100:.0f}%")
    return ratio


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reader of a whole number within two bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not least <= int(text) <= most:
            raise Unreadable
        return int(text)

    return read


def flag(text: str) -> bool:
    """`true` or `false`, and no other word for them."""
    if text not in ("true", "false"):
        raise Unreadable
    return text == "true"


def parts(text: str, separator: str) -> list[str]:
    """The pieces between separators, without blanks around them and without empty ones."""
    return [part.strip() for part in text.split(separator) if part.strip()]


def unknown(name: str, permitted: Collection[str]) -> str:
    """What is said of a key that does not exist."""
    return f"unknown key{nearest(name, permitted)}; permitted: {', '.join(permitted)}"


def refused(value: object, permitted: str, why: str = "") -> str:
    """What is said of a value out of range."""
    detail = f" ({shortened(why)})" if why else ""
    return f"{shortened(repr(value))} is not permitted{detail}; permitted: {permitted}"


def nearest(name: str, permitted: Collection[str]) -> str:
    """`, did you mean 'x'?` where something permitted is spelt nearly so; else nothing."""
    close = get_close_matches(name[:SHOWN_MOST], list(permitted), n=1, cutoff=0.6)
    return f", did you mean {str(close[0])!r}?" if close else ""


def shortened(text: str, most: int = SHOWN_MOST) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def unknown_key(shown: str, name: str, permitted: Collection[str]) -> str:
    """The line for a key that does not exist."""
    return f"{shown}: {unknown(name, permitted)}"


def bad_value(shown: str, value: object, permitted: str, why: str = "") -> str:
    """The line for a value out of range."""
    return f"{shown}: {refused(value, permitted, why)}"
