# SPDX-License-Identifier: Apache-2.0
"""No card of a mixed node is given both by us and by the device plugin, whatever goes wrong.

The story of `test_no_double_allocation`, on nodes whose kubelets give cards to others: requests for
reservations and for their end are lost, late and repeated too. Judged by the annotations of pods
and by the cards that the kubelets gave.
"""

import asyncio

import pytest

from scheduler_extender.binding import BIND_S
from scheduler_extender.reservations.plan import TELL_S
from scheduler_extender.reservations.reserving import Reserving
from tests.scheduler_extender.builders import Extender, a_node
from tests.scheduler_extender.fakes import Raw
from tests.scheduler_extender.reservations.mixed import FakeReservations, MixedCluster
from tests.scheduler_extender.test_no_double_allocation import FATES, NODES, Story

IDLE_S = 6.0
MIXED = [a_node(node.name, cards=4, mixed=True) for node in NODES]
CARDS = {node.name: [f"GPU-{node.name}-{number}" for number in range(4)] for node in NODES}


class MixedStory(Story):
    def __init__(self, seed: int) -> None:
        self.steps: set[asyncio.Task[None]] = set()
        super().__init__(seed)

    def make_cluster(self) -> MixedCluster:
        self.mixed = MixedCluster(self.clock, CARDS)
        return self.mixed

    def begin(self) -> Extender:
        for task in self.steps:
            task.cancel()
        self.steps.clear()
        self.renewed_at_s, self.listing = self.clock.s, None
        binder = self.make_binder()
        leader = Extender(self.cluster, MIXED, binder)
        pods = FakeReservations(
            self.mixed,
            fate=lambda: self.chance.choice(FATES),
            delay_s=lambda: self.chance.uniform(0, BIND_S),
            gate=binder._gate,
        )
        self.reserving = Reserving(
            leader.state, pods, lease=leader.lease, now_s=self.clock.now_s, idle_s=IDLE_S
        )
        return leader

    @property
    def may_leave(self) -> bool:
        return super().may_leave and self.reserving.settled

    async def preempt(self, leader: Extender) -> None:
        """A card that is told meanwhile may make it needless, which can be known only later."""
        leader.preempting.look(now_s=self.clock.s)
        await leader.preempting.turn(now_s=self.clock.s)

    async def step(self) -> None:
        acts = [self.upkeep] * 4 + [self.kubelets] * 4 + [self.others]
        if self.chance.random() < 0.3:
            act = self.chance.choice(acts)
            self.told[act.__name__] += 1
            await act()
            await self.turn()
        else:
            await super().step()

    async def upkeep(self) -> None:
        if not self.steps:
            task = asyncio.create_task(self.reserving.step())
            self.steps.add(task)
            task.add_done_callback(self.stepped)

    def stepped(self, task: "asyncio.Task[None]") -> None:
        self.steps.discard(task)
        if not task.cancelled():
            task.result()

    async def kubelets(self) -> None:
        """They, the scheduler of others and the reservations' processes do some of their work."""
        for pod in self.some(self.mixed.ending()):
            self.mixed.reap(pod)
        for pod in self.some(self.mixed.waiting()):
            self.mixed.place(pod)
        for pod in self.some(self.mixed.starting()):
            if self.chance.random() < 0.03:
                self.mixed.fail(pod)
            else:
                self.mixed.start(pod, self.chance.choice)
        for pod in self.some(self.mixed.untold()):
            self.mixed.tell(pod)

    async def others(self) -> None:
        plain = [pod for pod in self.mixed.others.values() if pod["metadata"]["namespace"] == "ns"]
        if len(plain) < 8 and self.chance.random() < 0.5:
            self.names += 1
            self.mixed.plain(f"other-{self.names}")
        elif plain:
            meta = self.chance.choice(plain)["metadata"]
            self.mixed.ask_to_end("ns", meta["name"], meta["uid"])

    def some(self, pods: list[Raw]) -> list[Raw]:
        return [pod for pod in pods if self.chance.random() < 0.7]

    def check(self) -> None:
        """Whoever has a share has it on a card that a reservation holds."""
        super().check()
        assert self.by_card().keys() <= self.mixed.held()

    async def calm_down(self) -> None:
        """Nobody waits any more, and what is asked for is done."""
        for pod in [*self.cluster.pods.values()]:
            if not pod["spec"].get("nodeName"):
                self.cluster.delete(pod["metadata"]["name"])
        await super().calm_down()
        for _ in range(10):
            await self.upkeep()
            while self.steps:
                self.leader.binder.go()
                await asyncio.sleep(0)
            await self.pass_time(TELL_S / 4)
            self.mixed.settle_others()
            self.leader.watch.deliver()

    def check_no_leak(self) -> None:
        """Each reservation is for somebody, and each of those has one."""
        super().check_no_leak()
        assert len(self.mixed.reservations()) == len(self.mixed.held())
        assert self.mixed.held() == self.by_card().keys()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_no_card_is_given_by_us_and_by_the_device_plugin(seed: int) -> None:
    story = MixedStory(seed)
    await story.run(bindings=400)
    assert min(story.told[what] for what in ("crash", "hand_over", "list_anew")) > 3, story.told
    assert min(story.mixed.done[what] for what in ("made", "ended")) > 20, story.mixed.done
