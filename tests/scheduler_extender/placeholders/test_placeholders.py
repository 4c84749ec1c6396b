# SPDX-License-Identifier: Apache-2.0
"""How many nodes are asked for: enough for who waits for long, never more than the cap."""

import asyncio
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_extender.core import annotations as named
from scheduler_extender.core.annotations import PodSeen, demand_of
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.node_report import NodeSeen
from scheduler_extender.placeholders.plan import (
    MOST_AGE_S,
    MOST_PODS,
    NAME,
    REPORT_S,
    Plan,
    Standing,
    Wanted,
    plan,
    pool_key,
    told,
)
from scheduler_extender.settings import Settings
from tests.scheduler_extender.builders import CARD_MIB, Extender, a_node, an_extender
from tests.scheduler_extender.fakes import a_pod

WHOLE = {named.COUNT: "1"}
PAIR = {named.COUNT: "2"}
HALF = {named.MEMORY: f"{CARD_MIB // 2}Mi"}
MOST = 4


def sized(node: NodeSeen, *, cpu_milli: int, ram_mib: int = 100_000) -> NodeSeen:
    """With as much CPU and memory."""
    assert node.report is not None
    gpus = replace(node.report.gpus, cpu_milli=cpu_milli, ram_mib=ram_mib)
    return replace(node, report=replace(node.report, gpus=gpus))


async def placed(extender: Extender, name: str, asked: dict[str, str], *, node: str) -> None:
    pod = extender.cluster.create(name, uid=f"uid-{name}", annotations=asked)
    assert await extender.bind(pod, node) == ""
    extender.watch.deliver()


async def full(*nodes: NodeSeen) -> Extender:
    """Each card of each node has a pod: n-0, n-1 and so on."""
    extender = an_extender(*nodes)
    for node in nodes:
        assert node.report is not None
        for number, card in enumerate(node.report.gpus.cards):
            if card.healthy:
                await placed(extender, f"{node.name}-{number}", WHOLE, node=node.name)
    return extender


def waits(
    extender: Extender,
    name: str,
    asked: dict[str, str],
    *nodes: str,
    pool: dict[str, str] | None = None,
    priority: int = 0,
    cpu: str = "1",
) -> PodSeen:
    """kube-scheduler asked about it on these nodes, and calls it unschedulable."""
    pod = a_pod(name, annotations=asked, priority=priority, cpu=cpu)
    pod["spec"] |= {"nodeSelector": pool or {}, "schedulerName": Settings().scheduler}
    told_so = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    pod["status"] = {"phase": "Pending", "conditions": told_so}
    if nodes:
        assert extender.filter(pod, *nodes)["NodeNames"] == []
    show(extender, pod)
    return extender.state.unplaced[pod["metadata"]["uid"]]


def show(extender: Extender, pod: dict[str, Any]) -> None:
    extender.cluster.pods[pod["metadata"]["namespace"], pod["metadata"]["name"]] = pod
    extender.cluster.history.append(("MODIFIED", pod))
    extender.watch.deliver()


def stands(
    extender: Extender, pod: PodSeen, *, node: str = "", number: int = 0, age_s: float = 60.0
) -> Standing:
    """A placeholder for a pod."""
    raw = a_pod(f"{NAME}{number}", node=node)
    raw["metadata"]["labels"] = {named.PLACEHOLDER: pool_key(told(pod).pool)}
    show(extender, raw)
    return Standing(extender.state.placeholders[raw["metadata"]["uid"]], age_s)


def planned(extender: Extender, *standing: Standing, most: int = MOST) -> Plan:
    ripe = tuple(extender.state.unplaced.values())
    return plan(extender.state, ripe, standing=standing, most=most)


async def test_pods_that_fit_one_fresh_node_get_one_placeholder_of_their_size() -> None:
    extender = await full(a_node("n"))
    for number in range(3):
        waits(extender, f"late-{number}", HALF, "n")
    (wanted,) = planned(extender).make
    assert wanted == Wanted(
        f"{NAME}0",
        told(extender.state.unplaced["uid-late-0"]).pool,
        cpu_milli=3000,
        ram_mib=3 * 1024,
        pods=("ns/late-0", "ns/late-1", "ns/late-2"),
    )


async def test_more_pods_ask_for_more_nodes_up_to_the_cap() -> None:
    extender = await full(a_node("n"))
    for number in range(5):
        waits(extender, f"late-{number}", WHOLE, "n")
    assert [len(one.pods) for one in planned(extender).make] == [2, 2, 1]
    assert [one.name for one in planned(extender, most=2).make] == [f"{NAME}0", f"{NAME}1"]


