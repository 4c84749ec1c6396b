# SPDX-License-Identifier: Apache-2.0
"""No card is ever given twice, and none is lost, whatever goes wrong between any two calls.

Judged by the annotations in the API server alone. Thousands of Bindings, while requests and replies
are lost, delayed and repeated, pods are deleted, and evicted for others of higher priority,
processes crash and the lead changes hands.
"""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from scheduler_extender.binding import BIND_S
from scheduler_extender.core import annotations as named
from scheduler_extender.errors import NotLeading
from scheduler_extender.state import HOLD_S
from tests.scheduler_extender.builders import CARD_MIB, Extender, a_node
from tests.scheduler_extender.fakes import Clock, FakeBinder, FakeCluster, Fate

LEASE_S = 15.0  # from a leader's last renewal until another may lead
DEADLINE_S = 10.0  # from a leader's last renewal until it leads no more
NODES = [a_node(f"n{index}", cards=4) for index in range(6)]
NAMES = [node.name for node in NODES]
WISHES: list[dict[str, str]] = [
    {named.COUNT: "1"},
    {named.COUNT: "2"},
    {named.MEMORY: "10000Mi"},
    {named.MEMORY: "19000Mi", named.CORE: "50%"},
    {named.MEMORY: "25%"},
    {named.CORE: "30%"},
    {named.COUNT: "2", named.MEMORY: "12Gi"},
]
PRIORITIES = [0, 0, 0, 10, 100]
FATES = [Fate.ANSWERED] * 6 + [Fate.REPLY_LOST, Fate.REQUEST_LOST, Fate.LATE, Fate.BUSY]


