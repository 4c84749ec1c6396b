# SPDX-License-Identifier: Apache-2.0
"""Pods of high priority get room on cards from the right pods, and nobody else takes it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from scheduler_extender.core import annotations as named
from scheduler_extender.core.annotations import PodSeen
from scheduler_extender.core.demand import Demand
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.preemption.lower import MOST_SPARED_S, SPARED_S
from scheduler_extender.preemption.preempting import (
    AGAIN_S,
    FRESH_S,
    OVERDUE_S,
    PATIENCE_S,
    REMOTE_S,
    TURN_S,
    stamp,
)
from scheduler_extender.preemption.promises import KEEP_S, Promise
from scheduler_extender.waiting import MOST
from tests.scheduler_extender.builders import CARD_MIB, Extender, a_node, an_extender
from tests.scheduler_extender.fakes import (
    GRACE_S,
    Clock,
    FakeBinder,
    FakeCluster,
    FakeEvictor,
    Fate,
    Raw,
    a_pod,
)

WHOLE = {named.COUNT: "1"}
HIGH = 1000


def part(percent: int) -> dict[str, str]:
    """Of a card's memory."""
    return {named.MEMORY: f"{CARD_MIB * percent // 100}Mi"}


async def placed(
    extender: Extender, name: str, asked: dict[str, str], node: str = "n", *, priority: int = 0
) -> Raw:
    """A pod that runs there."""
    pod = extender.cluster.create(name, uid=f"uid-{name}", annotations=asked, priority=priority)
    assert await extender.bind(pod, node) == ""
    extender.watch.deliver()
    return pod


def refused(extender: Extender, pod: Raw, *nodes: str) -> None:
    asked = nodes or tuple(node.name for node in extender.nodes)
    assert extender.pick(pod, *asked)["NodeNames"] == []


def waits(
    extender: Extender,
    name: str = "high",
    asked: dict[str, str] = WHOLE,
    *,
    priority: int = HIGH,
    never: bool = False,
) -> Raw:
    """A pod that is refused everywhere."""
    pod = extender.cluster.create(name, uid=f"uid-{name}", annotations=asked, priority=priority)
    if never:
        pod["spec"]["preemptionPolicy"] = "Never"
    refused(extender, pod)
    return pod


async def turn(extender: Extender, *, after_s: float = PATIENCE_S) -> list[str]:
    """Who is evicted some time later."""
    before = len(extender.evictor.evicted)
    extender.cluster.clock.s += after_s
    extender.preempting.look(now_s=extender.cluster.clock.s)
    await extender.preempting.turn(now_s=extender.cluster.clock.s)
    extender.watch.deliver()
    return sorted(extender.evictor.evicted[before:])


def gone(extender: Extender, *names: str) -> None:
    for name in names:
        extender.cluster.delete(name)
    extender.watch.deliver()


async def filled(*cards: dict[str, tuple[int, int]]) -> Extender:
    """One node with these cards: by a pod's name, percent of the card and priority."""
    extender = an_extender(a_node("n", cards=len(cards)))
    for number, pods in enumerate(cards):
        uuid = f"GPU-n-{number}"
        for name, (percent, priority) in pods.items():
            memory_mib = CARD_MIB * percent // 100
            notes = {**part(percent), named.GRANTED_UUIDS: uuid}
            notes |= {named.GRANTED_MIB: f"{memory_mib}", named.GRANTED_CORE: "1"}
            pod = a_pod(name, annotations=notes, node="n", priority=priority)
            extender.cluster._write(pod)
    extender.watch.deliver()
    assert not extender.state.doubts()
    return extender


