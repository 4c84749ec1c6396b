# SPDX-License-Identifier: Apache-2.0
"""What kube-scheduler is told, and that what it does with it holds."""

import asyncio
import random

import numpy as np
import orjson
import pytest

from scheduler_extender.binding import Binds
from scheduler_extender.core import annotations as named
from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits, why_not
from scheduler_extender.core.gpus import Card, Fleet, NodeGpus
from scheduler_extender.core.typical import FIRST_NEWS_PODS, Typical
from scheduler_extender.core.verdicts import FITS, REFUSALS, VerdictCache, verdicts
from scheduler_extender.errors import Malformed, NotLeading
from scheduler_extender.state import HOLD_S
from scheduler_extender.verbs import decisive
from tests.scheduler_extender.builders import a_node, an_extender, candidates
from tests.scheduler_extender.fakes import Clock, FakeBinder, FakeCluster, Fate, a_pod

WHOLE = {named.COUNT: "1"}
SHARE = {named.MEMORY: "10000Mi", named.CORE: "20%"}


def test_hopeless_nodes_are_told_apart_from_full_ones() -> None:
    extender = an_extender(a_node("old", model="B"), a_node("small", cards=1), a_node("good"))
    pod = a_pod("p", annotations={named.COUNT: "2", named.MODELS: "A"})
    found = extender.filter(pod, "old", "small", "good", "bare")
    assert found["NodeNames"] == ["good"]
    assert found["FailedNodes"] == {}
    why = found["FailedAndUnresolvableNodes"]
    assert why["old"] == "wrong GPU model"
    assert "too few" in why["small"]
    assert "node agent" in why["bare"]
    assert found["Error"] == ""


def test_a_node_with_ill_cards_may_get_better() -> None:
    extender = an_extender(a_node("n", cards=2, ill=2))
    assert extender.filter(a_pod("p", annotations=WHOLE), "n")["FailedNodes"] == {
        "n": "GPUs unhealthy, cordoned or not reserved"
    }


def test_a_wish_that_cannot_be_read_is_told_on_every_node() -> None:
    extender = an_extender(a_node("n"))
    found = extender.filter(a_pod("p", annotations={named.COUNT: "many"}), "n", "m")
    assert found["NodeNames"] == []
    assert all("gpu-count" in why for why in found["FailedAndUnresolvableNodes"].values())
    assert set(found["FailedAndUnresolvableNodes"]) == {"n", "m"}


def test_no_node_asked_is_no_node_answered() -> None:
    extender = an_extender(a_node("n"))
    body = orjson.dumps({"Pod": a_pod("p", annotations=WHOLE), "Nodes": None, "NodeNames": None})
    assert orjson.loads(extender.verbs.filter(body))["NodeNames"] == []
    assert extender.verbs.prioritise(body) == b"[]"


def test_asking_changes_nothing_however_often() -> None:
    extender = an_extender(a_node("n"), a_node("m"))
    pod = a_pod("p", annotations=WHOLE)
    assert len({orjson.dumps(extender.filter(pod, "n", "m")) for _ in range(5)}) == 1
    assert len({orjson.dumps(extender.scores(pod, "n", "m")) for _ in range(5)}) == 1
    assert not extender.state.ledger.entries()


async def test_prioritise_has_one_winner_and_it_is_the_same_in_any_order() -> None:
    extender = an_extender(*(a_node(f"n{index}") for index in range(9)))
    names = list(extender.state.fleet.row_of)
    pod = a_pod("p", annotations=SHARE)
    winners = set()
    for seed in range(5):
        random.Random(seed).shuffle(names)
        scores = extender.scores(pod, *names)
        assert list(scores) == names
        assert sorted(scores.values())[-2:] != [10, 10]
        winners.add(max(scores, key=scores.__getitem__))
    assert len(winners) == 1