class Story:
    """A cluster, its leader, and chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.cluster = self.make_cluster()
        self.names = 0
        self.checked = -1
        self.tasks: set[asyncio.Task[str]] = set()
        self.told: Counter[str] = Counter()
        self.leader = self.begin()
        self.settling = asyncio.create_task(self.settle(self.leader))
        self.preempting = asyncio.create_task(self.preempt(self.leader))

    def make_cluster(self) -> FakeCluster:
        return FakeCluster(self.clock)

    def begin(self) -> Extender:
        """A new process that has just won the Lease, and lists after that."""
        self.renewed_at_s = self.clock.s
        self.listing: tuple[list[dict[str, Any]], float] | None = None
        return Extender(self.cluster, NODES, self.make_binder())

    def make_binder(self) -> FakeBinder:
        return FakeBinder(
            self.cluster,
            fate=lambda: self.chance.choice(FATES),
            delay_s=lambda: self.chance.uniform(0, BIND_S),
            gated=lambda: self.chance.random() < 0.5,
        )

    async def run(self, *, bindings: int) -> None:
        """Until so many were made; checked at each step, and whenever all has come to rest."""
        while self.cluster.bound < bindings:
            for _ in range(500):
                await self.step()
                self.check()
            await self.calm_down()
            self.check()
            self.check_no_leak()
        self.kill()
        await self.turn()

    async def step(self) -> None:
        acts = [self.arrive] * 8 + [self.retry] * 6 + [self.answer] * 14 + [self.hear] * 8
        acts += [self.leave] * 7 + [self.wait] * 4 + [self.again] * 2 + [self.read_list]
        acts += [self.crash, self.hand_over, self.list_anew] if self.chance.random() < 0.15 else []
        act = self.chance.choice(acts)
        self.told[act.__name__] += 1
        await act()
        await self.turn()

    async def turn(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def arrive(self) -> None:
        self.names += 1
        name = f"p{self.chance.randrange(400)}"  # names come again, UIDs never
        if ("ns", name) not in self.cluster.pods:
            wish = self.chance.choice(WISHES)
            priority = self.chance.choice(PRIORITIES)
            pod = self.cluster.create(
                name, uid=f"uid-{self.names}", annotations=wish, priority=priority
            )
            self.schedule(pod)

    async def retry(self) -> None:
        pending = [p for p in self.cluster.pods.values() if not p["spec"].get("nodeName")]
        if pending:
            self.schedule(self.chance.choice(pending))

    def schedule(self, pod: dict[str, Any]) -> None:
        asked = self.chance.sample(NAMES, self.chance.randint(1, len(NAMES)))
        try:
            found = self.leader.filter(pod, *asked)
        except NotLeading:
            return
        assert set(found["NodeNames"]) <= set(asked)
        # Now and then a node that was not said to fit, as a filter of a moment ago might have.
        nodes = found["NodeNames"] if self.chance.random() < 0.9 else asked
        if nodes:
            node = self.chance.choice(nodes)
            for _ in range(self.chance.choice([1, 1, 1, 2])):
                self.start(pod, node)

    def start(self, pod: dict[str, Any], node: str) -> None:
        task = asyncio.create_task(self.leader.bind(pod, node))
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: "asyncio.Task[str]") -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            assert error is None or isinstance(error, NotLeading), error
            if error is None:
                self.told["answered " + ("no" if task.result() else "yes")] += 1

    async def again(self) -> None:
        """kube-scheduler tries a pod that is bound already: its reply was lost."""
        bound = self.cluster.running()
        if bound:
            pod = self.chance.choice(bound)
            node = self.chance.choice([pod["spec"]["nodeName"], self.chance.choice(NAMES)])
            self.start(pod, node)

    async def answer(self) -> None:
        self.leader.binder.go(self.chance.randrange(8))

    async def hear(self) -> None:
        if self.listing is None:  # a client that lists has no watch
            self.leader.watch.deliver(self.chance.randint(1, 20))

    async def list_anew(self) -> None:
        """A list is asked for, taken and read at three different times."""
        if self.listing is None:
            began_s = self.clock.s
            await self.pass_time(self.chance.uniform(0, 2))
            self.listing = self.leader.watch.begin_list(), began_s

    async def read_list(self) -> None:
        if self.listing is not None:
            pods, began_s = self.listing
            self.listing = None
            self.leader.watch.finish_list(pods, began_s=began_s)

    async def leave(self) -> None:
        if self.cluster.pods and (len(self.cluster.pods) > 60 or self.chance.random() < 0.4):
            _, name = self.chance.choice(list(self.cluster.pods))
            self.chance.choice([self.cluster.delete, self.cluster.end])(name)
        for (_, name), pod in tuple(self.cluster.pods.items()):
            if "deletionTimestamp" in pod["metadata"] and self.chance.random() < 0.3:
                self.cluster.delete(name)

    async def wait(self) -> None:
        await self.pass_time(self.chance.expovariate(0.3))
        if self.settling.done():
            self.settling = asyncio.create_task(self.settle(self.leader))
        if self.preempting.done():
            self.preempting = asyncio.create_task(self.preempt(self.leader))

    async def preempt(self, leader: Extender) -> None:
        now_s, victims = self.clock.s, len(leader.evictor.pairs)
        leader.preempting.look(now_s=now_s)
        await leader.preempting.turn(now_s=now_s)
        for victim, preemptor in leader.evictor.pairs[victims:]:
            self.told["evicted"] += 1
            assert victim["spec"]["priority"] < preemptor.priority

    async def settle(self, leader: Extender) -> str:
        await leader.binds.settle()
        return ""

    async def pass_time(self, seconds: float) -> None:
        """The leader renews its Lease on the way, and requests that were late arrive."""
        self.clock.s += seconds
        self.renewed_at_s = self.clock.s
        self.cluster.land_late()

    async def crash(self) -> None:
        """The next one leads once the Lease has expired; requests of the dead one still land."""
        self.kill()
        self.clock.s = self.renewed_at_s + LEASE_S
        self.cluster.land_late()
        self.leader = self.begin()

    async def hand_over(self) -> None:
        """Cut off from the API server it steps back; stopped in good order it leaves at once."""
        if self.may_leave:
            self.leader.lease.leading = False
            self.cluster.land_late()
            self.leader = self.begin()
            return
        self.clock.s = self.renewed_at_s + DEADLINE_S
        self.leader.lease.leading = False
        for _ in range(self.leader.binder.waiting):
            self.leader.binder.go()
            await asyncio.sleep(0)
        await self.crash()

    @property
    def may_leave(self) -> bool:
        """Whether nothing that was asked for can still take effect."""
        return self.leader.binds.settled

    @property
    def settled(self) -> bool:
        return self.settling.done() and self.preempting.done()

    def kill(self) -> None:
        self.leader.lease.leading = False
        self.leader.binder.die()

    def check(self) -> None:
        """From the annotations alone: who has what of which card."""
        if self.checked == len(self.cluster.history):
            return
        self.checked = len(self.cluster.history)
        if self.preempting.done():
            self.preempting.result()
        for uuid, having in self.by_card().items():
            assert sum(memory for memory, _ in having) <= CARD_MIB, uuid
            assert sum(milli for _, milli in having) <= 1000, uuid
            assert len(having) == 1 or all(milli < 1000 for _, milli in having), uuid

    def by_card(self) -> dict[str, list[tuple[int, int]]]:
        cards: dict[str, list[tuple[int, int]]] = {}
        for pod in self.cluster.running():
            notes, node = pod["metadata"]["annotations"], pod["spec"]["nodeName"]
            for uuid in notes[named.GRANTED_UUIDS].split(","):
                assert uuid.startswith(f"GPU-{node}-")
                part = int(notes[named.GRANTED_MIB]), int(notes[named.GRANTED_CORE]) * 10
                cards.setdefault(uuid, []).append(part)
        return cards

    async def calm_down(self) -> None:
        """Everything under way ends, and the watch catches up."""
        await self.read_list()
        for _ in range(3):
            while self.leader.binder.waiting or self.tasks or not self.settled:
                self.leader.binder.go()
                await asyncio.sleep(0)
            self.clock.s += HOLD_S
            self.cluster.land_late()
            self.leader.watch.deliver()
            await self.wait()

    def check_no_leak(self) -> None:
        fleet, cards = self.leader.state.fleet, self.by_card()
        assert not self.leader.state.doubts()
        for node in NODES:
            row = fleet.row_of[node.name]
            for index, card in enumerate(fleet.nodes[node.name].cards):
                having = cards.get(card.uuid, [])
                taken = CARD_MIB - fleet.memory_free[row, index]
                assert taken == sum(memory for memory, _ in having), card.uuid
                assert 1000 - fleet.milli_free[row, index] == sum(milli for _, milli in having)
            assert not self.leader.state.audit(node.name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
async def test_no_card_is_given_twice_and_none_is_lost(seed: int) -> None:
    story = Story(seed)
    await story.run(bindings=1250)
    assert min(story.told[act] for act in ("crash", "hand_over", "list_anew")) > 10, story.told
    assert story.told["evicted"] > 10, story.told
