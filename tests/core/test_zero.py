# SPDX-License-Identifier: Apache-2.0
"""The table of sleep and wake is complete, and every rule in it can happen."""

from dataclasses import fields
from itertools import product

import pytest

from autoscaler.core.zero import CONDITIONS, RULES, Facts, ZeroState, as_mermaid, next_state

ALL_FACTS = [Facts(*bits) for bits in product((False, True), repeat=len(fields(Facts)))]


@pytest.mark.parametrize("state", ZeroState)
def test_every_state_has_an_answer_to_all_facts(state: ZeroState) -> None:
    """No combination of facts leaves a service without a next state."""
    assert {next_state(state, facts).state for facts in ALL_FACTS} == {state}


def test_every_rule_applies_to_some_facts() -> None:
    """A rule that an earlier one always overtakes would be a lie in the documentation."""
    used = {id(next_state(state, facts)) for state in ZeroState for facts in ALL_FACTS}
    assert used == {id(rule) for rule in RULES}


def test_every_condition_is_used() -> None:
    """The table's vocabulary has no word too many."""
    assert {rule.when for rule in RULES} == set(CONDITIONS)


def test_only_a_drained_or_failed_service_goes_to_sleep() -> None:
    """Nothing goes from active straight to asleep: the activator must hold the path first."""
    by_ourselves = (rule for rule in RULES if rule.when != "somebody else set the count to 0")
    into_sleep = {rule.state for rule in by_ourselves if rule.to is ZeroState.ASLEEP}
    assert into_sleep == {ZeroState.ASLEEP, ZeroState.WAKING, ZeroState.DRAINING}


def test_the_picture_names_every_transition() -> None:
    """The diagram in the documentation is drawn from the table."""
    drawn = as_mermaid()
    for rule in RULES:
        if rule.state is not rule.to:
            assert f"{rule.state} --> {rule.to}: {rule.when}" in drawn