async def test_the_most_important_pods_come_first_where_the_cap_is_short() -> None:
    extender = await full(a_node("n"))
    waits(extender, "low", PAIR, "n")
    waits(extender, "high", PAIR, "n", priority=10)
    (wanted,) = planned(extender, most=1).make
    assert wanted.pods == ("ns/high",)


async def test_who_fits_once_pods_are_gone_that_end_now_needs_no_node() -> None:
    """Only as many as fit then, and only where kube-scheduler would have them."""
    extender = await full(a_node("n"), a_node("other"))
    for name in ("n-0", "n-1"):
        going = extender.cluster.pods["ns", name]
        going["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
        show(extender, going)
    waits(extender, "late-0", WHOLE, "n")
    waits(extender, "late-1", WHOLE, "n")
    assert planned(extender).make == ()
    waits(extender, "late-2", WHOLE, "n")
    assert [one.pods for one in planned(extender).make] == [("ns/late-2",)]
    waits(extender, "elsewhere", WHOLE, "other", pool={"pool": "other"}, priority=1)
    assert [one.pods for one in planned(extender).make] == [("ns/elsewhere",), ("ns/late-2",)]


async def test_room_that_is_made_for_another_is_not_counted_on() -> None:
    extender = await full(a_node("n"))
    going = extender.cluster.pods["ns", "n-0"]
    going["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    show(extender, going)
    late = waits(extender, "late", WHOLE, "n")
    assert plan(extender.state, (late,), most=MOST) == Plan()
    waits(extender, "important", WHOLE, "n", priority=10)
    nominated = extender.cluster.pods["ns", "important"]
    nominated["status"]["nominatedNodeName"] = "n"
    show(extender, nominated)
    assert [one.pods for one in plan(extender.state, (late,), most=MOST).make] == [("ns/late",)]


async def test_what_no_node_has_even_when_empty_is_told_and_brings_none() -> None:
    extender = await full(a_node("n"))
    pod = waits(extender, "big", {named.COUNT: "3"}, "n")
    assert planned(extender) == Plan(never=(pod,))


async def test_however_many_such_pods_come_first_the_others_get_their_node() -> None:
    extender = await full(a_node("n"))
    for number in range(MOST_PODS):
        waits(extender, f"big-{number}", {named.COUNT: "3"}, "n", priority=10)
    waits(extender, "late", WHOLE, "n")
    found = planned(extender)
    assert ([one.pods for one in found.make], len(found.never)) == ([("ns/late",)], MOST_PODS)


async def test_a_fresh_node_is_well_where_the_ones_there_are_ill() -> None:
    extender = await full(a_node("n", ill=1))
    waits(extender, "late", PAIR, "n")
    assert [one.pods for one in planned(extender).make] == [("ns/late",)]


async def test_a_pool_without_a_node_gets_one_first() -> None:
    """Where no node has GPUs at all, and where kube-scheduler asked us about none of the pool's."""
    nothing = an_extender()
    for number in range(3):
        waits(nothing, f"late-{number}", WHOLE, "cpu-node")
    assert [len(one.pods) for one in planned(nothing).make] == [1]
    extender = await full(a_node("n"))
    for number in range(3):
        waits(extender, f"huge-{number}", {named.COUNT: "8"}, pool={"pool": "huge"})
    assert [len(one.pods) for one in planned(extender).make] == [1]
    assert planned(extender).never == ()


async def test_pods_of_two_pools_do_not_share_a_node() -> None:
    extender = await full(a_node("n"))
    waits(extender, "a", HALF, "n", pool={"pool": "a"})
    waits(extender, "b", HALF, "n", pool={"pool": "b"})
    assert len({one.pool for one in planned(extender).make}) == 2


async def test_the_smallest_kind_that_would_do_is_counted_on() -> None:
    """What is asked for must fit whichever kind comes."""
    extender = await full(a_node("small", cards=1), a_node("large", cards=4))
    waits(extender, "late-0", WHOLE, "small", "large")
    waits(extender, "late-1", WHOLE, "small", "large")
    assert [one.cpu_milli for one in planned(extender).make] == [1000, 1000]


async def test_only_kinds_that_kube_scheduler_would_take_are_counted_on() -> None:
    extender = await full(a_node("small", cards=1), a_node("large", cards=4))
    waits(extender, "late-0", WHOLE, "large")
    waits(extender, "late-1", WHOLE, "large")
    assert [one.cpu_milli for one in planned(extender).make] == [2000]


async def test_the_cpu_of_pods_that_every_node_has_is_left_to_them() -> None:
    """Else a placeholder would fit no fresh node, and nothing would come."""
    extender = await full(sized(a_node("n", cards=4), cpu_milli=8000))
    show(extender, a_pod("daemon", node="n", cpu="2500m"))
    for number in range(4):
        waits(extender, f"late-{number}", WHOLE, "n", cpu="2")
    assert [one.cpu_milli for one in planned(extender).make] == [4000, 4000]


async def test_a_placeholder_stands_for_its_node_until_that_has_room() -> None:
    """Pending, then on a node whose agent has not reported, then on one that has."""
    extender = await full(a_node("n"))
    pod = waits(extender, "late", WHOLE, "n")
    assert planned(extender, stands(extender, pod)) == Plan()
    there = stands(extender, pod, node="fresh")
    assert planned(extender, there) == Plan()
    fresh = a_node("fresh")
    extender.state.node_seen(fresh)
    found = planned(extender, there)
    assert [one.pod for one in found.drop] == [there.pod]


async def test_a_placeholder_on_a_node_of_no_use_stays_and_another_is_made() -> None:
    """Where the first is, the second cannot go."""
    extender = await full(a_node("n"), a_node("ill", ill=2))
    pod = waits(extender, "late", WHOLE, "n", "ill")
    there = stands(extender, pod, node="ill")
    found = planned(extender, there)
    assert found.drop == ()
    assert [one.name for one in found.make] == [f"{NAME}1"]
    assert planned(extender, there, most=1) == Plan()
    # The cap was lowered since.
    extender.cluster.delete(there.pod.name)
    extender.watch.deliver()
    assert planned(extender, stands(extender, pod, node="ill", number=5), most=1) == Plan()


async def test_a_node_that_is_not_heard_of_is_waited_for_only_so_long() -> None:
    """No agent may run there."""
    extender = await full(a_node("n"))
    pod = waits(extender, "late", WHOLE, "n")
    silent = stands(extender, pod, node="silent", age_s=REPORT_S - 1)
    assert planned(extender, silent) == Plan()
    found = planned(extender, replace(silent, age_s=REPORT_S))
    assert (found.drop, [one.name for one in found.make]) == ((), [f"{NAME}1"])
    # One that has no node is waited for: clouds may be short of machines.
    assert planned(extender, stands(extender, pod, age_s=REPORT_S)) == Plan()


async def test_its_own_cpu_does_not_make_a_placeholder_stay() -> None:
    extender = await full(a_node("n"))
    pod = waits(extender, "late", WHOLE, "n")
    extender.state.node_seen(sized(a_node("fresh"), cpu_milli=1500))
    there = stands(extender, pod, node="fresh")
    assert [one.pod for one in planned(extender, there).drop] == [there.pod]


async def test_placeholders_go_when_nobody_waits_when_too_many_and_when_old() -> None:
    extender = await full(a_node("n"))
    pod = waits(extender, "late", WHOLE, "n")
    on_its_way = stands(extender, pod, node="fresh", number=0)
    pending = stands(extender, pod, number=1)
    assert [one.pod for one in planned(extender, on_its_way, pending).drop] == [pending.pod]
    old = replace(on_its_way, age_s=MOST_AGE_S)
    assert [one.pod for one in planned(extender, old).drop] == [old.pod]
    extender.cluster.delete("late")
    extender.watch.deliver()
    assert len(planned(extender, on_its_way, pending).drop) == 2


async def test_young_pods_keep_a_placeholder_and_bring_none() -> None:
    """A pod that is replaced by another is the same demand."""
    extender = await full(a_node("n"))
    pod = waits(extender, "late", WHOLE, "n")
    there = stands(extender, pod)
    assert plan(extender.state, (), young=(pod,), standing=(there,), most=MOST) == Plan()
    assert plan(extender.state, (), young=(pod,), most=MOST) == Plan()


async def test_with_a_cap_of_0_all_that_stand_go() -> None:
    extender = await full(a_node("n"))
    pod = waits(extender, "late", WHOLE, "n")
    there = [stands(extender, pod, number=0), stands(extender, pod, number=1, node="n")]
    found = planned(extender, *there, most=0)
    assert (len(found.drop), found.make) == (2, ())


WISHES = st.sampled_from(
    [WHOLE, PAIR, HALF, {named.COUNT: "4"}, {named.CORE: "30%"}, {named.MEMORY: "10Gi"}]
)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[NodeSeen], list[tuple[dict[str, str], str, str]]]:
    """Nodes of some kinds, some with ill cards; and who waits: wish, pool, CPU."""
    kinds = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=3))
    nodes = [
        sized(a_node(f"n{number}", cards=cards, ill=min(ill, cards)), cpu_milli=16_000)
        for number, (cards, ill) in enumerate(kinds)
    ]
    pools = st.sampled_from(["", "a", "b"])
    some = st.tuples(WISHES, pools, st.sampled_from(["1", "3", "20"]))
    return nodes, draw(st.lists(some, min_size=1, max_size=12))