@pytest.mark.parametrize(
    ("cards", "asked", "victims"),
    [
        pytest.param(
            ({"b": (50, 0), "c": (50, 0)}, {"a": (99, 0)}), WHOLE, ["a"],
            id="of two cards that which costs one pod",
        ),
        pytest.param(
            ({"a": (99, 500)}, {"b": (50, 0), "c": (50, 0)}), WHOLE, ["b", "c"],
            id="two of low priority rather than one of higher",
        ),
        pytest.param(
            ({"a": (50, 0), "b": (50, HIGH)}, {"c": (99, 5)}), WHOLE, ["c"],
            id="never one of the same priority, nor one beside it in vain",
        ),
        pytest.param(
            ({"a": (60, 0), "b": (30, 0), "c": (10, 0)},), part(25), ["b"],
            id="for a share the smallest that is enough",
        ),
        pytest.param(
            ({"a": (40, 0), "b": (40, 0), "c": (20, 0)},), part(70), ["a", "b"],
            id="for a share as few as can be",
        ),
        pytest.param(
            ({"a": (40, 7), "b": (40, 5), "c": (20, 9)},), part(40), ["b"],
            id="of equal ones the least important",
        ),
        pytest.param(
            ({"a": (99, 0)}, {"b": (99, 0)}, {"c": (99, 1)}), {named.COUNT: "2"}, ["a", "b"],
            id="for two cards two pods",
        ),
        pytest.param(
            ({"a": (99, 0)}, {"b": (99, HIGH)}), {named.COUNT: "2"}, [],
            id="nobody where not even all of lower priority are enough",
        ),
        pytest.param(({"a": (99, 0)},), {named.COUNT: "2"}, [], id="nobody for a node too small"),
    ],
)  # fmt: skip
async def test_the_right_pods_go(
    cards: tuple[dict[str, tuple[int, int]], ...], asked: dict[str, str], victims: list[str]
) -> None:
    extender = await filled(*cards)
    waits(extender, asked=asked)
    assert await turn(extender) == victims
    assert await turn(extender) == []


async def test_the_room_is_the_preemptors() -> None:
    """Nominated, told, and taken once the victim is gone."""
    extender = await filled({"low": (99, 0)})
    high = waits(extender)
    assert await turn(extender) == ["low"]
    assert extender.evictor.nominated == {"high": "n"}
    assert extender.reporter.told == ["high gets room on n", "low made room on n for high"]
    gone(extender, "low")
    assert extender.pick(high, "n")["NodeNames"] == ["n"]
    assert await extender.bind(high, "n") == ""
    extender.watch.deliver()
    assert len(extender.state.promises) == 0


async def test_who_has_waited_for_a_moment_only_is_left_to_kube_scheduler() -> None:
    extender = await filled({"low": (99, 0)})
    waits(extender)
    assert await turn(extender, after_s=PATIENCE_S / 2) == []


async def test_who_may_not_preempt_does_not() -> None:
    extender = await filled({"low": (99, 0)})
    waits(extender, never=True)
    assert await turn(extender) == []


async def test_who_can_be_placed_now_evicts_nobody() -> None:
    """kube-scheduler has not tried it again yet."""
    extender = await filled({"low": (99, 0)}, {"done": (99, HIGH)})
    waits(extender)
    gone(extender, "done")
    assert await turn(extender) == []
    assert extender.evictor.nominated == {}


async def test_where_a_pod_leaves_anyway_nobody_is_evicted_and_the_room_is_kept() -> None:
    extender = await filled({"low": (99, 0)}, {"leaves": (99, 500)})
    waits(extender)
    extender.cluster.leave("leaves")
    extender.watch.deliver()
    assert await turn(extender) == []
    assert extender.evictor.nominated == {"high": "n"}
    gone(extender, "leaves")
    refused(extender, a_pod("late", annotations=part(5), priority=10))


@pytest.mark.parametrize("wait_s", [GRACE_S + OVERDUE_S + 1, -REMOTE_S])
async def test_a_pod_that_will_not_be_gone_soon_is_not_waited_for(wait_s: float) -> None:
    """Its node may be dead, or it has a very long time to end."""
    extender = await filled({"low": (99, 0)}, {"stuck": (99, 0)})
    extender.cluster.leave("stuck")
    extender.watch.deliver()
    if wait_s > 0:
        extender.cluster.clock.s += wait_s
    else:
        extender.preempting._epoch_s = lambda: extender.cluster.clock.s + wait_s
    waits(extender)
    assert await turn(extender) == ["low"]