async def test_pick_leaves_the_node_that_prioritise_would_have_win() -> None:
    """Where none fits it says what filter says; a pod without a wish may go to any."""
    extender = an_extender(*(a_node(f"n{index}") for index in range(9)))
    names = list(extender.state.fleet.row_of)
    for number, notes in enumerate([SHARE, WHOLE, SHARE, {named.COUNT: "2"}] * 3):
        pod = extender.cluster.create(f"p{number}", uid=f"p{number}", annotations=notes)
        scores = extender.scores(pod, *names)
        found = extender.pick(pod, *names)
        assert found["NodeNames"] == [max(scores, key=scores.__getitem__)]
        assert not found["FailedNodes"]
        assert await extender.bind(pod, found["NodeNames"][0]) == ""
    greedy = a_pod("q", annotations={named.COUNT: "64"})
    assert extender.pick(greedy, *names) == extender.filter(greedy, *names)
    assert extender.pick(a_pod("r"), "n1", "bare")["NodeNames"] == ["n1", "bare"]


@pytest.mark.parametrize("seed", range(20))
def test_points_follow_the_scores_and_only_one_is_ten(seed: int) -> None:
    chance = np.random.default_rng(seed)
    scores = chance.integers(-(10**6), 10**6, size=chance.integers(1, 50))
    points = decisive(scores, np.arange(len(scores)))
    assert list(points).count(10) == 1
    assert points.min() >= 0
    ranked = points[np.argsort(scores, kind="stable")]
    assert (np.diff(ranked[:-1]) >= 0).all()
    assert scores[points.argmax()] == scores.max()


async def test_names_that_filter_left_are_looked_up_anew_once_nodes_have_changed() -> None:
    extender = an_extender(a_node("n1"), a_node("n2"), a_node("small", cards=1))
    pod = a_pod("p", annotations=WHOLE)
    assert extender.filter(pod, "n1", "n2")["NodeNames"] == ["n1", "n2"]
    extender.state.node_gone("n1")
    extender.state.node_seen(a_node("n3"))  # takes the row of n1
    scores = extender.scores(pod, "n1", "n2")
    assert scores["n1"] == 0
    assert scores["n2"] == 10


async def test_a_share_goes_beside_another_and_a_whole_card_stays_whole() -> None:
    extender = an_extender(a_node("n"))
    for name in ("a", "b"):
        pod = extender.cluster.create(name, uid=name, annotations=SHARE)
        assert await extender.bind(pod, "n") == ""
    bound = [pod["metadata"]["annotations"] for pod in extender.cluster.running()]
    assert {notes[named.GRANTED_UUIDS] for notes in bound} == {"GPU-n-0"}
    whole = extender.cluster.create("c", uid="c", annotations=WHOLE)
    assert await extender.bind(whole, "n") == ""
    assert extender.filter(a_pod("d", annotations=WHOLE), "n")["FailedNodes"] == {
        "n": "not enough unused GPUs"
    }


async def test_a_second_bind_of_the_same_pod_is_a_success_and_one_request() -> None:
    extender = an_extender(a_node("n"))
    pod = extender.cluster.create("p", uid="p", annotations=WHOLE)
    assert await extender.bind(pod, "n") == ""
    assert await extender.bind(pod, "n") == ""
    assert len(extender.binder.posts) == 1
    assert "is bound to n" in await extender.bind(pod, "m")


async def test_after_a_lost_reply_the_pod_can_only_go_where_it_may_be() -> None:
    cluster = FakeCluster(Clock())
    extender = an_extender(a_node("n"), a_node("m"), cluster=cluster)
    fates = iter([Fate.LATE, Fate.ANSWERED])
    extender.binder._fate = lambda: next(fates)
    pod = cluster.create("p", uid="p", annotations=WHOLE)
    assert "not known" in await extender.bind(pod, "n")
    found = extender.filter(pod, "n", "m")
    assert found["NodeNames"] == ["n"]
    assert "settled" in found["FailedNodes"]["m"]
    assert "may be bound to n" in await extender.bind(pod, "m")
    assert await extender.bind(pod, "n") == ""


