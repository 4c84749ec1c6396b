# SPDX-License-Identifier: Apache-2.0
"""The core answers cases of other schedulers as those do, for every kind that it offers.

The cases lie beside the project: TIDEGATE_CASES names their directory.
"""

import json
import os
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler_extender.core import mig
from scheduler_extender.core.assign import best_linked, choose_cards
from scheduler_extender.core.demand import WHOLE_MILLI, Demand, Policy
from scheduler_extender.core.fit import Refusal, fits, why_not
from scheduler_extender.core.gpus import Card, Fleet, Grant, NodeGpus, Part
from scheduler_extender.core.ledger import Ledger
from scheduler_extender.core.outlook import Outlook, fragments
from scheduler_extender.core.room import how_many_fit
from scheduler_extender.core.score import scores
from scheduler_extender.core.typical import UNIT, Typical
from simulations.packing import rivals

DIRECTORY = Path(
    os.environ.get("TIDEGATE_CASES") or Path(__file__).parents[3] / "shared" / "data" / "cases"
)
FILE = DIRECTORY / "packing_cases.json"
BOOK: Mapping[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"cases": []}
HERE = np.array([0])

Given = Mapping[str, Any]
Expected = Mapping[str, Any]


def a_node_with(free_milli: list[int], *, model: str = "", cpu_milli: int | None = None) -> Fleet:
    """A node whose cards have so many thousandths of compute left."""
    cards = tuple(Card(f"g{i}", 1000, slots=1000) for i in range(len(free_milli)))
    fleet = Fleet([NodeGpus("n", cards, model, cpu_milli=cpu_milli)])
    for index, left in enumerate(free_milli):
        if left < WHOLE_MILLI:
            fleet.take(Grant("n", (Part(index, f"g{index}", 0, WHOLE_MILLI - left),)))
    return fleet


def typical(name: str) -> Typical:
    shapes = BOOK["typical"][name]
    return Typical(
        tuple(
            Demand(
                cards=shape["num_gpu"],
                whole=shape["gpu_milli"] == WHOLE_MILLI,
                milli=shape["gpu_milli"],
                models=(shape["gpu_model"],) if shape["gpu_model"] else (),
                cpu_milli=shape["cpu_milli"],
            )
            for shape in shapes
        ),
        tuple(round(UNIT * shape["weight"]) for shape in shapes),
    )


def a_share(pod: Given) -> Demand:
    milli = pod["gpu_milli"]
    return Demand(cards=pod["num_gpu"], milli=milli, whole=milli == WHOLE_MILLI)


def fragmentation(given: Given, expect: Expected) -> None:
    node = given["node"]
    fleet = a_node_with(
        node["gpu_free_milli"], model=node["gpu_model"], cpu_milli=node["cpu_free_milli"]
    )
    known = typical(given["typical"])
    # The weights of the cases do not quite sum to 1, and their sum counts as it is.
    told = fragments(Outlook(fleet, known), HERE)[0] * sum(known.weights) / UNIT
    assert told == pytest.approx(expect["frag_gpu_milli"], abs=max(expect.get("tolerance", 0), 1))


def unfit_gpu_milli(given: Given, expect: Expected) -> None:
    """What one kind of pod cannot use of a node that could host it: its fragments for that kind."""
    fleet = a_node_with(given["node"]["gpu_free_milli"])
    only = Outlook(fleet, Typical((a_share(given["pod"]),), (UNIT,)))
    assert fragments(only, HERE)[0] == expect["unfit_gpu_milli"]


def packing_score_0_100(given: Given, expect: Expected) -> None:
    fleet = a_node_with(given["node"]["gpu_free_milli"])
    nothing = Outlook(fleet, Typical())
    assert rivals.gpupacking(fleet, a_share(given["pod"]), HERE, nothing)[0] == expect["score"]