async def test_a_victim_that_never_goes_is_given_up_for_another() -> None:
    extender = await filled({"stuck": (98, 0)}, {"low": (99, 1)})
    waits(extender)
    assert await turn(extender) == ["stuck"]
    assert await turn(extender, after_s=GRACE_S) == []
    assert extender.retries.names == []
    assert await turn(extender, after_s=OVERDUE_S + 1) == []
    assert extender.retries.names == ["high"]
    refused(extender, extender.cluster.pods["ns", "high"])
    assert await turn(extender) == ["low"]


async def test_a_pod_that_its_budget_protects_stays_and_others_go() -> None:
    """Whether that is told before anybody was evicted, or in the middle."""
    extender = await filled({"a": (99, 0)}, {"b": (50, 0), "c": (50, 0)}, {"d": (99, 3)})
    extender.evictor.protected = {"a", "c"}
    waits(extender)
    assert await turn(extender) == ["d"]


async def test_when_a_victim_is_refused_after_another_has_gone_others_are_found() -> None:
    """Two of one budget: each alone would have been let go."""
    extender = await filled({"b": (50, 0), "c": (50, 0)}, {"d": (99, 3)})
    answers = iter([False, True])
    extender.evictor.refuses = lambda: next(answers, False)
    waits(extender)
    first, second = await turn(extender)
    assert (first in "bc", second) == (True, "d")
    assert await turn(extender, after_s=SPARED_S) == []


async def test_an_eviction_without_an_answer_is_asked_for_again_and_no_other() -> None:
    extender = await filled({"a": (99, 0)}, {"b": (99, 0)})
    fates = iter([Fate.REQUEST_LOST])
    extender.evictor._fate = lambda: next(fates, Fate.ANSWERED)
    waits(extender)
    assert await turn(extender) == []
    (victim,) = await turn(extender, after_s=1.0)
    assert victim in "ab"
    assert await turn(extender) == []


async def test_who_does_not_lead_evicts_nobody() -> None:
    extender = await filled({"low": (99, 0)})
    waits(extender)
    extender.lease.leading = False
    assert await turn(extender) == []


async def test_an_old_word_of_kube_scheduler_is_asked_for_anew_first() -> None:
    """The node may have been cordoned since."""
    extender = await filled({"low": (99, HIGH)})
    high = waits(extender)
    await turn(extender)
    gone(extender, "low")
    await placed(extender, "next", part(99), priority=0)
    assert await turn(extender, after_s=FRESH_S) == []
    assert extender.retries.names == ["high"]
    assert await turn(extender, after_s=AGAIN_S) == []
    assert extender.retries.names == ["high", "high"]
    refused(extender, high)
    assert await turn(extender, after_s=1.0) == ["next"]


# Who gets the room


async def making_room() -> Extender:
    """A card of two is being freed for `high`, a whole one; the other has 30 percent left."""
    extender = await filled({"stays": (70, HIGH)}, {"low": (99, 0)})
    waits(extender)
    assert await turn(extender) == ["low"]
    return extender


async def test_pods_of_lower_and_equal_priority_are_refused_and_more_important_ones_are_not() -> (
    None
):
    extender = await making_room()
    gone(extender, "low")
    for priority in (0, HIGH):
        pod = extender.cluster.create(
            f"p{priority}", uid=f"uid-{priority}", annotations=part(50), priority=priority
        )
        told = extender.filter(pod, "n")
        assert told["NodeNames"] == []
        assert "kept for a pod" in told["FailedNodes"]["n"]
        assert "kept for a pod" in await extender.bind(pod, "n")
    top = a_pod("top", annotations=part(50), priority=HIGH + 1)
    assert extender.filter(top, "n")["NodeNames"] == ["n"]


async def test_what_the_preemptor_does_not_need_others_may_have() -> None:
    extender = await making_room()
    gone(extender, "low")
    await placed(extender, "small", part(20))
    assert await extender.bind(extender.cluster.pods["ns", "high"], "n") == ""


