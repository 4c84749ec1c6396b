# SPDX-License-Identifier: Apache-2.0
"""The ledger counts every pod once, and tells what cannot be true."""

from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import Refusal
from scheduler_extender.core.gpus import Grant
from scheduler_extender.core.ledger import Entry, Fact, Ledger, Stage
from tests.scheduler_extender.core.fleets import MIB, a_fleet, a_node


def a_grant(ledger: Ledger, *, card: int = 0, memory_mib: int = 6_000) -> Grant:
    return ledger.fleet.grant(0, cards=(card,), demand=Demand(memory_mib=memory_mib))


def a_fact(
    uid: str = "pod", *, uuid: str = "n/0", memory_mib: int = 6_000, node: str = "n"
) -> Fact:
    return Fact(uid, node, (uuid,), memory_mib=memory_mib, milli=0)


def free(ledger: Ledger, card: int = 0) -> int:
    return int(ledger.fleet.memory_free[0, card])


def test_a_pod_that_is_held_twice_is_counted_once() -> None:
    """The second time it gets what it has, wherever it would go now."""
    ledger = Ledger(a_fleet())
    first = ledger.hold("pod", a_grant(ledger), deadline_s=60)
    assert ledger.hold("pod", a_grant(ledger, card=1), deadline_s=90) is first
    assert (free(ledger, 0), free(ledger, 1)) == (MIB - 6_000, MIB)


def test_a_hold_that_no_longer_fits_is_refused_and_changes_nothing() -> None:
    ledger = Ledger(a_fleet())
    late = a_grant(ledger, memory_mib=12_000)
    ledger.hold("pod", a_grant(ledger), deadline_s=60)
    assert isinstance(ledger.hold("late", late, deadline_s=60), Refusal)
    assert free(ledger) == MIB - 6_000
    assert ledger.entry("late") is None


def test_a_hold_expires_but_stays_counted_until_somebody_knows() -> None:
    """A Binding whose reply was lost may have been made."""
    ledger = Ledger(a_fleet())
    ledger.hold("pod", a_grant(ledger), deadline_s=60)
    assert ledger.expired(59.9) == ()
    assert [entry.uid for entry in ledger.expired(60)] == ["pod"]
    assert free(ledger) == MIB - 6_000
    ledger.release("pod")
    assert (free(ledger), ledger.expired(60)) == (MIB, ())


def test_a_pod_seen_bound_as_it_was_held_keeps_its_part_for_good() -> None:
    ledger = Ledger(a_fleet())
    held = ledger.hold("pod", a_grant(ledger), deadline_s=60)
    assert isinstance(held, Entry)
    assert ledger.bound(held.fact) is None
    known = ledger.entry("pod")
    assert known is not None
    assert (known.stage, known.deadline_s, free(ledger)) == (Stage.BOUND, None, MIB - 6_000)


def test_what_a_pod_says_beats_what_was_held_for_it() -> None:
    """A hold on one card, annotations with another: the kubelet follows the annotations."""
    ledger = Ledger(a_fleet())
    ledger.hold("pod", a_grant(ledger), deadline_s=60)
    assert ledger.bound(a_fact(uuid="n/1")) is None
    assert (free(ledger, 0), free(ledger, 1)) == (MIB, MIB - 6_000)


def test_releasing_twice_gives_back_once() -> None:
    ledger = Ledger(a_fleet())
    ledger.bound(a_fact())
    assert ledger.release("pod") is not None
    assert ledger.release("pod") is None
    assert free(ledger) == MIB


def test_facts_that_cannot_all_be_true_are_told_and_kept() -> None:
    """A card of 16,000 MiB cannot hold three pods of 6,000."""
    ledger = Ledger(a_fleet())
    conflicts = ledger.rebuild([a_fact("a"), a_fact("b"), a_fact("c")])
    assert [(c.uid, c.uuids) for c in conflicts] == [("c", ("n/0",))]
    assert free(ledger) == MIB - 12_000
    assert ledger.entry("c") is not None


def test_a_conflict_ends_when_the_pod_it_was_with_leaves() -> None:
    ledger = Ledger(a_fleet())
    ledger.rebuild([a_fact("a"), a_fact("b"), a_fact("c")])
    ledger.release("a")
    assert ledger.conflicts() == ()
    assert free(ledger) == MIB - 12_000


def test_unknown_cards_and_nodes_are_conflicts_until_they_show_up() -> None:
    """A pod may be listed before its node has told of its cards."""
    ledger = Ledger(a_fleet(a_node(cards=1)))
    told = ledger.rebuild([a_fact("a", uuid="n/1"), a_fact("b", uuid="m/0", node="m")])
    assert [c.uid for c in told] == ["a", "b"]
    assert ledger.set_node(a_node("m")) == ()
    assert ledger.set_node(a_node(cards=2)) == ()
    assert ledger.conflicts() == ()
    assert free(ledger, 1) == MIB - 6_000


def test_a_node_that_describes_itself_anew_keeps_what_its_pods_have() -> None:
    ledger = Ledger(a_fleet())
    ledger.bound(a_fact())
    assert ledger.set_node(a_node(memory_mib=20_000)) == ()
    assert free(ledger) == 14_000


def test_rebuilding_drops_what_is_no_longer_said_and_keeps_holds() -> None:
    ledger = Ledger(a_fleet())
    ledger.bound(a_fact("gone"))
    ledger.hold("held", a_grant(ledger, card=1), deadline_s=60)
    ledger.rebuild([a_fact("new", uuid="n/2")])
    assert sorted(entry.uid for entry in ledger.entries()) == ["held", "new"]
    assert [free(ledger, card) for card in range(3)] == [MIB, MIB - 6_000, MIB - 6_000]
