# SPDX-License-Identifier: Apache-2.0
"""Which nodes and cards demands get, and in which words they are refused."""

import numpy as np
import pytest

from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import Demand, Policy
from scheduler_extender.core.fit import why_not
from scheduler_extender.core.gpus import Card, Fleet, NodeGpus, Oversubscribed
from scheduler_extender.core.outlook import Outlook, fragments
from scheduler_extender.core.room import how_many_fit
from scheduler_extender.core.score import scores, winner
from scheduler_extender.core.typical import Arrivals, Typical
from tests.scheduler_extender.core.fleets import MIB, a_fleet, a_node

SHARE = Demand(memory_mib=4_000)
WHOLE = Demand(whole=True)


def put(
    fleet: Fleet, demand: Demand, *, row: int = 0, cards: tuple[int, ...] | None = None
) -> None:
    chosen = cards or choose_cards(fleet, demand, row)
    assert chosen is not None
    fleet.take(fleet.grant(row, cards=chosen, demand=demand))


def best(fleet: Fleet, demand: Demand, typical: Typical | None = None) -> str:
    outlook = Outlook(fleet, typical or Typical())
    row = winner(scores(fleet, demand, fleet.all_rows(), outlook), fleet.order())
    assert row is not None
    return fleet.names[row]


def refusal(fleet: Fleet, demand: Demand) -> tuple[str, bool]:
    found = why_not(fleet, demand, 0)
    assert found is not None
    return found.why, found.permanent


def test_a_share_goes_where_it_leaves_the_least() -> None:
    fleet = a_fleet()
    put(fleet, Demand(memory_mib=10_000), cards=(2,))
    put(fleet, Demand(memory_mib=11_000), cards=(1,))
    assert choose_cards(fleet, SHARE, 0) == (1,)


def test_a_whole_card_is_one_that_nobody_else_is_on() -> None:
    fleet = a_fleet(a_node(cards=2))
    put(fleet, Demand(memory_mib=1), cards=(0,))
    assert choose_cards(fleet, WHOLE, 0) == (1,)
    assert refusal(fleet, Demand(whole=True, cards=2)) == ("not enough unused GPUs", False)


def test_several_cards_are_those_with_the_best_links() -> None:
    """Of 0-1 and 2-3, joined pairs, the pair that is free; a single card breaks no pair."""
    links = ((0, 9, 1, 1), (9, 0, 1, 1), (1, 1, 0, 9), (1, 1, 9, 0))
    fleet = a_fleet(a_node(links=links))
    put(fleet, WHOLE, cards=(1,))
    assert choose_cards(fleet, Demand(whole=True, cards=2), 0) == (2, 3)
    assert choose_cards(fleet, WHOLE, 0) == (0,)


def test_the_topology_policy_takes_the_node_with_the_best_links() -> None:
    def pair(name: str, strength: int) -> NodeGpus:
        return a_node(name, cards=2, links=((0, strength), (strength, 0)))

    fleet = a_fleet(pair("slow", 1), pair("fast", 5), a_node("unknown", cards=2))
    assert best(fleet, Demand(whole=True, cards=2, policy=Policy.TOPOLOGY)) == "fast"


def test_binpack_fills_the_fuller_node_and_spread_the_emptier() -> None:
    fleet = a_fleet(a_node("a"), a_node("b"))
    put(fleet, SHARE, row=1)
    assert best(fleet, Demand(memory_mib=1, policy=Policy.BINPACK)) == "b"
    assert best(fleet, Demand(memory_mib=1, policy=Policy.SPREAD)) == "a"


def test_pods_of_one_mesh_stand_side_by_side_or_apart() -> None:
    """Whatever else would be better."""
    fleet = a_fleet(a_node("a"), a_node("b"))
    first = Demand(memory_mib=4_000, mesh="m")
    for row in (0, 1):
        fleet.set_order(np.array([row, 1 - row]))
        twin = fleet.copy()
        put(twin, first, row=row)
        assert best(twin, first) == "ab"[row]
        assert best(twin, Demand(memory_mib=4_000, mesh="m", apart=True)) == "ab"[1 - row]


def test_a_share_goes_where_expected_pods_lose_nothing() -> None:
    """Half a card is wanted by all to come: a quarter goes onto the card that half is taken of."""
    fleet = a_fleet(a_node("a", cards=1), a_node("b", cards=1))
    half = Demand(milli=500)
    put(fleet, Demand(milli=700), row=1)
    for ranks in ((0, 1), (1, 0)):
        fleet.set_order(np.array(ranks))
        assert best(fleet, Demand(milli=250), Typical.of({half: 1.0})) == "b"


def test_a_pod_that_may_go_anywhere_leaves_the_model_that_others_insist_on() -> None:
    fleet = a_fleet(a_node("rare", model="T4"), a_node("common", model="A100"))
    known = Typical.of({WHOLE: 1.0, Demand(whole=True, models=("T4",)): 1.0})
    for ranks in ((0, 1), (1, 0)):
        fleet.set_order(np.array(ranks))
        assert best(fleet, WHOLE, known) == "common"


def test_ties_fill_one_node_before_the_next() -> None:
    """The order is of the names alone: it is the same after a restart and for every demand."""
    fleet = a_fleet(*(a_node(f"n{i}") for i in range(5)))
    again = a_fleet(*(a_node(f"n{i}") for i in reversed(range(5))))
    assert best(fleet, SHARE) == best(again, SHARE) == best(fleet, WHOLE)


