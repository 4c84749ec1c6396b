# SPDX-License-Identifier: Apache-2.0
"""How busy a service's GPUs are, by the processes on them; and what is not told."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass, field

import pynvml
import pytest
from structlog.testing import capture_logs

from autoscaler.adapters.gpus.devices import LocalDevice
from autoscaler.adapters.gpus.lineage import lineage
from autoscaler.adapters.gpus.nvml import NvmlDevices
from autoscaler.adapters.gpus.nvml_source import AVERAGED_S, STALE_S, NvmlSignalSource
from autoscaler.core.signals import NoReading, Reading, ServiceId, Signal
from tests.adapters.gpus.fake_nvml import Error, FakeCard, FakeNvml
from tests.adapters.kubernetes.waiting import until
from tests.fakes import FakeClock

LLAMA = ServiceId("local", "llama")
ROSE = ServiceId("local", "rose")


@dataclass
class Machine:
    """GPUs, the replicas that run, and which process began which."""

    cards: list[FakeCard]
    replicas: dict[ServiceId, dict[str, Collection[int]]] = field(default_factory=dict)
    children: dict[int, int] = field(default_factory=dict)  # child -> parent
    clock: FakeClock = field(default_factory=lambda: FakeClock(100.0))

    def __post_init__(self) -> None:
        self.library = FakeNvml(self.cards)
        self.source = NvmlSignalSource(
            NvmlDevices(self.library),
            pids=lambda: self.replicas,
            clock=self.clock,
            lineage=lambda pid: frozenset({pid, self.children.get(pid, pid)}),
        )

    async def look(self, service: ServiceId = LLAMA) -> Reading | NoReading:
        self.source.look()
        return await self.now(service)

    async def now(self, service: ServiceId = LLAMA) -> Reading | NoReading:
        measures = await self.source.measure([service])
        return measures[service][Signal.GPU_UTILIZATION]

    async def why(self) -> str:
        seen = await self.look()
        assert isinstance(seen, NoReading), seen
        return seen.why


def a_card(uuid: str, util: int, *pids: int) -> FakeCard:
    return FakeCard(uuid, util=util, processes=dict.fromkeys(pids, 2**30))


async def test_a_service_is_told_the_sum_of_what_its_replicas_use() -> None:
    """A replica on two cards counts with their mean, by whatever it started."""
    machine = Machine(
        [a_card("A", 40, 11), a_card("B", 80, 12), a_card("C", 30, 20), a_card("D", 90, 99)],
        {LLAMA: {"llama-1": [10], "llama-2": [20]}, ROSE: {"rose-1": [99]}},
        children={11: 10, 12: 10},
    )
    seen = await machine.look()
    assert isinstance(seen, Reading)
    assert seen.value == pytest.approx(0.9)
    assert (seen.share_ratio, seen.source, seen.at_s) == (1.0, "nvml", 100.0)
    rose = await machine.now(ROSE)
    assert isinstance(rose, Reading)
    assert rose.value == 0.9


async def test_a_replica_that_is_on_no_card_lowers_the_share_and_not_the_sum() -> None:
    machine = Machine([a_card("A", 40, 10)], {LLAMA: {"llama-1": [10], "llama-2": [20]}})
    seen = await machine.look()
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (0.4, 0.5)


async def test_a_card_that_does_not_tell_lowers_the_share_of_its_replica() -> None:
    machine = Machine([a_card("A", 40, 10), a_card("B", 0, 10)], {LLAMA: {"llama-1": [10]}})
    machine.cards[1].util = Error(pynvml.NVML_ERROR_NOT_SUPPORTED)
    seen = await machine.look()
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (0.4, 0.5)


async def test_the_last_quarter_minute_is_averaged() -> None:
    machine = Machine([a_card("A", 100, 10)], {LLAMA: {"llama-1": [10]}})
    await machine.look()
    machine.clock.at_s += 1.0
    machine.cards[0].util = 0
    seen = await machine.look()
    assert isinstance(seen, Reading)
    assert seen.value == 0.5
    machine.clock.at_s += AVERAGED_S
    seen = await machine.look()
    assert isinstance(seen, Reading)
    assert seen.value == 0.0


async def test_a_card_that_is_lost_is_no_reading_and_health_says_so() -> None:
    machine = Machine([a_card("A", 0, 10), a_card("B", 0)], {LLAMA: {"llama-1": [10]}})
    assert isinstance(await machine.look(), Reading)
    machine.cards[0].lost = True
    assert "no process" in await machine.why()
    assert machine.source.health().why == "A: GPU is lost"


async def test_a_driver_that_goes_silent_is_no_reading_soon() -> None:
    machine = Machine([a_card("A", 0, 10)], {LLAMA: {"llama-1": [10]}})
    await machine.look()
    machine.clock.at_s += STALE_S
    assert isinstance(await machine.now(), Reading)
    machine.clock.at_s += 1.0
    seen = await machine.now()
    assert isinstance(seen, NoReading)
    assert "has not answered for 6 s" in seen.why
    health = machine.source.health()
    assert (health.age_s, health.why) == (6.0, "the driver has not answered for 6 s")


async def test_without_a_driver_nothing_is_told_which_is_said_once() -> None:
    machine = Machine([], {LLAMA: {"llama-1": [10]}})
    machine.library.broken = Error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with capture_logs() as lines:
        for _ in range(3):
            assert "Driver Not Loaded" in await machine.why()
    assert len(lines) == 1
    health = machine.source.health()
    assert (health.asked, health.failed, health.age_s) == (3, 3, None)
    assert health.why is not None


async def test_before_the_first_look_there_is_no_reading() -> None:
    machine = Machine([a_card("A", 0, 10)], {LLAMA: {"llama-1": [10]}})
    seen = await machine.now()
    assert isinstance(seen, NoReading)
    assert machine.source.health().age_s is None


@pytest.mark.parametrize(
    ("cards", "why"),
    [
        pytest.param([], "knows no GPU", id="no card"),
        pytest.param([FakeCard(util=5)], "which processes", id="processes are not told"),
        pytest.param([FakeCard(util=5, processes={})], "no process", id="nobody on a card"),
        pytest.param([FakeCard(processes={10: None})], "how busy", id="no utilisation"),
    ],
)
async def test_what_cannot_be_known_is_no_reading(cards: list[FakeCard], why: str) -> None:
    assert why in await Machine(cards, {LLAMA: {"llama-1": [10]}}).why()


async def test_a_process_whose_memory_is_not_told_is_on_its_card_all_the_same() -> None:
    card = FakeCard(util=70, processes={10: None})
    seen = await Machine([card], {LLAMA: {"llama-1": [10]}}).look()
    assert isinstance(seen, Reading)
    assert seen.value == 0.7


async def test_a_service_without_a_ready_replica_is_not_told_to_be_idle() -> None:
    assert "no replica is ready" in await Machine([a_card("A", 0)]).why()


async def test_a_thread_looks_for_as_long_as_the_source_runs_and_a_tick_never_waits() -> None:
    held = threading.Event()

    class Slow:
        """A driver that hangs until the test lets it go."""

        def read(self) -> tuple[LocalDevice, ...] | NoReading:
            held.wait(15.0)
            return (LocalDevice("A", utilization_ratio=0.3, processes={10: 1}),)

    source = NvmlSignalSource(
        Slow(),
        pids=lambda: {LLAMA: {"llama-1": [10]}},
        clock=FakeClock(),
        lineage=lambda pid: frozenset({pid}),
    )
    running = asyncio.create_task(source.run())
    await until(lambda: source.health().asked, "the first look begins")
    early = (await source.measure([LLAMA]))[LLAMA][Signal.GPU_UTILIZATION]
    assert isinstance(early, NoReading)
    held.set()
    await until(lambda: source.health().age_s is not None, "the first look ends")
    seen = (await source.measure([LLAMA]))[LLAMA][Signal.GPU_UTILIZATION]
    assert isinstance(seen, Reading)
    assert seen.value == 0.3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(
        lambda: "nvml" not in {thread.name for thread in threading.enumerate()}, "the thread ends"
    )


def run_program(program: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a program that leads a group; the process ids that it writes on its first line."""
    child = subprocess.Popen(  # noqa: S603 - the program is ours
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    return child, [int(word) for word in child.stdout.readline().split()]


def test_a_process_descends_from_whoever_began_it_in_whichever_group() -> None:
    child, (outer, inner) = run_program(
        "import os,subprocess,sys;"
        "inner=subprocess.Popen([sys.executable,'-c','input()'],stdin=subprocess.PIPE,"
        "start_new_session=True);"
        "print(os.getpid(),inner.pid,flush=True);input();inner.communicate(b'\\n')"
    )
    with child:
        assert {inner, outer} <= lineage(inner)
        assert inner not in lineage(outer)
        child.communicate(b"\n")


def test_an_orphan_belongs_to_the_leader_of_its_group() -> None:
    child, (outer, orphan) = run_program(
        "import os,subprocess;"
        "said=subprocess.check_output(['sh','-c','sleep 60 >/dev/null & echo $!']);"
        "print(os.getpid(),int(said),flush=True);input()"
    )
    with child:
        try:
            assert outer in lineage(orphan)
        finally:
            os.kill(orphan, signal.SIGKILL)
            child.communicate(b"\n")


def test_a_process_that_has_ended_is_its_own_only_kin() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert lineage(child.pid) == {child.pid}
