# SPDX-License-Identifier: Apache-2.0
"""Who gets which core."""

import pytest

from autoscaler.bench.cores import Cores, cores_of_list, divide


def alone(*cores: int) -> dict[int, frozenset[int]]:
    """Cores without hyperthreads."""
    return {core: frozenset({core}) for core in cores}


def paired(*pairs: tuple[int, int]) -> dict[int, frozenset[int]]:
    """Cores of two hyperthreads each."""
    return {core: frozenset(pair) for pair in pairs for core in pair}


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        (alone(0), Cores(proxy=0, backend=0, client=0)),
        (alone(0, 1), Cores(proxy=1, backend=0, client=0)),
        (alone(2, 5, 7), Cores(proxy=7, backend=2, client=5)),
        (alone(0, 1, 2, 3), Cores(proxy=3, backend=0, client=2)),
        (paired((0, 1)), Cores(proxy=1, backend=0, client=0)),
        (paired((0, 1), (2, 3)), Cores(proxy=3, backend=0, client=1)),
        (paired((0, 2), (1, 3)), Cores(proxy=3, backend=0, client=2)),
        (paired((0, 1), (2, 3), (4, 5)), Cores(proxy=5, backend=0, client=3)),
    ],
    ids=[
        "one core is everybody's",
        "of two cores client and backend share the first",
        "three cores are three's",
        "of four cores one is left over",
        "two hyperthreads are better than one",
        "client and backend leave the proxy's silicon to it",
        "whichever way hyperthreads are numbered",
        "with three pairs each has its own",
    ],
)
def test_cores_are_divided(siblings: dict[int, frozenset[int]], expected: Cores) -> None:
    assert divide(siblings) == expected


def test_the_division_says_who_shares() -> None:
    assert divide(alone(0)).proxy_shares
    assert not divide(alone(0, 1)).proxy_shares
    assert divide(alone(0, 1)).client_shares
    assert not divide(alone(0, 1, 2)).client_shares


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0\n", {0}), ("0,2\n", {0, 2}), ("0-3", {0, 1, 2, 3}), ("1-2,7", {1, 2, 7})],
)
def test_the_kernels_lists_are_read(text: str, cores: set[int]) -> None:
    assert cores_of_list(text) == cores