async def test_bind_refuses_it_to_a_pod_that_no_filter_saw() -> None:
    """Its priority is read from the API server."""
    extender = await making_room()
    gone(extender, "low")
    pod = extender.cluster.create("late", uid="late", annotations=part(50))
    assert "kept for a pod" in await extender.bind(pod, "n")


async def test_two_preemptors_get_a_card_each() -> None:
    extender = await filled({"a": (99, 0)}, {"b": (99, 0)}, {"c": (99, 0)})
    pods = [waits(extender, "first"), waits(extender, "second")]
    victims = await turn(extender)
    assert len(victims) == 2
    gone(extender, *victims)
    for pod in reversed(pods):
        assert extender.filter(pod, "n")["NodeNames"] == ["n"]
        assert await extender.bind(pod, "n") == ""
    assert await turn(extender) == []


async def test_a_preemptor_whose_room_went_to_a_more_important_pod_is_helped_again() -> None:
    extender = await filled({"a": (99, 0)}, {"b": (99, 0)})
    high = waits(extender)
    (victim,) = await turn(extender)
    gone(extender, victim)
    await placed(extender, "top", WHOLE, priority=HIGH + 1)
    refused(extender, high)
    assert await turn(extender, after_s=1.0) == ["b" if victim == "a" else "a"]


async def test_room_that_is_not_taken_in_time_is_for_all() -> None:
    extender = await making_room()
    gone(extender, "low")
    late = a_pod("late", annotations=part(50))
    refused(extender, late)
    await turn(extender, after_s=KEEP_S + 1)
    assert extender.filter(late, "n")["NodeNames"] == ["n"]


async def test_room_of_a_preemptor_that_is_gone_is_for_all_and_they_are_tried_again() -> None:
    extender = await making_room()
    gone(extender, "low")
    refused(extender, a_pod("late", annotations=part(50)))
    extender.state.waiting.look(now_s=extender.cluster.clock.s)
    extender.cluster.clock.s += 1.0
    gone(extender, "high")
    extender.state.waiting.look(now_s=extender.cluster.clock.s)
    due = extender.state.waiting.placeable(9, now_s=extender.cluster.clock.s)
    assert [pod.name for pod in due] == ["late"]


async def test_the_next_leader_keeps_the_room_and_evicts_nobody_for_it() -> None:
    """It knows from the nomination."""
    extender = await making_room()
    again = Extender(extender.cluster, extender.nodes, FakeBinder(extender.cluster))
    refused(again, extender.cluster.pods["ns", "high"])
    assert await turn(again) == []
    gone(again, "low")
    assert await turn(again, after_s=1.0) == []
    refused(again, a_pod("late", annotations=part(50)))
    assert await again.bind(extender.cluster.pods["ns", "high"], "n") == ""


async def test_a_nomination_by_kube_scheduler_counts_until_it_takes_it_back() -> None:
    extender = await filled({"low": (99, 0)})
    waits(extender)
    extender.cluster.leave("low")
    extender.cluster.write_status("high", nominatedNodeName="n")
    extender.watch.deliver()
    assert await turn(extender) == []
    gone(extender, "low")
    late = a_pod("late", annotations=part(50))
    refused(extender, late)
    extender.cluster.write_status("high", nominatedNodeName="")
    extender.watch.deliver()
    assert extender.filter(late, "n")["NodeNames"] == ["n"]


async def test_a_budget_is_asked_before_the_first_victim_goes() -> None:
    extender = await filled({"a": (50, 0), "b": (50, 0)})
    extender.evictor.protected = {"b"}
    waits(extender)
    assert await turn(extender) == []
    seen = extender.state.pods["uid-b"]
    with pytest.raises(Refused):
        await extender.evictor.evict(seen)