@given(clusters(), st.integers(0, 5), st.lists(st.sampled_from(["", "n0", "fresh"]), max_size=5))
@settings(max_examples=150, deadline=None)
def test_never_more_than_the_cap_and_always_the_same(
    cluster: tuple[list[NodeSeen], list[tuple[dict[str, str], str, str]]],
    most: int,
    on: list[str],
) -> None:
    """Whatever waits, and whatever stands already within the cap."""
    nodes, wishes = cluster
    extender = an_extender(*nodes)
    names = [node.name for node in nodes]
    pods = []
    for number, (wish, pool, cpu) in enumerate(wishes):
        raw = a_pod(f"p{number}", annotations=wish, cpu=cpu)
        raw["spec"]["nodeSelector"] = {"pool": pool}
        told_so = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
        raw["status"] = {"phase": "Pending", "conditions": told_so}
        fit = extender.filter(raw, *names)["NodeNames"] if pool != "b" else ["not asked"]
        if pool == "b" or not fit:
            show(extender, raw)
            pods.append(raw)
    unplaced = tuple(extender.state.unplaced.values())
    standing = [
        stands(extender, unplaced[0], node=node, number=number)
        for number, node in enumerate(on[:most])
        if unplaced
    ]
    found = plan(extender.state, unplaced, standing=standing, most=most)
    assert found == plan(extender.state, unplaced, standing=standing, most=most)
    dropped = {one.pod.uid for one in found.drop}
    left = [one.pod.name for one in standing if one.pod.uid not in dropped]
    assert len(left) + len(found.make) <= most
    made = [one.name for one in found.make]
    assert len({*left, *made}) == len(left) + len(made)
    helped = {name for one in found.make for name in one.pods}
    assert not helped & {f"{pod.namespace}/{pod.name}" for pod in found.never}
    for one in found.make:
        assert one.cpu_milli <= 16_000 or len(one.pods) == 1