def device_fit(given: Given, expect: Expected) -> None:
    devices, request, cordoned = (
        given["devices"],
        given["request"],
        given["options"].get("cordoned"),
    )
    cards = tuple(
        Card(d["id"], d["mem_total"], healthy=d["healthy"], slots=d["slots_total"]) for d in devices
    )
    fleet = Fleet([NodeGpus("n", cards)])
    for index, device in enumerate(devices):
        # Who is on a card is a number of slots; what they have may be anything.
        parts = [Part(index, device["id"], 0, 0)] * device["slots_used"]
        if parts:
            parts[0] = Part(index, device["id"], device["mem_used"], device["core_used"] * 10)
        for part in parts:
            fleet.take(Grant("n", (part,)))
        fleet.set_usable(0, card=index, usable=device["id"] not in (cordoned or ()))
    demand = Demand(
        cards=request["num"],
        memory_mib=request["mem"],
        memory_milli=request.get("mem_pct", 0) * 10,
        milli=request["core"] * 10,
    )
    chosen = choose_cards(fleet, demand, 0)
    assert (chosen is not None) is expect["fit"]
    if chosen is None:
        words = {
            "memory": "memory",
            "slots": "slots",
            "exclusive": "unused",
            "compute_exhausted": "compute",
            "count": "1 GPUs, 2 asked",
            "cordoned": "cordoned",
        }
        refusal = why_not(fleet, demand, 0)
        assert isinstance(refusal, Refusal)
        assert words[expect["reason"]] in refusal.why
        return
    # Of cards that are exactly alike ours is the first, theirs the last: both are right.
    alike = [(c.memory_mib, d["slots_used"]) for c, d in zip(cards, devices, strict=True)]
    named = [index for index, card in enumerate(cards) if card.uuid in expect["devices"]]
    assert [alike[card] for card in chosen] == [alike[card] for card in named]


def device_usage_add(given: Given, expect: Expected) -> None:
    before, add = given["before"], given["add"]
    fleet = Fleet([NodeGpus("n", (Card("g0", 10_000),))])
    # What is there has no slot: there it counts pods that came since.
    fleet.memory_free[0, 0] -= before["mem_used"]
    fleet.milli_free[0, 0] -= before["core_used"] * 10
    demand = Demand(milli=add["core"] * 10, memory_mib=add["mem"])
    fleet.take(fleet.grant(0, cards=(0,), demand=demand))
    assert used(fleet) == expect


def used(fleet: Fleet) -> Mapping[str, int]:
    return {
        "slots_used": int((fleet.slots_total - fleet.slots_free)[0].sum()),
        "core_used": int((fleet.milli_total - fleet.milli_free)[0].sum()) // 10,
        "mem_used": int((fleet.memory_total - fleet.memory_free)[0].sum()),
    }


def idempotent_add(given: Given, expect: Expected) -> None:
    ledger = Ledger(Fleet([NodeGpus("n", (Card("g0", 16_000),))]))
    for uid, memory_mib, core in given["adds"]:
        demand = Demand(memory_mib=memory_mib, milli=core * 10)
        ledger.hold(uid, ledger.fleet.grant(0, cards=(0,), demand=demand), deadline_s=60)
    assert used(ledger.fleet) == expect


def topology_choice(given: Given, expect: Expected) -> None:
    names = given["free"]
    links = [[0] * len(names) for _ in names]
    for a, b in combinations(range(len(names)), 2):
        links[a][b] = links[b][a] = given["pair_score"][f"{names[a]}|{names[b]}"]
    best = best_linked(links, range(len(names)), count=given["num"])
    assert [names[card] for card in best] == expect["devices"]


def profiles(given: Given) -> mig.Profiles:
    sizes = given.get("profiles", {})
    amounts = given.get("profiles_mem_core", {})
    return {
        name: mig.Profile(
            sizes.get(name, {}).get("size", 1),
            tuple(sizes.get(name, {}).get("starts", (0,))),
            *amounts.get(name, (0, 0)),
        )
        for name in {**sizes, **amounts}
    }


def mig_feasible(given: Given, expect: Expected) -> None:
    taken = given["occupied_start_size"]
    assert mig.feasible(profiles(given), given["request"], taken) is expect["feasible"]


def mig_sequence(given: Given, expect: Expected) -> None:
    assert mig.place_all(profiles(given), given["order"]) == tuple(expect["starts"])


def mig_profile_for_memory(given: Given, expect: Expected) -> None:
    known = profiles(given)
    found = mig.for_memory(known, given["need_mem"])
    assert found == (expect["profile"], expect["start"])
    chosen = known[expect["profile"]]
    assert (chosen.memory_mib, chosen.milli) == (expect["mem"], expect["core"])


