# SPDX-License-Identifier: Apache-2.0
"""Nodes that we share with a device plugin: our cards are those that reservations hold."""

from dataclasses import dataclass, field, replace
from itertools import permutations

from scheduler_extender.core import annotations as named
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.preemption.preempting import PATIENCE_S
from scheduler_extender.reservations.plan import ASKED_S, BACKOFF_S, IDLE_S, MOST_PODS, TELL_S
from scheduler_extender.reservations.reserving import Reserving
from tests.scheduler_extender.builders import CARD_MIB, OURS, Extender, a_node
from tests.scheduler_extender.fakes import Clock, FakeBinder, Fate, Raw, a_pod
from tests.scheduler_extender.reservations.mixed import FakeReservations, MixedCluster

WHOLE = {named.COUNT: "1"}
PAIR = {named.COUNT: "2"}
THIRD = {named.MEMORY: f"{CARD_MIB // 3}Mi"}


@dataclass
class World:
    """An extender, its upkeep and a cluster of mixed nodes, `n0` and so on."""

    nodes: list[NodeSeen]
    fates: list[Fate] = field(default_factory=list)

    def __post_init__(self) -> None:
        cards = {
            node.name: [f"GPU-{node.name}-{n}" for n in range(node.plugin)] for node in self.nodes
        }
        self.cluster = MixedCluster(Clock(), cards)
        self.begin()

    def begin(self) -> None:
        """A new process leads."""
        self.extender = Extender(self.cluster, self.nodes, FakeBinder(self.cluster))
        self.asked = FakeReservations(
            self.cluster, fate=lambda: self.fates.pop(0) if self.fates else Fate.ANSWERED
        )
        self.reserving = Reserving(
            self.extender.state,
            self.asked,
            lease=self.extender.lease,
            now_s=self.cluster.clock.now_s,
        )

    async def upkeep(self, *, after_s: float = 1.0) -> None:
        self.cluster.clock.s += after_s
        self.cluster.land_late()
        await self.reserving.step()
        self.extender.watch.deliver()

    async def preempts(self) -> None:
        self.cluster.clock.s += PATIENCE_S
        self.extender.preempting.look(now_s=self.cluster.clock.s)
        await self.extender.preempting.turn(now_s=self.cluster.clock.s)

    async def settle(self) -> None:
        """What was asked for is made and told."""
        for _ in range(2):
            await self.upkeep()
            self.cluster.settle_others()
            self.extender.watch.deliver()

    def pod(self, name: str, asked: dict[str, str]) -> Raw:
        return self.cluster.create(name, uid=f"uid-{name}", annotations=asked)

    def fits(self, pod: Raw) -> list[str]:
        found = self.extender.pick(pod, *(node.name for node in self.nodes))["NodeNames"]
        assert isinstance(found, list)
        return found

    async def placed(self, name: str, asked: dict[str, str]) -> str:
        """Refused at first, then reserved for and bound; returns its cards."""
        pod = self.pod(name, asked)
        if not self.fits(pod):
            await self.settle()
        node = self.fits(pod)[0]
        assert await self.extender.bind(pod, node) == ""
        self.extender.watch.deliver()
        return str(self.cluster.pods["ns", name]["metadata"]["annotations"][named.GRANTED_UUIDS])

    async def deleted_by_hand(self) -> None:
        """The only reservation; the extender has seen it in use before."""
        await self.upkeep()
        (pod,) = self.cluster.reservations()
        self.cluster.ask_to_end(OURS, pod["metadata"]["name"], pod["metadata"]["uid"])
        self.extender.watch.deliver()

    def gone(self, name: str) -> None:
        self.cluster.delete(name)
        self.extender.watch.deliver()


def world(*cards: int, fates: list[Fate] | None = None) -> World:
    nodes = [a_node(f"n{index}", cards=count, mixed=True) for index, count in enumerate(cards)]
    return World(nodes, fates or [])


async def test_a_card_that_is_not_reserved_is_given_to_nobody() -> None:
    it = world(2)
    for wish in (WHOLE, THIRD):
        refused = it.extender.pick(a_pod("p", annotations=wish), "n0")
        assert refused["FailedNodes"] == {"n0": "GPUs unhealthy, cordoned or not reserved"}


async def test_a_share_that_waits_has_one_card_reserved_and_gets_that_one() -> None:
    it = world(2)
    assert await it.placed("a", THIRD) in it.cluster.held()
    assert len(it.cluster.reservations()) == 1