async def test_a_hold_that_never_became_a_binding_ends_after_a_reading() -> None:
    cluster = FakeCluster(Clock())
    extender = an_extender(a_node("n", cards=1), cluster=cluster)
    extender.binder._fate = lambda: Fate.REQUEST_LOST
    pod = cluster.create("p", uid="p", annotations=WHOLE)
    await extender.bind(pod, "n")
    other = a_pod("other", annotations=WHOLE)
    cluster.clock.s += 59
    await extender.binds.settle()
    assert extender.filter(other, "n")["NodeNames"] == []
    cluster.clock.s += 2
    await extender.binds.settle()
    assert extender.filter(other, "n")["NodeNames"] == ["n"]
    assert extender.binds.settled


async def test_what_the_watch_tells_late_of_a_pod_that_is_gone_puts_no_card_in_doubt() -> None:
    """Its end was read, and its card has been given to another since."""
    cluster = FakeCluster(Clock())
    extender = an_extender(a_node("n1", cards=1), cluster=cluster)
    first = cluster.create("first", uid="uid-1", annotations={named.COUNT: "1"})
    assert await extender.bind(first, "n1") == ""
    cluster.delete("first")
    cluster.clock.s += HOLD_S
    await extender.binds.settle()
    second = cluster.create("second", uid="uid-2", annotations={named.COUNT: "1"})
    assert await extender.bind(second, "n1") == ""
    extender.watch.deliver(2)
    assert not extender.state.doubts()
    extender.watch.deliver()
    assert not extender.state.audit("n1")
    assert extender.filter(a_pod("third", annotations={named.COUNT: "1"}), "n1")["FailedNodes"]


async def test_a_bind_without_a_filter_before_it_reads_the_pod() -> None:
    extender = an_extender(a_node("n"))
    pod = extender.cluster.create("p", uid="p", annotations=SHARE)
    assert await extender.bind(pod, "n") == ""
    assert await extender.bind(a_pod("ghost"), "n") != ""


async def test_who_does_not_lead_or_is_not_in_sync_answers_nothing() -> None:
    extender = an_extender(a_node("n"))
    body = candidates(a_pod("p", annotations=WHOLE), "n")
    extender.lease.leading = False
    for verb in (extender.verbs.filter, extender.verbs.prioritise, extender.verbs.preempt):
        with pytest.raises(NotLeading, match="Lease"):
            verb(body)
    extender.lease.leading = True
    extender.state.pods_synced = False
    with pytest.raises(NotLeading, match="list"):
        await extender.bind(a_pod("p"), "n")


def test_a_pod_that_is_no_object_is_malformed() -> None:
    extender = an_extender(a_node("n"))
    with pytest.raises(Malformed):
        extender.verbs.filter(
            orjson.dumps({"Pod": {"spec": {"containers": 5}}, "NodeNames": ["n"]})
        )


async def test_preemption_keeps_only_nodes_where_evictions_make_room_on_cards() -> None:
    extender = an_extender(a_node("n", cards=1), a_node("m", cards=1), a_node("k", cards=1))
    for node, priority in (("n", 0), ("m", 1000)):
        pod = extender.cluster.create(node, uid=node, annotations=WHOLE, priority=priority)
        await extender.bind(pod, node)
    extender.cluster.create("cpu", uid="cpu", annotations={})
    extender.watch.deliver()
    body = {
        "Pod": a_pod("high", annotations=WHOLE, priority=100),
        "NodeNameToMetaVictims": {
            name: {"Pods": [{"UID": uid}], "NumPDBViolations": 0}
            for name, uid in (("n", "n"), ("m", "cpu"), ("k", "cpu"), ("bare", "cpu"))
        },
    }
    reply = orjson.loads(extender.verbs.preempt(orjson.dumps(body)))["NodeNameToMetaVictims"]
    assert {node: [p["UID"] for p in those["Pods"]] for node, those in reply.items()} == {
        "n": ["n"],
        "k": ["cpu"],
    }
    assert extender.state.ledger.entry("n") is not None


