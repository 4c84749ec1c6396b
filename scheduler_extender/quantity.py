# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities as whole numbers, rounded up: who asks for a bit more is given more. Pure.

Source: k8s.io/apimachinery/pkg/api/resource, the grammar of Quantity.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Final

MIB: Final = 2**20
_SUFFIXES: Final = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
_FORM: Final = re.compile(
    r"\+?([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:([eE][+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)"
)


@lru_cache(maxsize=4096)
def quantity(text: str) -> Fraction:
    """The exact value. Raises ValueError for what is no quantity, and for one below zero."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity such as 500m, 2 or 12Gi")
    number, exponent, suffix = match.groups()
    power = Fraction(10) ** int(exponent[1:]) if exponent else Fraction(1)
    return Fraction(number) * power * _SUFFIXES[suffix or ""]


@lru_cache(maxsize=4096)
def whole(text: str) -> int:
    return -(-quantity(text) // 1)


@lru_cache(maxsize=4096)
def milli(text: str) -> int:
    return -(-quantity(text) * 1000 // 1)


@lru_cache(maxsize=4096)
def mib(text: str) -> int:
    return -(-quantity(text) // MIB)
