# SPDX-License-Identifier: Apache-2.0
"""How GPUs are linked: more links are a larger number, and any NVLink beats any PCI."""

import pynvml

from scheduler_extender.node_agent.gpus import Links, NotRead
from scheduler_extender.node_agent.nvml import NvmlGpus
from tests.scheduler_extender.node_agent.fake_nvml import FakeCard, FakeNvml, an_instance


def cards(count: int) -> list[FakeCard]:
    return [FakeCard(f"GPU-{index}", bus=index) for index in range(count)]


def join(one: FakeCard, other: FakeCard, *, links: int) -> None:
    one.nvlinks += [other] * links
    other.nvlinks += [one] * links


def links(library: FakeNvml) -> Links:
    seen = NvmlGpus(library).read()
    assert not isinstance(seen, NotRead)
    return seen.links


def pair(one: FakeCard, other: FakeCard) -> frozenset[str]:
    return frozenset({one.uuid, other.uuid})


def test_straight_links_count_and_pci_comes_after_them() -> None:
    a, b, c = cards(3)
    join(a, b, links=2)
    join(b, c, links=1)
    ways = {pair(a, c): pynvml.NVML_TOPOLOGY_SYSTEM}
    assert links(FakeNvml([a, b, c], ways=ways)) == ((0, 200, 10), (200, 0, 100), (10, 100, 0))


def test_through_switches_a_pair_has_what_the_lesser_has() -> None:
    a, b, c = cards(3)
    a.nvlinks, b.nvlinks, c.nvlinks = [None] * 4, [None] * 4, [None] * 2
    assert links(FakeNvml([a, b, c])) == ((0, 400, 200), (400, 0, 200), (200, 200, 0))


def test_the_nearer_way_over_pci_is_the_better() -> None:
    a, b, c, d = cards(4)
    levels = [
        pynvml.NVML_TOPOLOGY_INTERNAL,
        pynvml.NVML_TOPOLOGY_SINGLE,
        pynvml.NVML_TOPOLOGY_MULTIPLE,
        pynvml.NVML_TOPOLOGY_HOSTBRIDGE,
        pynvml.NVML_TOPOLOGY_NODE,
        pynvml.NVML_TOPOLOGY_SYSTEM,
    ]
    pairs = [pair(a, b), pair(a, c), pair(a, d), pair(b, c), pair(b, d), pair(c, d)]
    rows = links(FakeNvml([a, b, c, d], ways=dict(zip(pairs, levels, strict=True))))
    told = [rows[0][1], rows[0][2], rows[0][3], rows[1][2], rows[1][3], rows[2][3]]
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == 6
    assert min(told) > 0


def test_where_all_pairs_are_alike_there_is_nothing_to_tell() -> None:
    every = cards(8)
    for card in every:
        card.nvlinks = [None] * 18
    assert links(FakeNvml([*every])) == ()
    assert links(FakeNvml([*cards(1)])) == ()


def test_instances_of_a_split_gpu_have_no_links() -> None:
    a, b, c = cards(3)
    join(b, c, links=1)
    a.instances = [an_instance("MIG-1")]
    assert links(FakeNvml([a, b, c])) == ((0, 0, 0), (0, 0, 100), (0, 100, 0))


def test_links_are_asked_once_for_the_same_gpus() -> None:
    a, b = cards(2)
    library = FakeNvml([a, b], ways={pair(a, b): pynvml.NVML_TOPOLOGY_NODE})
    gpus = NvmlGpus(library)
    gpus.read()
    asked = library.topologies_asked
    gpus.read()
    assert library.topologies_asked == asked > 0