async def test_shares_that_go_together_wait_for_one_card() -> None:
    it = world(2)
    pods = [it.pod(f"p{number}", THIRD) for number in range(3)]
    assert not any(map(it.fits, pods))
    await it.settle()
    assert len(it.cluster.reservations()) == 1
    for pod in pods:
        assert await it.extender.bind(pod, it.fits(pod)[0]) == ""


async def test_a_fourth_share_takes_the_rest_of_no_card_and_has_a_second_reserved() -> None:
    it = world(2)
    cards = {await it.placed(f"p{number}", THIRD) for number in range(4)}
    assert cards == it.cluster.held() == {"GPU-n0-0", "GPU-n0-1"}


async def test_several_whole_cards_are_reserved_on_one_node_that_has_so_many_left() -> None:
    it = world(2, 3)
    it.cluster.plain("other")
    it.cluster.settle_others()
    it.extender.watch.deliver()
    assert await it.placed("a", {named.COUNT: "3"}) == "GPU-n1-0,GPU-n1-1,GPU-n1-2"
    assert it.cluster.others["ns", "other"]["spec"]["nodeName"] == "n0"


async def test_nothing_is_reserved_where_the_device_plugin_has_given_all() -> None:
    it = world(2)
    for name in ("x", "y"):
        it.cluster.plain(name)
    it.cluster.settle_others()
    it.extender.watch.deliver()
    assert it.fits(it.pod("a", WHOLE)) == []
    await it.settle()
    assert it.asked.asked == []


async def test_nothing_is_reserved_where_the_device_plugin_lets_pods_share_cards() -> None:
    it = world(2)
    it.extender.state.node_seen(replace(it.nodes[0], plugin=4))
    assert it.fits(it.pod("a", WHOLE)) == []
    await it.settle()
    assert it.asked.asked == []


async def test_nothing_is_reserved_for_a_pod_that_could_go_elsewhere_or_nowhere() -> None:
    it = World([a_node("n0", mixed=True), a_node("n1", cards=1)])
    first, second = it.pod("first", WHOLE), it.pod("second", WHOLE)
    assert await it.extender.bind(first, "n1") == ""
    assert it.extender.pick(second, "n1")["NodeNames"] == []  # the other node is not for it
    too_large = it.pod("large", {named.COUNT: "3"})
    assert it.fits(too_large) == []
    it.extender.watch.deliver()
    it.gone("first")
    await it.settle()
    assert it.asked.asked == []


async def test_the_node_where_the_fewest_are_lacking_is_taken_then_the_fullest() -> None:
    it = world(4, 4, 4)
    await it.placed("a", WHOLE)
    (node,) = {pod["spec"]["nodeName"] for pod in it.cluster.reservations()}
    it.gone("a")
    pod = it.pod("b", PAIR)
    assert it.fits(pod) == []
    await it.settle()
    assert {pod["spec"]["nodeName"] for pod in it.cluster.reservations()} == {node}
    assert len(it.cluster.reservations()) == 2


async def test_a_reservation_that_nobody_uses_goes_and_its_card_first() -> None:
    it = world(1)
    await it.placed("a", THIRD)
    it.gone("a")
    it.fates = [Fate.REQUEST_LOST]
    await it.upkeep(after_s=1.0)
    await it.upkeep(after_s=IDLE_S)
    assert it.asked.asked[-1][0] == "delete"
    assert it.fits(it.pod("b", THIRD)) == []
    assert len(it.cluster.reservations()) == 1
    await it.upkeep(after_s=10.0)
    it.cluster.settle_others()
    assert it.cluster.reservations() == []


async def test_a_reservation_stays_while_a_pod_has_its_card_or_a_binding_is_not_settled() -> None:
    it = world(1)
    await it.placed("a", THIRD)
    await it.upkeep(after_s=3 * IDLE_S)
    it.gone("a")
    it.extender.binder._fate = lambda: Fate.REQUEST_LOST
    pod = it.pod("b", THIRD)
    assert "not known" in await it.extender.bind(pod, "n0")
    await it.upkeep(after_s=1.0)
    await it.upkeep(after_s=IDLE_S + 1)
    assert [what for what, *_ in it.asked.asked] == ["create"]