def mig_fit_memory(given: Given, expect: Expected) -> None:
    if "need_mem" in given:
        need = given["need_mem"]
    else:
        percent, total = given["need_pct_of"]
        need = total * percent // 100
    found = mig.for_memory(profiles(given), need, given["occupied_start_size"])
    assert (found is not None) is expect["fit"]


def device_fit_single(given: Given, expect: Expected) -> None:
    fleet = Fleet([NodeGpus("n", (Card("g0", given["mem_total"]),))])
    fleet.memory_free[0, 0] -= given["mem_used"]
    assert fits(fleet, Demand(memory_mib=given["request"]), HERE)[0] == expect["fit"]


def capacity_count(given: Given, expect: Expected) -> None:
    fleet = Fleet([NodeGpus("n", (Card("g0", given["mem_total_mib"]),))])
    room = how_many_fit(fleet, Demand(memory_mib=given["request_mib"]))
    placed = min(room, given["replicas"])
    assert {"placed": placed, "pending": given["replicas"] - placed} == expect


def node_fill_score(given: Given, expect: Expected) -> None:
    """A node's score is what would be in use with the pod there."""
    fleet = whole_cards(given["total"], used=given["used"] + given["request"])
    told = by(Policy.BINPACK, fleet)
    assert given["scale"] * told / WHOLE_MILLI == expect["score"]


def node_spread_score(given: Given, expect: Expected) -> None:
    fleet = whole_cards(given["total"], used=given["total"] - given["idle"])
    assert 1 + by(Policy.SPREAD, fleet) / WHOLE_MILLI == expect["score"]


def gpu_order_score(given: Given, expect: Expected) -> None:
    """Ours ranks a node of one card as theirs ranks the card."""
    fleet = Fleet([NodeGpus("n", (Card("g0", given["mem_total"]), Card("g1", given["mem_total"])))])
    for card in (0, 1):
        if given["mem_used"]:
            part = Part(card, f"g{card}", given["mem_used"], 0)
            fleet.take(Grant("n", (part,)))
    told = given["policy"] == "spread" and 1 + by(Policy.SPREAD, fleet) / WHOLE_MILLI
    assert (told or by(Policy.BINPACK, fleet) / WHOLE_MILLI) == expect["score"]


def whole_cards(total: int, *, used: int) -> Fleet:
    fleet = Fleet([NodeGpus("n", tuple(Card(f"g{i}", 1000) for i in range(total)))])
    for card in range(used):
        fleet.take(fleet.grant(0, cards=(card,), demand=Demand(whole=True)))
    return fleet


def by(policy: Policy, fleet: Fleet) -> int:
    """The score of the only node, of a pod that asks for no card and so fits wherever."""
    ask = Demand(cards=0, policy=policy)
    return int(scores(fleet, ask, HERE, Outlook(fleet, Typical()))[0])


KINDS: Mapping[str, Callable[[Given, Expected], None]] = {
    test.__name__: test
    for test in (
        fragmentation,
        unfit_gpu_milli,
        packing_score_0_100,
        device_fit,
        device_usage_add,
        idempotent_add,
        topology_choice,
        mig_feasible,
        mig_sequence,
        mig_profile_for_memory,
        mig_fit_memory,
        device_fit_single,
        capacity_count,
        node_fill_score,
        node_spread_score,
        gpu_order_score,
    )
}
# Weights of resources for each card; nodes by the count of idle cards; and what is on the wire.
NOT_OFFERED = {"device_score", "node_pack_score", "wire_json"}


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there: cases lie beside the project")
@pytest.mark.parametrize(
    "case",
    [case for case in BOOK["cases"] if case["kind"] in KINDS],
    ids=lambda case: str(case["id"]),
)
def test_a_case_of_another_scheduler_comes_out_as_it_does_there(case: Mapping[str, Any]) -> None:
    KINDS[case["kind"]](case["input"], case["expect"])


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there: cases lie beside the project")
def test_every_kind_of_case_is_answered_or_named_as_not_offered() -> None:
    """A kind that is new in the file is not passed over in silence."""
    assert {case["kind"] for case in BOOK["cases"]} <= set(KINDS) | NOT_OFFERED