@given(clusters())
@settings(max_examples=100, deadline=None)
def test_none_is_asked_for_when_all_fit_once_others_are_gone(
    cluster: tuple[list[NodeSeen], list[tuple[dict[str, str], str, str]]],
) -> None:
    """Each waits for the place of a twin that is on its way out."""
    nodes, wishes = cluster
    extender = an_extender(*nodes)
    names = [node.name for node in nodes]
    for number, (wish, _, cpu) in enumerate(wishes):
        twin = a_pod(f"twin-{number}", annotations=wish, cpu=cpu)
        found = extender.pick(twin, *names)["NodeNames"]
        if found:
            twin["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
            asyncio.run(bound(extender, twin, found[0]))
            waits_at(extender, f"p{number}", wish, found[0], cpu=cpu)
    assert planned(extender) == Plan()


async def bound(extender: Extender, pod: dict[str, Any], node: str) -> None:
    """By us, and on its way out."""
    kept = pod["metadata"].pop("deletionTimestamp")
    show(extender, pod)
    assert await extender.bind(pod, node) == ""
    pod = extender.cluster.pods["ns", pod["metadata"]["name"]]
    pod["metadata"]["deletionTimestamp"] = kept
    show(extender, pod)


def waits_at(extender: Extender, name: str, wish: dict[str, str], node: str, *, cpu: str) -> None:
    """kube-scheduler would have it on this node alone, and was told that there is no room."""
    demand = demand_of(a_pod(name, annotations=wish, cpu=cpu))
    assert isinstance(demand, Demand)
    pool = {"pool": name}
    pod = a_pod(name, annotations=wish, cpu=cpu)
    extender.state.waiting.refused(pod, demand, [node], now_s=0.0)
    waits(extender, name, wish, pool=pool, cpu=cpu)