def test_memory_and_compute_of_a_share_count_in_one_expectation() -> None:
    """Of 16,000 MiB with 4,000 left no half card is to be had, whichever unit it was asked in."""
    fleet = a_fleet(a_node(cards=1))
    put(fleet, Demand(memory_mib=12_000))
    for half in (Demand(memory_mib=8_000), Demand(milli=500), Demand(memory_milli=500)):
        outlook = Outlook(fleet, Typical.of({half: 1.0}))
        assert fragments(outlook, fleet.all_rows()) == pytest.approx([250], abs=0.01)


@pytest.mark.parametrize(
    ("demand", "why"),
    [
        (Demand(whole=True, models=("H100",)), "wrong GPU model A100"),
        (Demand(whole=True, cards=5), "4 GPUs, 5 asked"),
        (Demand(memory_mib=MIB + 1), "GPU memory too small even when empty"),
        (Demand(profile="1g.5gb"), "no MIG profile 1g.5gb"),
        (Demand(whole=True, cpu_milli=9_000), "CPU or memory too small even when empty"),
    ],
    ids=["model", "count", "memory", "profile", "cpu"],
)
def test_what_can_never_be_is_refused_for_good(demand: Demand, why: str) -> None:
    assert refusal(a_fleet(a_node(cpu_milli=8_000)), demand) == (why, True)


def test_what_is_only_taken_now_is_refused_for_now() -> None:
    fleet = a_fleet(a_node(cards=1, cpu_milli=8_000, slots=2))
    put(fleet, Demand(memory_mib=10_000, milli=900, cpu_milli=7_000))
    assert refusal(fleet, Demand(memory_mib=7_000)) == ("not enough GPU memory left", False)
    assert refusal(fleet, Demand(milli=101)) == ("not enough GPU compute left", False)
    assert refusal(fleet, Demand(milli=1, cpu_milli=1_001)) == (
        "not enough CPU or memory left",
        False,
    )
    put(fleet, Demand(milli=1))
    assert refusal(fleet, Demand(milli=1)) == ("GPU slots exhausted", False)
    fleet.set_usable(0, card=0, usable=False)
    assert refusal(fleet, Demand(milli=1)) == ("GPUs unhealthy or cordoned", False)


def test_a_node_without_gpus_says_so() -> None:
    assert refusal(a_fleet(a_node(cards=0)), SHARE) == ("no GPU", True)


def test_mig_instances_go_to_pods_that_ask_for_their_profile_alone() -> None:
    """An instance is a card with a profile; a pod that wants a card does not get one."""
    cards = (Card("g0", MIB), Card("g1/a", 5_000, profile="1g"), Card("g1/b", 5_000, profile="1g"))
    fleet = a_fleet(NodeGpus("n", cards))
    assert choose_cards(fleet, SHARE, 0) == (0,)
    assert how_many_fit(fleet, WHOLE) == 1
    assert how_many_fit(fleet, Demand(profile="1g")) == 2
    put(fleet, Demand(profile="1g"))
    put(fleet, Demand(profile="1g"))
    assert refusal(fleet, Demand(profile="1g")) == ("not enough unused GPUs", False)


def test_a_percentage_of_memory_is_rounded_up() -> None:
    """Three thirds of a card that cannot be divided by three would be more than the card."""
    fleet = a_fleet(a_node(cards=1, memory_mib=10_001))
    assert how_many_fit(fleet, Demand(memory_milli=250)) == 3


def test_room_for_sets_of_cards_counts_the_best_way_to_put_them() -> None:
    """Rooms of 2, 1 and 1 make two pairs, though a pair put on the small two leaves none."""
    fleet = a_fleet(a_node(cards=3, memory_mib=8_000))
    for card in (1, 2):
        put(fleet, SHARE, cards=(card,))
    assert how_many_fit(fleet, Demand(memory_mib=4_000, cards=2)) == 2


def test_a_change_that_would_oversubscribe_changes_nothing() -> None:
    fleet = a_fleet(a_node(cards=2))
    grant = fleet.grant(0, cards=(0, 1), demand=WHOLE)
    put(fleet, SHARE, cards=(1,))
    before = fleet.memory_free.copy()
    with pytest.raises(Oversubscribed, match="n/1"):
        fleet.take(grant)
    assert (fleet.memory_free == before).all()


def test_what_was_never_taken_cannot_be_given_back() -> None:
    fleet = a_fleet()
    with pytest.raises(ValueError, match="never gave"):
        fleet.give_back(fleet.grant(0, cards=(0,), demand=SHARE))


def test_the_row_of_a_node_that_left_serves_the_next() -> None:
    fleet = a_fleet(a_node("old"))
    put(fleet, SHARE)
    fleet.remove_node("old")
    assert how_many_fit(fleet, WHOLE) == 0
    assert fleet.set_node(a_node("new")) == 0
    assert how_many_fit(fleet, WHOLE) == 4


def test_expectations_follow_what_comes_and_forget_what_stopped() -> None:
    arrivals = Arrivals(half_life_pods=10)
    arrivals.observe([WHOLE] * 100)
    arrivals.observe([SHARE] * 100)
    assert arrivals.typical().shapes == (SHARE,)


def test_news_come_often_at_first_and_then_seldom() -> None:
    """Each costs scoring everything again."""
    arrivals = Arrivals(half_life_pods=1000)
    news = 0
    for _ in range(4000):
        arrivals.observe([WHOLE])
        news += arrivals.news() is not None
    assert 3 <= news <= 8
