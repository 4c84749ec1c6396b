# SPDX-License-Identifier: Apache-2.0
"""Together the services of a tick ask for no more than the GPUs that are free."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.core.budget import Claim, Room, capped
from autoscaler.core.decide import Decision
from autoscaler.core.proposal import Bound
from autoscaler.core.signals import NoReading, ServiceId
from autoscaler.core.zero import ZeroState
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.gpus import Card, Fleet, NodeGpus
from scheduler_extender.core.room import how_many_fit

GIB = 1024
CARD = 20 * GIB
TWELVE = Demand(memory_mib=12 * GIB)
EIGHT = Demand(memory_mib=8 * GIB)
WHOLE = Demand(whole=True)
PAIR = Demand(cards=2, whole=True)
PLUGIN = Demand(profile="nvidia.com/gpu")


def a_fleet(*cards: int, profile: str = "") -> Fleet:
    """A node for each number, with as many cards of 20 GiB."""
    return Fleet(
        NodeGpus(f"n{n}", tuple(Card(f"n{n}/{i}", CARD, profile=profile) for i in range(count)))
        for n, count in enumerate(cards)
    )


def a_claim(
    name: str,
    current: int,
    wanted: int,
    needs: Demand = TWELVE,
    *,
    floor: int = 0,
    held: bool = False,
    acts: bool = True,
) -> Claim:
    decision = Decision(
        service=ServiceId("team", name),
        at_s=0.0,
        generation=1,
        current=current,
        replicas=wanted if acts else current,
        decided=wanted,
        state=ZeroState.ACTIVE,
        why="serving",
        because=("16 in flight",),
        acts=acts,
        bound_by=Bound.TARGET if acts else Bound.DRY_RUN,
    )
    return Claim(decision, needs, floor=floor, held=held)


def counts(*claims: Claim, room: Room | NoReading) -> dict[str, int]:
    """What each service comes to, by its name."""
    return {sid.name: said.decided for sid, said in capped(claims, room).items()}


def test_a_wish_for_more_than_fits_is_capped_and_says_so() -> None:
    """Three of five more: the count, the rule, and what is missing; why has no number in it."""
    said = capped([a_claim("llm", 1, 6)], Room(a_fleet(2, 1)))[ServiceId("team", "llm")]
    assert (said.replicas, said.decided, said.bound_by) == (4, 4, Bound.BUDGET)
    assert said.why == "serving; no free GPU has room for more"
    assert said.because == (
        "16 in flight",
        "budget: 3 of 5 more fit: 12 GiB each, largest hole 8 GiB",
    )


def test_a_wish_that_fits_is_left_as_it_is() -> None:
    claim = a_claim("llm", 1, 4)
    assert capped([claim], Room(a_fleet(3)))[claim.decision.service] is claim.decision


@pytest.mark.parametrize(
    ("needs", "cards", "words"),
    [
        (WHOLE, (1,), "1 of 5 more fit: 1 x whole GPU each, at most 0 free on a node"),
        (PAIR, (3, 1), "1 of 5 more fit: 2 x whole GPU each, at most 1 free on a node"),
        (
            Demand(memory_milli=600),
            (1,),
            "1 of 5 more fit: 60% of memory each, largest hole 40%",
        ),
        (Demand(milli=600), (1,), "1 of 5 more fit: 60% of compute each, largest hole 40%"),
        (
            Demand(memory_mib=2 * GIB, milli=600),
            (1,),
            "1 of 5 more fit: 2 GiB each, largest hole 18 GiB, 60% of compute each, "
            "largest hole 40%",
        ),
        (PLUGIN, (4,), "0 of 5 more fit: 1 x nvidia.com/gpu each, at most 0 free on a node"),
        (TWELVE, (), "0 of 5 more fit: 12 GiB each, largest hole 0 GiB"),
    ],
    ids=["whole", "pairs", "percentage", "compute", "both", "another kind of GPU", "no node"],
)
def test_each_kind_of_demand_says_what_it_lacks(
    needs: Demand, cards: tuple[int, ...], words: str
) -> None:
    said = capped([a_claim("llm", 0, 5, needs)], Room(a_fleet(*cards)))
    assert said[ServiceId("team", "llm")].because[-1] == f"budget: {words}"


def test_a_hole_is_what_the_demand_could_have() -> None:
    """Not on a card of another kind or model, that is ill, or whose compute is all gone."""
    fleet = Fleet(
        [
            NodeGpus("plugin", (Card("p", 90 * GIB, profile="nvidia.com/gpu"),), model="B"),
            NodeGpus("other", (Card("o", 80 * GIB),), model="A"),
            NodeGpus("ill", (Card("i", 70 * GIB, healthy=False),), model="B"),
            NodeGpus("busy", (Card("b", 60 * GIB),), model="B"),
            NodeGpus("small", (Card("s", 4 * GIB),), model="B"),
        ]
    )
    busy = fleet.row_of["busy"]
    fleet.take(fleet.grant(busy, cards=(0,), demand=Demand(memory_mib=GIB, milli=999)))
    fleet.take(fleet.grant(busy, cards=(0,), demand=Demand(milli=1)))
    needs = replace(TWELVE, models=("B",), cards=2)
    said = capped([a_claim("llm", 0, 1, needs)], Room(fleet))[ServiceId("team", "llm")]
    assert said.because[-1] == (
        "budget: 0 of 1 more fit: 2 GPUs of a node, 12 GiB each, largest hole 4 GiB"
    )


def test_whole_gpus_of_device_plugins_are_counted_by_node() -> None:
    """Three and one free: of pairs one, for no pod spans nodes."""
    room = Room(a_fleet(3, 1, profile="nvidia.com/gpu"))
    pair = replace(PLUGIN, cards=2)
    assert counts(a_claim("llm", 1, 9, pair), room=room) == {"llm": 2}


def test_services_share_what_is_free_in_turns() -> None:
    """Neither gets all of it, and the first by name gets what cannot be shared."""
    assert counts(a_claim("a", 1, 9), a_claim("b", 4, 9), room=Room(a_fleet(5))) == {"a": 4, "b": 6}


def test_what_one_service_leaves_the_other_has() -> None:
    assert counts(a_claim("a", 0, 1), a_claim("b", 0, 9), room=Room(a_fleet(5))) == {"a": 1, "b": 4}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (a_claim("b", 0, 3, floor=3), a_claim("a", 0, 3, held=True)),
        (a_claim("b", 0, 3, held=True), a_claim("a", 0, 3)),
        (a_claim("b", 0, 3), a_claim("a", 0, 3, floor=3, held=True, acts=False)),
    ],
    ids=["floors before what is held", "what is held before the rest", "a dry run last"],
)
def test_who_comes_first(first: Claim, second: Claim) -> None:
    """The first gets all that is free, though it comes later by name."""
    assert counts(second, first, room=Room(a_fleet(3))) == {"b": 3, "a": 0}


def test_above_its_floor_a_service_waits_like_all_others() -> None:
    found = counts(
        a_claim("a", 0, 9, floor=2), a_claim("b", 0, 9, held=True), room=Room(a_fleet(5))
    )
    assert found == {"a": 2, "b": 3}


def test_replicas_that_wait_for_a_node_have_their_room_already() -> None:
    """They were asked for at an earlier tick; what they need is not given a second time."""
    room = Room(a_fleet(3), awaited=(TWELVE, TWELVE))
    assert counts(a_claim("llm", 3, 9), room=room) == {"llm": 4}


def test_replicas_that_fit_nowhere_keep_no_room() -> None:
    """One that asks for what no node has takes nothing from the others."""
    room = Room(a_fleet(1), awaited=(PAIR,))
    assert counts(a_claim("llm", 3, 9), room=room) == {"llm": 4}


def test_small_replicas_fill_the_holes_first() -> None:
    """So that what needs an empty card still finds one."""
    fleet = a_fleet(1, 1)
    fleet.take(fleet.grant(1, cards=(0,), demand=TWELVE))
    claims = [a_claim("a", 0, 1, EIGHT), a_claim("b", 0, 1, WHOLE)]
    assert counts(*claims, room=Room(fleet)) == {"a": 1, "b": 1}


def test_unknown_room_caps_nothing() -> None:
    """No service sleeps on because nobody says which GPUs there are (D1)."""
    claim = a_claim("llm", 0, 9)
    assert counts(claim, room=NoReading("nodes may not be listed")) == {"llm": 9}


def test_a_dry_run_says_what_would_fit_and_keeps_its_rule() -> None:
    said = capped([a_claim("llm", 1, 6, acts=False)], Room(a_fleet(2)))[ServiceId("team", "llm")]
    assert (said.replicas, said.decided, said.bound_by) == (1, 3, Bound.DRY_RUN)


def test_the_fleet_that_was_handed_in_is_untouched() -> None:
    fleet = a_fleet(3)
    capped([a_claim("llm", 0, 9)], Room(fleet))
    assert how_many_fit(fleet, TWELVE) == 3


NEEDS = st.sampled_from((TWELVE, EIGHT, WHOLE, PAIR, Demand(milli=300), Demand(memory_milli=250)))


@st.composite
def all_claims(draw: st.DrawFn) -> list[Claim]:
    return [
        a_claim(
            f"s{n}",
            current := draw(st.integers(0, 4)),
            current + draw(st.integers(1, 6)),
            draw(NEEDS),
            floor=draw(st.integers(0, 5)),
            held=draw(st.booleans()),
            acts=draw(st.booleans()),
        )
        for n in range(draw(st.integers(1, 4)))
    ]


@given(all_claims(), st.lists(st.integers(1, 4), max_size=3), st.lists(NEEDS, max_size=3))
def test_the_sum_fits_and_no_count_falls(
    claims: list[Claim], cards: list[int], awaited: list[Demand]
) -> None:
    """No service gets more than fits if it were alone, nor all together more than there is."""
    fleet = a_fleet(*cards)
    said = capped(claims, Room(fleet, tuple(awaited)))
    compute_milli = memory_milli = 0.0
    for claim in claims:
        before, after = claim.decision, said[claim.decision.service]
        got = after.decided - before.current
        assert 0 <= got <= before.decided - before.current
        assert got <= how_many_fit(fleet, claim.needs)
        assert after.replicas >= after.current
        assert (after.bound_by is Bound.BUDGET) == (after.decided < before.decided and before.acts)
        needs = claim.needs
        whole = 1000 if needs.exclusive else 0
        memory = needs.memory_milli + 1000 * needs.memory_mib / CARD
        compute_milli += got * needs.cards * max(whole, needs.milli)
        memory_milli += got * needs.cards * max(whole, memory)
    assert max(compute_milli, memory_milli) <= 1000 * sum(cards)


@given(all_claims(), st.randoms(use_true_random=False))
def test_the_order_in_which_services_are_told_decides_nothing(
    claims: list[Claim], chance: Random
) -> None:
    room = Room(a_fleet(2, 3))
    shuffled = list(claims)
    chance.shuffle(shuffled)
    assert capped(claims, room) == capped(shuffled, room)


@given(all_claims())
def test_what_is_refused_fits_nowhere_any_more(claims: list[Claim]) -> None:
    """A cap leaves no room that its service could have had, where all want the same."""
    claims = [replace(claim, needs=EIGHT) for claim in claims]
    fleet = a_fleet(2, 1)
    said = capped(claims, Room(fleet))
    got = sum(said[c.decision.service].decided - c.decision.current for c in claims)
    asked = sum(c.decision.decided - c.decision.current for c in claims)
    assert got == min(asked, how_many_fit(fleet, EIGHT))