async def test_the_node_where_it_costs_least_is_chosen() -> None:
    """Of many; on each the choice is made card by card."""
    clock = Clock()
    nodes = [a_node(f"n{number}", cards=2) for number in range(30)]
    extender = an_extender(*nodes, cluster=FakeCluster(clock))
    for number in range(30):
        for card in range(2):
            cheap = number == 17 and card == 1
            await placed(
                extender, f"p{number}-{card}", WHOLE, f"n{number}", priority=5 if cheap else 7
            )
    waits(extender)
    assert len(await turn(extender)) == 1
    assert extender.state.pods[f"uid-{extender.evictor.evicted[0]}"].priority == 5


async def test_a_pod_that_was_deleted_while_nobody_heard_gets_nothing() -> None:
    """A list tells it, and so does the deletion of a pod that stays for a finalizer."""
    extender = await filled({"low": (99, 0)})
    waits(extender, "one")
    waits(extender, "two")
    extender.cluster.delete("one")
    extender.cluster.leave("two")
    extender.watch.list_all(began_s=extender.cluster.clock.s + 1)
    assert len(extender.state.waiting) == 0
    assert await turn(extender) == []


async def test_room_is_not_kept_for_a_pod_that_was_deleted_while_nobody_heard() -> None:
    extender = await making_room()
    gone(extender, "low")
    extender.cluster.delete("high")
    extender.watch.list_all(began_s=extender.cluster.clock.s)
    assert extender.filter(a_pod("late", annotations=part(50)), "n")["NodeNames"] == ["n"]


async def test_an_important_pod_is_heard_however_many_wait() -> None:
    extender = await filled({"low": (99, 0)})
    for number in range(MOST):
        refused(extender, a_pod(f"p{number}", annotations=WHOLE), "n")
    waits(extender)
    assert len(extender.state.waiting) == MOST
    assert await turn(extender) == ["low"]


# An API server that is slow to answer

EVICT_S = 5.0  # until an answer is no longer waited for