async def test_a_reservation_stays_while_room_on_its_node_is_kept_for_a_pod() -> None:
    """Somebody was evicted for it."""
    it = world(1)
    await it.placed("low", WHOLE)
    high = it.cluster.create("high", uid="uid-high", annotations=WHOLE, priority=1000)
    assert it.fits(high) == []
    await it.preempts()
    it.gone("low")
    it.extender.preempting.look(now_s=it.cluster.clock.s)
    await it.upkeep(after_s=1.0)
    await it.upkeep(after_s=IDLE_S)
    assert it.fits(high) == ["n0"]
    it.gone("high")
    await it.upkeep(after_s=1.0)
    assert it.asked.asked[-1][0] == "delete"


async def test_a_reservation_that_tells_no_card_in_time_goes_and_its_node_rests() -> None:
    it = world(1)
    it.fits(it.pod("a", WHOLE))
    await it.upkeep()
    await it.upkeep()
    await it.upkeep(after_s=TELL_S)
    assert [what for what, *_ in it.asked.asked] == ["create", "delete"]
    await it.upkeep(after_s=BACKOFF_S / 2)
    assert len(it.asked.asked) == 2
    await it.upkeep(after_s=BACKOFF_S)
    assert it.asked.asked[2] == ("create", "n0", 0)


async def test_a_reservation_that_failed_is_cleared_away_and_its_node_rests_longer_each_time() -> (
    None
):
    it = world(1)
    it.fits(it.pod("a", WHOLE))
    waits = []
    for _ in range(3):
        since_s = it.cluster.clock.s
        while not it.cluster.reservations():
            await it.upkeep()
        waits.append(it.cluster.clock.s - since_s)
        (pod,) = it.cluster.reservations()
        it.cluster.place(pod)
        it.cluster.fail(it.cluster.reservations()[0])
        it.extender.watch.deliver()
    assert waits[0] < BACKOFF_S < waits[1] < waits[2]


async def test_a_second_try_finds_the_first() -> None:
    it = world(2, fates=[Fate.REPLY_LOST])
    it.fits(it.pod("a", WHOLE))
    it.cluster.clock.s += 1
    await it.reserving.step()
    it.cluster.clock.s += ASKED_S  # and the watch says nothing
    await it.reserving.step()
    assert it.asked.asked == [("create", "n0", 0)] * 2
    assert len(it.cluster.reservations()) == 1


async def test_a_card_that_lost_its_reservation_under_a_pod_is_doubted_until_the_pod_is_gone() -> (
    None
):
    it = world(2)
    card = await it.placed("a", THIRD)
    await it.deleted_by_hand()
    (doubt,) = it.extender.state.doubts()
    assert (doubt.node, doubt.uuids) == ("n0", (card,))
    assert "no reservation holds" in doubt.why
    assert it.extender.state.audit("n0") == (doubt,)
    assert it.fits(it.pod("b", THIRD)) == []
    it.gone("a")
    assert it.extender.state.audit("n0") == ()


async def test_a_card_that_lost_its_reservation_is_reserved_again_if_nobody_was_faster() -> None:
    it = world(2)
    card = await it.placed("a", THIRD)
    await it.deleted_by_hand()
    it.cluster.settle_others()
    await it.settle()
    assert it.cluster.held() == {card}
    assert it.extender.state.audit("n0") == ()
    assert await it.placed("b", THIRD) == card
    assert len(it.cluster.reservations()) == 1


async def test_a_new_reservation_counts_for_the_card_that_it_tells_alone() -> None:
    it = world(3)
    assert await it.placed("a", THIRD) == "GPU-n0-0"
    await it.deleted_by_hand()
    it.cluster.plain("faster")
    it.cluster.settle_others()
    await it.settle()
    it.extender.state.audit("n0")
    assert it.extender.state.cordoned == {"n0": {"GPU-n0-0"}}
    assert await it.placed("b", THIRD) == "GPU-n0-1"
    assert len(it.cluster.reservations()) == 2


async def test_after_a_restart_all_is_known_from_the_pods() -> None:
    it = world(2)
    card = await it.placed("a", THIRD)
    it.begin()
    assert it.extender.state.doubts() == ()
    assert await it.placed("b", THIRD) == card
    assert it.asked.asked == []


async def test_a_reservation_outside_our_namespace_is_not_believed() -> None:
    it = world(1)
    forged = a_pod("forged", node="n0", annotations={named.RESERVES_ON: "n0"})
    forged["metadata"]["labels"] = {named.RESERVATION: "0"}
    forged["metadata"]["annotations"][named.RESERVED_UUID] = "GPU-n0-0"
    forged["status"]["phase"] = "Running"
    it.cluster.pods["ns", "forged"] = forged
    it.cluster.history.append(("MODIFIED", forged))
    it.extender.watch.deliver()
    assert it.fits(it.pod("a", THIRD)) == []


