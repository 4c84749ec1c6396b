# SPDX-License-Identifier: Apache-2.0
"""Pods that were refused are tried again once there is room for them, and not before."""

from dataclasses import dataclass, field

from scheduler_extender.core import annotations as named
from scheduler_extender.errors import Unreachable
from scheduler_extender.retrying import MOST_AT_ONCE, retry
from scheduler_extender.waiting import MOST_PAUSE_S, Waiting
from tests.scheduler_extender.builders import CARD_MIB, Extender, a_node, an_extender
from tests.scheduler_extender.fakes import a_pod

WHOLE = {named.COUNT: "1"}
HALF = {named.MEMORY: f"{CARD_MIB // 2}Mi"}


@dataclass
class Told:
    """`down`: the API server does not answer."""

    names: list[str] = field(default_factory=list)
    down: bool = False

    async def retry(self, pod: Waiting) -> None:
        if self.down:
            raise Unreachable("no answer", after_s=0.0)
        self.names.append(pod.name)


async def looked(extender: Extender, *, after_s: float = 1.0, told: Told | None = None) -> Told:
    """A look some time later."""
    told = told or Told()
    extender.cluster.clock.s += after_s
    await retry(extender.state.waiting, told, now_s=extender.cluster.clock.s)
    return told


async def full(*, cards: int = 1) -> Extender:
    """One node, and each of its cards with a pod: p0, p1 and so on. Looked at once."""
    extender = an_extender(a_node("n", cards=cards))
    for number in range(cards):
        await placed(extender, f"p{number}", WHOLE)
    await looked(extender)
    return extender


async def placed(extender: Extender, name: str, asked: dict[str, str]) -> None:
    pod = extender.cluster.create(name, uid=f"uid-{name}", annotations=asked)
    assert extender.pick(pod, "n")["NodeNames"] == ["n"]
    assert await extender.bind(pod, "n") == ""
    extender.watch.deliver()


def refused(extender: Extender, name: str, asked: dict[str, str], *, priority: int = 0) -> None:
    pod = a_pod(name, annotations=asked, priority=priority)
    assert extender.pick(pod, "n")["NodeNames"] == []


async def test_who_was_refused_just_before_we_heard_of_the_room_is_tried_again() -> None:
    """kube-scheduler heard of the deletion first, and asked at once."""
    extender = await full()
    extender.cluster.delete("p0")
    refused(extender, "late", WHOLE)
    assert (await looked(extender)).names == []
    extender.watch.deliver()
    assert (await looked(extender)).names == ["late"]


async def test_nobody_is_tried_again_while_nothing_changes_or_too_little() -> None:
    extender = await full(cards=2)
    extender.cluster.delete("p0")
    extender.watch.deliver()
    await placed(extender, "half", HALF)
    await looked(extender)
    refused(extender, "late", WHOLE)
    refused(extender, "two", {named.COUNT: "2"})
    assert (await looked(extender)).names == []
    extender.cluster.delete("half")
    extender.watch.deliver()
    assert (await looked(extender)).names == ["late"]


async def test_a_word_that_was_in_vain_is_said_again_ever_more_seldom() -> None:
    """Whether kube-scheduler did not hear it, or others were quicker."""
    extender = await full()
    refused(extender, "late", WHOLE)
    extender.cluster.delete("p0")
    extender.watch.deliver()
    assert (await looked(extender)).names == ["late"]
    assert (await looked(extender)).names == []
    assert (await looked(extender)).names == ["late"]
    await placed(extender, "first", WHOLE)
    refused(extender, "late", WHOLE)
    extender.cluster.delete("first")
    extender.watch.deliver()
    assert (await looked(extender)).names == []
    assert (await looked(extender, after_s=3.0)).names == ["late"]
    looks = [await looked(extender) for _ in range(int(10 * MOST_PAUSE_S))]
    assert 10 <= sum("late" in told.names for told in looks) <= 14


async def test_who_waits_for_another_pool_keeps_nobody_from_the_room() -> None:
    """They are tried as well, and found wanting by kube-scheduler; others come in between."""
    extender = await full()
    for number in range(4 * MOST_AT_ONCE):
        refused(extender, f"elsewhere{number}", WHOLE)
    refused(extender, "here", WHOLE)
    extender.cluster.delete("p0")
    extender.watch.deliver()
    names = set[str]()
    for _ in range(6):
        names.update((await looked(extender)).names)
    assert "here" in names


async def test_a_pod_that_is_gone_already_does_not_wait() -> None:
    """kube-scheduler asks about it, for it hears of the deletion after us."""
    extender = await full()
    pod = extender.cluster.create("late", uid="uid-late", annotations=WHOLE)
    extender.cluster.delete("late")
    extender.watch.deliver()
    assert extender.pick(pod, "n")["NodeNames"] == []
    assert len(extender.state.waiting) == 0


async def test_a_card_that_is_trusted_again_is_room() -> None:
    """No event of the cluster tells kube-scheduler."""
    extender = an_extender(a_node("n", cards=1))
    pod = a_pod("odd", annotations={named.GRANTED_UUIDS: "GPU-n-0"}, node="n")
    extender.cluster.pods["ns", "odd"] = pod
    extender.cluster.history.append(("MODIFIED", pod))
    extender.watch.deliver()
    refused(extender, "late", WHOLE)
    extender.cluster.delete("odd")
    extender.watch.deliver()
    assert (await looked(extender)).names == []
    extender.state.audit("n")
    assert (await looked(extender)).names == ["late"]


async def test_who_found_room_or_is_gone_waits_no_more() -> None:
    extender = await full(cards=2)
    for name in ("gone", "placed"):
        extender.cluster.create(name, uid=f"uid-{name}", annotations=WHOLE)
        refused(extender, name, WHOLE)
    assert len(extender.state.waiting) == 2
    extender.cluster.delete("gone")
    extender.cluster.delete("p0")
    extender.watch.deliver()
    pod = extender.cluster.pods["ns", "placed"]
    assert extender.pick(pod, "n")["NodeNames"] == ["n"]
    assert len(extender.state.waiting) == 0
    assert (await looked(extender)).names == []


async def test_when_many_could_have_the_room_the_most_important_are_tried() -> None:
    extender = await full()
    for number in range(MOST_AT_ONCE + 5):
        refused(extender, f"low{number}", WHOLE)
    refused(extender, "high", WHOLE, priority=100)
    extender.cluster.delete("p0")
    extender.watch.deliver()
    names = (await looked(extender)).names
    assert names[0] == "high"
    assert len(names) == MOST_AT_ONCE


async def test_an_api_server_that_is_down_delays_it_and_ends_nothing() -> None:
    extender = await full()
    refused(extender, "late", WHOLE)
    extender.cluster.delete("p0")
    extender.watch.deliver()
    told = await looked(extender, told=Told(down=True))
    told.down = False
    assert (await looked(extender, after_s=MOST_PAUSE_S, told=told)).names == ["late"]
