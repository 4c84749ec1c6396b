# SPDX-License-Identifier: Apache-2.0
"""Rounds of one node: what is written, when, and what stands there while the driver is silent."""

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pynvml
import pytest

from scheduler_extender.errors import Unreachable
from scheduler_extender.node_agent.agent import HEARTBEAT, Agent, GpusOnAThread
from scheduler_extender.node_agent.gpus import Gpu, Machine, NotRead
from scheduler_extender.node_agent.nvml import NvmlGpus
from scheduler_extender.node_agent.report import written_of
from scheduler_extender.node_report import GPUS, Enforcement, NodeReport, read_report
from tests.adapters.gpus.fake_nvml import Error
from tests.scheduler_extender.fakes import Clock
from tests.scheduler_extender.node_agent.fake_nvml import FakeCard, FakeNvml, an_instance

GONE = Error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


class FakeNode:
    """`writes`: the annotations of each; `away`: the API server does not answer."""

    def __init__(self) -> None:
        self.writes: list[dict[str, str]] = []
        self.away = False

    async def write(self, annotations: Mapping[str, str]) -> None:
        if self.away:
            raise Unreachable("no answer", after_s=1.0)
        self.writes.append(dict(annotations))

    @property
    def text(self) -> str:
        return self.writes[-1][GPUS]

    @property
    def report(self) -> NodeReport:
        """As the extender reads it."""
        return read_report("n1", self.text)

    @property
    def raw(self) -> Any:
        return orjson.loads(self.text)


@asynccontextmanager
async def an_agent(
    library: FakeNvml,
    node: FakeNode,
    *,
    clock: Clock | None = None,
    level: Enforcement = Enforcement.NONE,
    boot: str = "boot-1",
) -> AsyncIterator[Agent]:
    """One process: what stands on the node is what it begins with."""
    standing = node.text if node.writes else None
    earlier = written_of("n1", standing, boot=boot) if standing else None
    gpus = GpusOnAThread(NvmlGpus(library, xids=earlier.xids if earlier else None))
    try:
        yield Agent(
            "n1",
            gpus=gpus,
            node=node,
            level=lambda _: (level, ""),
            boot=boot,
            heartbeat_s=300.0,
            standing=standing,
            earlier=earlier,
            now_s=(clock or Clock()).now_s,
        )
    finally:
        gpus.close()


async def test_the_extender_reads_what_the_agent_wrote() -> None:
    node = FakeNode()
    one, other = FakeCard("GPU-1"), FakeCard("GPU-2", uncorrected=3)
    async with an_agent(FakeNvml([one, other]), node, level=Enforcement.MPS) as agent:
        made = await agent.round()
    assert made.wrote
    assert node.report == made.report
    assert node.report.gpus.model == "NVIDIA-H100-80GB-HBM3"
    assert node.report.enforcement is Enforcement.MPS
    told = [(card.uuid, card.memory_mib, card.healthy) for card in node.report.gpus.cards]
    assert told == [("GPU-1", 81408, True), ("GPU-2", 81408, False)]
    assert node.report.ill == (("GPU-2", "3 uncorrected memory errors"),)
    assert node.raw["driver"] == "580.95.05"


async def test_it_writes_on_change_only_and_once_in_a_while() -> None:
    node, clock, library = FakeNode(), Clock(), FakeNvml([FakeCard(util=1)])
    async with an_agent(library, node, clock=clock) as agent:
        await agent.round()
        library.cards[0].util = 99
        clock.s += 299
        assert not (await agent.round()).wrote
        clock.s += 1
        assert (await agent.round()).wrote
        first, beat = node.writes
        assert first[GPUS] == beat[GPUS]
        assert HEARTBEAT in beat
        library.cards[0].uncorrected = 1
        assert (await agent.round()).wrote
    assert len(node.writes) == 3


async def test_what_could_not_be_written_is_tried_again() -> None:
    node = FakeNode()
    async with an_agent(FakeNvml([FakeCard()]), node) as agent:
        node.away = True
        made = await agent.round()
        assert (made.wrote, made.trouble) == (False, "no answer")
        node.away = False
        assert (await agent.round()).wrote


