# SPDX-License-Identifier: Apache-2.0
"""Fleets and demands as tests want them, and strategies that make them up."""

from hypothesis import strategies as st

from scheduler_extender.core.demand import Demand, Policy
from scheduler_extender.core.gpus import Card, Fleet, NodeGpus

MIB = 16_000


def a_node(
    name: str = "n",
    *,
    cards: int = 4,
    memory_mib: int = MIB,
    model: str = "A100",
    slots: int = 10,
    links: tuple[tuple[int, ...], ...] = (),
    cpu_milli: int | None = None,
    ram_mib: int | None = None,
) -> NodeGpus:
    every = tuple(Card(f"{name}/{i}", memory_mib, slots=slots) for i in range(cards))
    return NodeGpus(name, every, model, links, cpu_milli, ram_mib)


def a_fleet(*nodes: NodeGpus) -> Fleet:
    return Fleet(nodes or (a_node(),))


nodes = st.builds(
    a_node,
    cards=st.integers(1, 5),
    memory_mib=st.sampled_from((8_000, MIB, 46_068)),
    model=st.sampled_from(("A100", "T4", "")),
    slots=st.integers(1, 6),
    cpu_milli=st.none() | st.sampled_from((4_000, 8_000)) | st.integers(0, 64_000),
)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    made = draw(st.lists(nodes, min_size=1, max_size=5))
    return Fleet(
        a_node(
            f"n{i}",
            cards=len(one.cards),
            memory_mib=one.cards[0].memory_mib,
            model=one.model,
            slots=one.cards[0].slots,
            cpu_milli=one.cpu_milli,
        )
        for i, one in enumerate(made)
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    kind = draw(st.sampled_from(("whole", "memory", "percent", "compute", "both")))
    return Demand(
        cards=draw(st.integers(1, 3)),
        whole=kind == "whole",
        memory_mib=draw(st.integers(1, 20_000)) if kind in ("memory", "both") else 0,
        memory_milli=draw(st.integers(1, 1000)) if kind == "percent" else 0,
        milli=draw(st.integers(1, 1000)) if kind in ("compute", "both") else 0,
        models=draw(st.sampled_from(((), ("A100",), ("A100", "T4")))),
        policy=draw(st.sampled_from(tuple(Policy))),
        cpu_milli=draw(st.sampled_from((0, 4_000)) | st.integers(0, 20_000)),
        mesh=draw(st.sampled_from(("", "", "mesh"))),
        apart=draw(st.booleans()),
    )