async def test_an_ill_card_is_not_used_though_it_is_reserved() -> None:
    it = world(1)
    await it.placed("a", THIRD)
    report = it.nodes[0].report
    assert report is not None
    (card,) = report.gpus.cards
    gpus = replace(report.gpus, cards=(replace(card, healthy=False),))
    it.extender.state.node_seen(replace(it.nodes[0], report=replace(report, gpus=gpus)))
    assert it.fits(it.pod("b", THIRD)) == []
    assert it.extender.state.doubts() == ()


async def test_cards_of_a_node_that_becomes_mixed_are_doubted_where_pods_are() -> None:
    it = World([a_node("n0", cards=2)])
    assert await it.placed("a", WHOLE) == "GPU-n0-0"
    it.extender.state.node_seen(a_node("n0", cards=2, mixed=True))
    (doubt,) = it.extender.state.doubts()
    assert doubt.uuids == ("GPU-n0-0",)


async def test_nobody_is_evicted_for_a_pod_while_a_card_is_reserved_for_it() -> None:
    it = world(2)
    await it.placed("low", WHOLE)
    it.cluster.create("high", uid="uid-high", annotations=WHOLE, priority=1000)
    assert it.fits(it.cluster.pods["ns", "high"]) == []
    for _ in range(2):
        await it.upkeep()
        await it.preempts()
    assert it.extender.evictor.evicted == []
    it.cluster.fail(it.cluster.waiting()[0])
    it.extender.watch.deliver()
    await it.upkeep()
    await it.preempts()
    assert it.extender.evictor.evicted == ["low"]


async def test_many_pods_that_no_reservation_helps_do_not_keep_it_from_others() -> None:
    it = World([a_node("n0", cards=8, mixed=True)])
    for number in range(3 * MOST_PODS):
        big = a_pod(f"big-{number}", annotations={named.COUNT: "16"}, cpu=f"{number + 1}")
        assert it.fits(it.cluster._write(big)) == []
    small = it.pod("small", WHOLE)
    assert it.fits(small) == []
    for _ in range(4):
        await it.settle()
    assert it.fits(small) == ["n0"]


async def test_pods_that_are_alike_are_so_in_whichever_order_their_nodes_are_told() -> None:
    it = world(*[1] * 5)
    names = [node.name for node in it.nodes]
    for count, order in zip(range(MOST_PODS), permutations(names), strict=False):
        pair = it.pod(f"pair-{count}", PAIR)
        assert it.extender.pick(pair, *order)["NodeNames"] == []
    one = it.pod("one", WHOLE)
    assert it.fits(one) == []
    await it.settle()
    assert len(it.fits(one)) == 1


async def test_who_found_nothing_is_tried_again_once_the_device_plugin_has_a_card() -> None:
    it = world(1)
    it.cluster.plain("other")
    it.cluster.settle_others()
    it.extender.watch.deliver()
    pod = it.pod("p", WHOLE)
    assert it.fits(pod) == []
    await it.settle()
    it.cluster.reap(it.cluster.others["ns", "other"])
    it.extender.watch.deliver()
    await it.settle()
    assert it.fits(pod) == ["n0"]


async def test_nobody_is_evicted_for_pods_that_are_too_many_to_reserve_for_at_once() -> None:
    it = world(MOST_PODS + 12)
    await it.placed("low", WHOLE)
    for number in range(MOST_PODS + 10):
        name = f"high-{number}"
        high = it.cluster.create(name, uid=f"uid-{name}", annotations=WHOLE, priority=1000)
        assert it.fits(high) == []
    for _ in range(3):
        await it.upkeep()
        await it.preempts()
    assert it.extender.evictor.evicted == []


async def test_a_process_that_leads_no_more_asks_for_nothing() -> None:
    it = world(1)
    it.fits(it.pod("a", WHOLE))
    it.extender.lease.leading = False
    await it.upkeep()
    assert it.asked.asked == []


async def test_the_lease_is_not_given_away_while_a_deletion_may_still_land() -> None:
    it = world(1)
    await it.placed("a", THIRD)
    it.gone("a")
    it.fates = [Fate.LATE]
    await it.upkeep()
    await it.upkeep(after_s=IDLE_S)
    assert not it.reserving.settled
    it.cluster.clock.s += 5.0
    assert it.reserving.settled
