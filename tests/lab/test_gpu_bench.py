# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab bench-extender`, small: every pod gets its cards, none is given twice."""

import pytest

from tests.lab import gpu, gpu_bench
from tests.lab.gpu_bench import BEST_FIT, Asked
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_many_pods_are_placed_by_either_way_and_no_card_is_oversubscribed(lab: Lab) -> None:
    asked = Asked(nodes=50, pods=200)
    try:
        ways = gpu_bench.run(lab, asked)
    finally:
        lab.stop_component("kwok")
    assert [one.how for one in ways] == [BEST_FIT, "scored", "picked"]
    for one in ways:
        assert not one.wrong
        assert one.pods_per_s > 0
        # Packed, not spread: a fourth of the nodes would do.
        assert one.nodes_used < asked.nodes / 2
        assert (one.cards_used > 0) == (one.how != BEST_FIT)


def test_a_card_that_is_given_twice_is_found() -> None:
    """The check from annotations can fail."""
    wish = {"gpu-uuids": "GPU-gpu-0000-0", "gpu-mem-mib": "50000", "gpu-core-percent": "40"}
    notes = {f"tidegate.dev/{key}": text for key, text in wish.items()}
    pod = {"metadata": {"name": "p", "annotations": notes}, "spec": {"nodeName": "gpu-0000"}}
    room = {"gpu-0000": {"GPU-gpu-0000-0": 80_000}}
    assert not gpu.doubts([pod], room)
    assert gpu.doubts([pod, pod], room) == ["GPU-gpu-0000-0 gave 100000 of 80000 MiB and 80 %"]
    assert gpu.doubts([pod], {"gpu-0000": {}})
