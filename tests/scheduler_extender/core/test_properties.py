# SPDX-License-Identifier: Apache-2.0
"""What holds for every fleet and every sequence of pods."""

from collections import Counter
from dataclasses import astuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.cache import ScoreCache
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits, why_not
from scheduler_extender.core.gpus import Fleet, Grant
from scheduler_extender.core.ledger import Entry, Ledger
from scheduler_extender.core.outlook import Outlook, Standing, free_part
from scheduler_extender.core.room import how_many_fit
from scheduler_extender.core.score import NO_FIT, scores, winner
from scheduler_extender.core.typical import Arrivals, Typical, as_shape
from tests.scheduler_extender.core.fleets import a_node, demands, fleets

Step = tuple[str, Demand, int]  # what happens, with which demand, to which of the pods there are
steps = st.lists(
    st.tuples(
        st.sampled_from(("place", "place", "place", "leave", "cordon", "renew")),
        demands(),
        st.integers(0, 1000),
    ),
    max_size=40,
)
few = settings(max_examples=60, deadline=None)


def played(fleet: Fleet, sequence: list[Step]) -> dict[str, Grant]:
    """Let the pods come and go; who is there at the end, and what they have."""
    ledger, there = Ledger(fleet), dict[str, Grant]()
    cache = ScoreCache(fleet, Typical())
    for number, (what, demand, pick) in enumerate(sequence):
        if what == "place":
            row = winner(cache.scores(demand, fleet.all_rows()), fleet.order())
            cards = None if row is None else choose_cards(fleet, demand, row)
            if row is not None and cards is not None:
                grant = fleet.grant(row, cards=cards, demand=demand)
                assert isinstance(ledger.hold(f"p{number}", grant, deadline_s=1), Entry)
                there[f"p{number}"] = grant
        elif what == "leave" and there:
            uid = sorted(there)[pick % len(there)]
            assert ledger.release(uid) is not None
            del there[uid]
        elif what == "cordon":
            row = pick % fleet.rows
            fleet.set_usable(row, card=0, usable=pick % 2 == 0)
        elif what == "renew":
            node = fleet.nodes[fleet.names[pick % fleet.rows]]
            ledger.fleet.remove_node(node.name)
            ledger.set_node(node)
    return there


@few
@given(fleets(), steps)
def test_no_card_ever_gives_more_than_it_has(fleet: Fleet, sequence: list[Step]) -> None:
    """Summed up from what the pods hold, without the fleet's own books."""
    there = played(fleet, sequence)
    memory, milli, pods = Counter[str](), Counter[str](), Counter[str]()
    for grant in there.values():
        assert len(set(grant.uuids)) == len(grant.parts)
        for part in grant.parts:
            memory[part.uuid] += part.memory_mib
            milli[part.uuid] += part.milli
            pods[part.uuid] += 1
    for node in fleet.nodes.values():
        for card in node.cards:
            assert memory[card.uuid] <= card.memory_mib
            assert milli[card.uuid] <= 1000
            assert pods[card.uuid] <= card.slots


@few
@given(fleets(), steps)
def test_a_fleet_is_as_new_when_all_pods_have_left(fleet: Fleet, sequence: list[Step]) -> None:
    for grant in played(fleet, sequence).values():
        fleet.give_back(grant)
    for free, total in (
        (fleet.memory_free, fleet.memory_total),
        (fleet.milli_free, fleet.milli_total),
        (fleet.slots_free, fleet.slots_total),
        (fleet.cpu_free, fleet.cpu_total),
    ):
        assert (free == total).all()
    assert not any(fleet.mesh_pods.values())


@few
@given(
    fleets(), st.lists(demands(), min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=30)
)
def test_kept_scores_are_those_that_would_be_found_now(
    fleet: Fleet, shapes: list[Demand], turns: list[int]
) -> None:
    """However rows change and expectations move between two looks."""
    arrivals = Arrivals()
    expected = Typical()
    cache = ScoreCache(fleet, expected)
    for turn, index in enumerate(turns):
        demand = shapes[index % len(shapes)]
        arrivals.observe([demand])
        if turn % 7 == 3:
            expected = arrivals.typical()
            cache.expect(expected)
        if turn == 11:
            fleet.set_node(a_node("late", cpu_milli=9000))
        some = np.array([row for row in range(fleet.rows) if row % 3 == turn % 3], dtype=np.int64)
        part = cache.scores(demand, some)
        kept = cache.scores(demand, fleet.all_rows())
        assert (part == kept[some]).all()
        outlook = Outlook(fleet, expected)
        # One row at a time, as no look at all rows would: how many come together does not matter.
        for row in range(fleet.rows):
            assert kept[row] == scores(fleet, demand, np.array([row]), outlook)[0]
        best = winner(kept, fleet.order())
        cards = None if best is None else choose_cards(fleet, demand, best)
        if best is not None and cards is not None:
            fleet.take(fleet.grant(best, cards=cards, demand=demand))