async def test_preemption_adds_the_fewest_pods_of_lower_priority() -> None:
    extender = an_extender(a_node("n", cards=2))
    for name, wish, priority in (
        ("small", SHARE, 1), ("big", {named.MEMORY: "35000Mi"}, 2), ("top", SHARE, 500),
    ):  # fmt: skip
        pod = extender.cluster.create(name, uid=name, annotations=wish, priority=priority)
        assert await extender.bind(pod, "n") == ""
    extender.watch.deliver()
    body = {
        "Pod": a_pod("high", annotations=WHOLE, priority=100),
        "NodeNameToMetaVictims": {"n": {"Pods": [{"UID": "cpu"}], "NumPDBViolations": 0}},
    }
    reply = orjson.loads(extender.verbs.preempt(orjson.dumps(body)))["NodeNameToMetaVictims"]
    assert [pod["UID"] for pod in reply["n"]["Pods"]] == ["cpu", "big"]


async def test_a_grant_that_was_tampered_with_is_told_and_its_cards_get_nobody() -> None:
    extender = an_extender(a_node("n"))
    pod = extender.cluster.create("p", uid="p", annotations=SHARE)
    await extender.bind(pod, "n")
    extender.watch.deliver()
    changed = extender.cluster.pods["ns", "p"]
    notes = {**changed["metadata"]["annotations"], named.GRANTED_MIB: "1"}
    meta = {**changed["metadata"], "annotations": notes}
    extender.cluster._write({**changed, "metadata": meta})
    extender.watch.deliver()
    assert "changed after it was bound" in extender.state.audit("n")[0].why
    assert extender.state.cordoned["n"] == {"GPU-n-0"}
    assert extender.filter(a_pod("q", annotations={named.COUNT: "2"}), "n")["NodeNames"] == []
    extender.cluster.delete("p")
    extender.watch.deliver()
    assert not extender.state.audit("n")
    assert extender.filter(a_pod("q", annotations={named.COUNT: "2"}), "n")["NodeNames"] == ["n"]


@pytest.mark.parametrize("node", ["m", "n"])
async def test_pods_of_a_mesh_are_together_after_a_restart_too(node: str) -> None:
    """Also where what the pod says of its mesh was edited after it was bound."""
    extender = an_extender(a_node("m"), a_node("n"))
    notes = {**SHARE, named.MESH: "llama"}
    pod = extender.cluster.create("first", uid="first", annotations=notes)
    assert await extender.bind(pod, node) == ""
    extender.cluster.pods["ns", "first"]["metadata"]["annotations"][named.MESH] = "edited"
    extender.watch.deliver()
    again = an_extender(a_node("m"), a_node("n"), cluster=extender.cluster)
    for one in (extender, again):
        assert one.state.audit(node) == ()
        assert one.scores(a_pod("next", annotations=notes), "m", "n")[node] == 10
        apart = a_pod("other", annotations={**notes, named.APART: "true"})
        assert one.scores(apart, "m", "n")[node] < 10


async def test_a_mesh_that_somebody_wrote_beside_the_grant_puts_no_card_in_doubt() -> None:
    extender = an_extender(a_node("n"))
    noted = {**SHARE, named.GRANTED_MESH: "not ours!"}
    assert await extender.bind(extender.cluster.create("p", uid="p", annotations=noted), "n") == ""
    extender.watch.deliver()
    assert extender.state.audit("n") == ()


def test_expectations_follow_arrivals_once_they_are_news() -> None:
    """Until then kept scores stay: a new picture for every pod would cost each of them."""
    extender = an_extender(a_node("n"), a_node("m"))
    seen = []
    for number in range(FIRST_NEWS_PODS + 1):
        extender.filter(a_pod(f"p{number}", annotations=SHARE), "n", "m")
        seen.append(extender.state.scores.typical)
    assert seen[-3] == Typical()
    assert seen[-2].shapes[0].memory_mib == 10_000
    assert seen[-1] is seen[-2]


async def test_an_audit_finds_what_the_count_has_and_the_annotations_have_not() -> None:
    extender = an_extender(a_node("n"))
    extender.state.fleet.memory_free[extender.state.fleet.row_of["n"], 1] -= 5
    (doubt,) = extender.state.audit("n")
    assert (doubt.uuids, "differ" in doubt.why) == (("GPU-n-1",), True)