async def test_a_driver_that_falls_silent_leaves_all_gpus_and_none_healthy() -> None:
    node, library = FakeNode(), FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2")])
    async with an_agent(library, node) as agent:
        await agent.round()
        library.broken = GONE
        await agent.round()
        cards = node.report.gpus.cards
        assert [(card.uuid, card.memory_mib, card.healthy) for card in cards] == [
            ("GPU-1", 81408, False),
            ("GPU-2", 81408, False),
        ]
        assert all("kernel module" in why for _, why in node.report.ill)
        assert "kernel module" in node.raw["why"]
        library.broken = None
        await agent.round()
    assert all(card.healthy for card in node.report.gpus.cards)
    assert node.raw["why"] == ""


async def test_an_agent_that_starts_without_a_driver_keeps_what_stood_there_as_ill() -> None:
    node, library = FakeNode(), FakeNvml([FakeCard("GPU-1")])
    async with an_agent(library, node) as agent:
        await agent.round()
    library.broken = GONE
    async with an_agent(library, node) as agent:
        await agent.round()
    (card,) = node.report.gpus.cards
    assert (card.uuid, card.healthy) == ("GPU-1", False)


async def test_a_node_of_which_nothing_is_known_has_no_gpus_and_says_why() -> None:
    node = FakeNode()
    async with an_agent(FakeNvml(broken=GONE), node) as agent:
        made = await agent.round()
    assert node.report.gpus.cards == ()
    assert "kernel module" in made.notes[0]


async def test_a_critical_event_outlives_the_agent_but_not_the_boot() -> None:
    node, library = FakeNode(), FakeNvml([FakeCard("GPU-1")])
    async with an_agent(library, node) as agent:
        await agent.round()
        library.xids.append((library.cards[0], 79))
        await agent.round()
    assert node.raw["cards"][0]["xid"] == 79
    for boot, healthy in (("boot-1", False), ("boot-2", True)):
        async with an_agent(library, node, boot=boot) as agent:
            made = await agent.round()
        assert [card.healthy for card in made.report.gpus.cards] == [healthy]


async def test_instances_are_told_with_their_profile_and_the_split_gpu_is_not() -> None:
    node = FakeNode()
    split = FakeCard("GPU-1", instances=[an_instance("MIG-1"), an_instance("MIG-2")])
    async with an_agent(FakeNvml([split]), node) as agent:
        await agent.round()
    told = [(card.uuid, card.profile) for card in node.report.gpus.cards]
    assert told == [("MIG-1", "1g.10gb"), ("MIG-2", "1g.10gb")]


@pytest.mark.parametrize(
    ("level", "slots"),
    [
        pytest.param(Enforcement.NONE, 1, id="a second would find it taken"),
        pytest.param(Enforcement.MPS, 48, id="the one is a server for many"),
    ],
)
async def test_a_gpu_that_takes_one_process(level: Enforcement, slots: int) -> None:
    node = FakeNode()
    card = FakeCard(compute_mode=pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)
    async with an_agent(FakeNvml([card]), node, level=level) as agent:
        await agent.round()
    assert [card.slots for card in node.report.gpus.cards] == [slots]


async def test_a_node_of_several_models_tells_none() -> None:
    node = FakeNode()
    library = FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2", name="NVIDIA L4")])
    async with an_agent(library, node) as agent:
        made = await agent.round()
    assert node.report.gpus.model == ""
    assert made.notes == (
        "GPUs of several models, NVIDIA-H100-80GB-HBM3, NVIDIA-L4: none is told to pods",
    )


async def test_a_driver_that_hangs_is_silent_until_it_answers() -> None:
    answer = threading.Event()

    class Hanging:
        def __init__(self) -> None:
            self.readings = 0

        def read(self) -> Machine:
            self.readings += 1
            answer.wait(30)
            return Machine((Gpu("GPU-1", model="A", memory_mib=1),))

    hanging = Hanging()
    gpus = GpusOnAThread(hanging, limit_s=0.01)
    try:
        for _ in range(2):
            seen = await gpus.read()
            assert isinstance(seen, NotRead)
            assert "no answer within" in seen.why
        assert hanging.readings == 1
        answer.set()
        while isinstance(seen, NotRead):
            seen = await gpus.read()
        assert [gpu.uuid for gpu in seen.gpus] == ["GPU-1"]
    finally:
        answer.set()
        gpus.close()