@few
@given(fleets(), steps, st.lists(demands(), max_size=5, unique_by=as_shape), demands())
def test_what_is_of_use_is_what_each_expected_pod_could_use(
    fleet: Fleet, sequence: list[Step], expected: list[Demand], demand: Demand
) -> None:
    """Counted pod by pod and card by card; before a pod is placed, as foretold, and after it."""
    typical = Typical(tuple(map(as_shape, expected)), tuple(range(1, len(expected) + 1)))
    outlook = Outlook(fleet, typical)
    rows = fleet.all_rows()
    outlook.now(rows)
    generation = fleet.generation
    played(fleet, sequence)
    if fleet.generation != generation:
        outlook = Outlook(fleet, typical)
    now = outlook.now(rows)
    assert now.usable.tolist() == [counted(fleet, typical, row) for row in rows]
    for row in rows:
        cards = choose_cards(fleet, demand, row)
        if cards is None:
            continue
        cpu = fleet.cpu_free[[row]] - demand.cpu_milli
        fleet.take(fleet.grant(row, cards=cards, demand=demand))
        left = free_part(fleet, rows[[row]])[:, cards]
        foretold = outlook.usable_after(
            Standing(*(known[[row]] for known in astuple(now))), np.array([cards]), left, cpu=cpu
        )
        assert foretold[0] == counted(fleet, typical, row)
    assert outlook.now(rows).usable.tolist() == [counted(fleet, typical, row) for row in rows]


def counted(fleet: Fleet, typical: Typical, row: int) -> int:
    part = free_part(fleet, np.array([row]))[0].tolist()
    total = 0
    for shape, weight in zip(typical.shapes, typical.weights, strict=True):
        may = not shape.models or fleet.models[fleet.model[row]] in shape.models
        enough = [
            free
            for free, mib in zip(part, fleet.memory_total[row].tolist(), strict=True)
            if free >= (1000 if shape.exclusive else max(shape.milli, shape.memory_milli, 1))
            and (shape.exclusive or free * mib >= shape.memory_mib * 1000)
        ]
        if may and fleet.cpu_free[row] >= shape.cpu_milli and len(enough) >= shape.cards:
            total += weight * sum(enough)
    return total


@few
@given(fleets(), steps, demands())
def test_a_ranking_has_one_winner_and_it_fits(
    fleet: Fleet, sequence: list[Step], demand: Demand
) -> None:
    """No two nodes are equal in score and order; the order of asking does not matter."""
    played(fleet, sequence)
    rows = fleet.all_rows()
    outlook = Outlook(fleet, Typical())
    found = scores(fleet, demand, rows, outlook)
    best = winner(found, fleet.order())
    if best is None:
        assert not fits(fleet, demand, rows).any()
        return
    assert len(set(fleet.order())) == fleet.rows
    assert choose_cards(fleet, demand, best) is not None
    backwards = rows[::-1]
    again = winner(scores(fleet, demand, backwards, outlook), fleet.order()[backwards])
    assert again is not None
    assert backwards[again] == best


@few
@given(fleets(), steps, demands())
def test_fitting_scoring_and_reasons_agree(
    fleet: Fleet, sequence: list[Step], demand: Demand
) -> None:
    """A node that fits has cards and a score; one that does not has neither, and a reason."""
    played(fleet, sequence)
    rows = fleet.all_rows()
    found = scores(fleet, demand, rows, Outlook(fleet, Typical()))
    for row, fit in enumerate(fits(fleet, demand, rows)):
        assert (choose_cards(fleet, demand, row) is not None) == fit
        assert (found[row] != NO_FIT) == fit
        refusal = why_not(fleet, demand, row)
        assert (refusal is None) == fit
        if refusal is not None and refusal.permanent:
            empty = Fleet([fleet.nodes[fleet.names[row]]])
            assert not fits(empty, demand, empty.all_rows())[0]


@few
@given(fleets(), steps, demands())
def test_the_room_is_what_can_be_placed_one_by_one(
    fleet: Fleet, sequence: list[Step], demand: Demand
) -> None:
    """Never less; and not more, where a pod takes one card."""
    played(fleet, sequence)
    room = how_many_fit(fleet, demand)
    twin, placed = fleet.copy(), 0
    for row in map(int, twin.all_rows()):
        while (cards := choose_cards(twin, demand, row)) is not None:
            twin.take(twin.grant(row, cards=cards, demand=demand))
            placed += 1
    assert placed <= room
    if demand.cards == 1 or demand.exclusive:
        assert placed == room
    assert how_many_fit(fleet, demand) == room