class SlowEvictor(FakeEvictor):
    """Each answer takes `EVICT_S`, or does not come then. `meanwhile` happens in that time."""

    def __init__(self, cluster: FakeCluster, *, tries: bool, evictions: bool) -> None:
        super().__init__(cluster)
        self.answers = {True: tries, False: evictions}  # by dry_run
        self.asked: list[tuple[str, bool]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def evict(self, victim: PodSeen, *, dry_run: bool = False) -> None:
        self.asked.append((victim.name, dry_run))
        answered_s = self.cluster.clock.s + EVICT_S
        await asyncio.sleep(0)  # others are asked beside it
        self.cluster.clock.s = max(self.cluster.clock.s, answered_s)
        self.meanwhile()
        if not self.answers[dry_run]:
            raise Unreachable("no answer in time", after_s=0.0)
        await super().evict(victim, dry_run=dry_run)


def slow(extender: Extender, *, tries: bool = True, evictions: bool = True) -> SlowEvictor:
    evictor = SlowEvictor(extender.cluster, tries=tries, evictions=evictions)
    extender.evictor = extender.preempting._evictor = evictor
    return evictor


async def test_a_turn_ends_where_the_first_question_is_not_answered() -> None:
    extender = await filled(*({f"w{number}": (99, 0)} for number in range(20)))
    evictor = slow(extender, tries=False)
    for number in range(10):
        waits(extender, f"high-{number}")
    await turn(extender)
    assert evictor.asked == [(evictor.asked[0][0], True)]


@pytest.mark.parametrize("evictions", [True, False])
async def test_a_turn_takes_some_seconds_however_slow_the_answers_are(evictions: bool) -> None:
    extender = await filled(*({f"w{number}": (99, 0)} for number in range(20)))
    slow(extender, evictions=evictions)
    for number in range(10):
        waits(extender, f"high-{number}")
    for _ in range(10):
        began_s = extender.cluster.clock.s
        await turn(extender, after_s=1.0)
        assert extender.cluster.clock.s - began_s <= 1.0 + TURN_S + EVICT_S


async def test_evictions_without_an_answer_do_not_keep_others_from_theirs() -> None:
    extender = await filled(*({f"w{number}": (99, 0)} for number in range(4)))
    evictor = slow(extender, evictions=False)
    for number in range(4):
        waits(extender, f"high-{number}")
    for _ in range(12):
        await turn(extender, after_s=1.0)
    promised = {victim.name for one in extender.state.promises for victim in one.victims}
    asked = [name for name, dry_run in evictor.asked if not dry_run]
    assert len(promised) > 1
    assert set(asked[-len(promised) :]) == promised


async def test_who_may_not_go_is_spared_from_the_answer_on() -> None:
    """Not from the beginning of the turn: that may be long ago."""
    extender = await filled({"a": (99, 0)}, {"b": (99, 1)})
    evictor = slow(extender)
    evictor.protected = {"a"}
    high = waits(extender)
    extender.cluster.clock.s += PATIENCE_S
    began_s = extender.cluster.clock.s
    await extender.preempting.turn(now_s=began_s)
    (until_s,) = (until_s for _, until_s in extender.preempting._lower.spared.values())
    assert until_s == began_s + EVICT_S + SPARED_S
    assert extender.state.promises.of(high["metadata"]["uid"]) is not None


async def test_promises_are_looked_at_while_an_answer_is_waited_for() -> None:
    extender = await filled({"b": (50, 0), "c": (50, 0)})
    evictor = slow(extender)
    evictor.meanwhile = lambda: extender.preempting.look(now_s=extender.cluster.clock.s)
    waits(extender)
    victims = await turn(extender) + await turn(extender, after_s=1.0)
    assert sorted(victims) == ["b", "c"]
    assert evictor.nominated == {"high": "n"}


async def test_nobody_more_goes_for_a_pod_that_is_deleted_meanwhile() -> None:
    extender = await filled({"b": (50, 0), "c": (50, 0)})
    evictor = slow(extender)

    def deleted() -> None:
        if not evictor.asked[-1][1]:
            gone(extender, "high")
            extender.preempting.look(now_s=extender.cluster.clock.s)

    evictor.meanwhile = deleted
    waits(extender)
    victims = await turn(extender) + await turn(extender, after_s=1.0)
    assert len(victims) == 1
    assert evictor.nominated == {}


async def test_nobody_goes_for_room_that_came_of_itself_meanwhile() -> None:
    extender = await filled({"low": (99, 0)}, {"done": (99, HIGH)})
    evictor = slow(extender)
    evictor.meanwhile = lambda: gone(extender, "done")
    waits(extender)
    assert await turn(extender) == []


# What is in vain again and again


@dataclass
class Churn:
    """A cluster that goes on: who is evicted is soon made anew, and placed where there is room."""

    extender: Extender
    evicted_s: list[float] = field(default_factory=list)
    unplaced: list[Raw] = field(default_factory=list)
    leaves_s: dict[str, float] = field(default_factory=dict)
    placed: Callable[[], None] = lambda: None

    async def passes(self, seconds: int, *, asked: Raw) -> None:
        extender, clock = self.extender, self.extender.cluster.clock
        for second in range(seconds):
            for name in await turn(extender, after_s=1.0):
                self.evicted_s.append(clock.s)
                self.leaves_s[name] = clock.s + 5.0
            for name in [name for name, at_s in self.leaves_s.items() if at_s <= clock.s]:
                del self.leaves_s[name]
                gone(extender, name)
                again = f"{name}-"
                pod = extender.cluster.create(again, uid=f"uid-{again}", annotations=part(99))
                self.unplaced.append(pod)
            if second % 10 == 0:
                extender.pick(asked, "n")
            for pod in tuple(self.unplaced):
                if extender.pick(pod, "n")["NodeNames"] == ["n"]:
                    assert await extender.bind(pod, "n") == ""
                    extender.watch.deliver()
                    self.unplaced.remove(pod)
                    self.placed()


async def test_where_a_pod_cannot_be_bound_for_another_reason_nobody_goes_again_and_again() -> None:
    extender = await filled({"low": (99, 0)})
    churn = Churn(extender)
    await churn.passes(7200, asked=waits(extender))
    first_s, second_s, *later_s = churn.evicted_s
    assert second_s - first_s < 2 * KEEP_S
    waited_s = [after - before for before, after in pairwise((second_s, *later_s))]
    assert len(later_s) <= 6
    assert waited_s == sorted(waited_s)


async def test_where_a_budget_lets_only_one_of_two_go_it_does_not_go_again_and_again() -> None:
    extender = await filled({"a": (99, 0)}, {"b": (99, 0)})
    evictor, churn = extender.evictor, Churn(extender)
    budget = ["one"]
    evictor.refuses = lambda: not budget or budget.pop() == ""
    churn.placed = lambda: budget.extend(["one"][len(budget) :])
    await churn.passes(600, asked=waits(extender, asked={named.COUNT: "2"}))
    assert 1 <= len(churn.evicted_s) <= 5


async def test_a_budget_that_goes_on_refusing_is_asked_less_and_less() -> None:
    extender = await filled({"a": (99, 0)}, {"b": (99, 0)})
    evictor = slow(extender)
    evictor.protected = {"a", "b"}
    high = waits(extender)
    for _ in range(60):
        await turn(extender, after_s=FRESH_S - 1)
        refused(extender, high)
    seconds = 60 * FRESH_S
    assert len(evictor.asked) <= 2 * (5 + seconds / MOST_SPARED_S)
    evictor.protected = set()
    for _ in range(12):
        await turn(extender, after_s=FRESH_S - 1)
        refused(extender, high)
    assert evictor.evicted


async def test_the_next_leader_waits_for_a_victim_of_a_long_grace() -> None:
    extender = await filled({"a": (99, 0)}, {"b": (99, 0)})
    waits(extender)
    (victim,) = await turn(extender)
    leaving = extender.cluster.pods["ns", victim]
    leaving["metadata"]["deletionTimestamp"] = stamp(extender.cluster.clock.s + 5 * REMOTE_S)
    extender.cluster._write(leaving)
    again = Extender(extender.cluster, extender.nodes, FakeBinder(extender.cluster))
    refused(again, extender.cluster.pods["ns", "high"])
    assert await turn(again) == []
    assert await turn(again, after_s=2 * REMOTE_S) == []


async def test_what_is_before_a_pod_is_looked_for_on_its_node_alone() -> None:
    """By importance, and then by age, however often a promise was renewed."""
    extender = an_extender(a_node("n", cards=8), a_node("m", cards=8))
    promises, whole = extender.state.promises, Demand(cards=1, whole=True)
    for name, node, priority in (("a", "n", 1), ("b", "m", 9), ("c", "n", 5), ("d", "n", 1)):
        promises.make(Promise(name, "ns", name, node, whole, priority))
    promises.look(now_s=1.0)
    assert [one.uid for one in promises.before("new", 1, node="n")] == ["c", "a", "d"]
    assert [one.uid for one in promises.before("d", 1, node="n")] == ["c", "a"]
    promises.end("c")
    assert [one.uid for one in promises.before("new", 1, node="n")] == ["a", "d"]
    assert [one.uid for one in promises.before("new", 0, node="m")] == ["b"]


@pytest.mark.parametrize("breaths", range(0, 12, 2))
async def test_nodes_may_go_while_a_plan_is_made(breaths: int) -> None:
    nodes = [a_node(f"n{number}", cards=1) for number in range(6)]
    extender = an_extender(*nodes)
    for node in nodes:
        await placed(extender, f"low-{node.name}", WHOLE, node.name)
    waits(extender)
    extender.cluster.clock.s += PATIENCE_S
    turning = asyncio.create_task(extender.preempting.turn(now_s=extender.cluster.clock.s))
    for _ in range(breaths):
        await asyncio.sleep(0)
    for node in nodes:
        extender.state.node_gone(node.name)
    await turning
    extender.preempting.look(now_s=extender.cluster.clock.s)
    assert len(extender.state.promises) == 0