def test_annotations_that_oversubscribe_a_card_are_told_and_nothing_is_dropped() -> None:
    cluster = FakeCluster(Clock())
    grant = {
        named.GRANTED_UUIDS: "GPU-n-0", named.GRANTED_MIB: "30000", named.GRANTED_CORE: "10",
    }  # fmt: skip
    for name in ("a", "b"):
        cluster._write(a_pod(name, annotations=grant, node="n"))
    extender = an_extender(a_node("n"), cluster=cluster)
    assert len(extender.state.doubts()) == 1
    assert extender.state.cordoned["n"] == {"GPU-n-0"}
    assert len(extender.state.ledger.entries()) == 2


def test_pods_that_come_before_their_node_are_counted_once_it_reports() -> None:
    cluster = FakeCluster(Clock())
    grant = {named.GRANTED_UUIDS: "GPU-n-0", named.GRANTED_MIB: "40000", named.GRANTED_CORE: "100"}
    cluster._write(a_pod("a", annotations=grant, node="n"))
    extender = an_extender(cluster=cluster)
    extender.state.node_seen(a_node("n"))
    assert not extender.state.audit("n")
    assert extender.filter(a_pod("q", annotations={named.COUNT: "2"}), "n")["NodeNames"] == []
    extender.state.node_gone("n")
    extender.state.node_seen(a_node("n"))
    assert extender.filter(a_pod("q", annotations={named.COUNT: "2"}), "n")["NodeNames"] == []


@pytest.mark.parametrize("seed", range(30))
def test_verdicts_agree_with_fit_on_any_fleet(seed: int) -> None:
    chance = random.Random(seed)
    fleet = Fleet(
        NodeGpus(
            f"n{index}",
            tuple(
                Card(f"G{index}-{card}", chance.choice([0, 16000, 40000]) or 8000,
                     healthy=chance.random() < 0.9, slots=chance.choice([1, 48]),
                     profile=chance.choice(["", "", "1g.10gb"]))
                for card in range(chance.randint(0, 4))
            ),
            model=chance.choice("AB"),
            cpu_milli=chance.choice([None, 500, 8000]),
        )
        for index in range(25)
    )  # fmt: skip
    cache = VerdictCache(fleet)
    for _ in range(60):
        demand = a_demand(chance)
        rows = fleet.all_rows()
        found = cache.verdicts(demand, rows)
        assert (found == verdicts(fleet, demand, rows)).all()
        assert ((found == FITS) == fits(fleet, demand, rows)).all()
        for row in rows:
            why = why_not(fleet, demand, int(row))
            if why is not None:
                assert REFUSALS[found[row]].permanent == why.permanent, (why, demand)
        fit = np.flatnonzero(found == FITS)
        if len(fit):
            row = int(chance.choice(list(fit)))
            cards = choose_cards(fleet, demand, row)
            assert cards is not None
            fleet.take(fleet.grant(row, cards=cards, demand=demand))


def a_demand(chance: random.Random) -> Demand:
    models = chance.choice([(), (), ("A",), ("C",)])
    kind = chance.randrange(4)
    cards, cpu = chance.choice([1, 1, 2, 3]), chance.choice([0, 400, 9000])
    if kind == 0:
        return Demand(cards=cards, whole=True, models=models, cpu_milli=cpu)
    if kind == 1:
        return Demand(profile=chance.choice(["1g.10gb", "7g.80gb"]), models=models)
    memory = chance.choice([0, 5000, 30000])
    return Demand(cards=cards, memory_mib=memory, milli=chance.choice([100, 500]), models=models)


async def test_binds_of_one_pod_at_the_same_time_make_one_request() -> None:
    cluster = FakeCluster(Clock())
    extender = an_extender(a_node("n"), cluster=cluster)
    gated = FakeBinder(cluster, gated=lambda: True)
    extender.binds._binder = gated
    assert isinstance(extender.binds, Binds)
    pod = cluster.create("p", uid="p", annotations=WHOLE)
    extender.filter(pod, "n")
    both = [asyncio.create_task(extender.bind(pod, "n")) for _ in range(2)]
    while not all(task.done() for task in both):
        await asyncio.sleep(0)
        gated.go()
    assert [task.result() for task in both] == ["", ""]
    assert len(gated.posts) == 1
