# SPDX-License-Identifier: Apache-2.0
"""Targets of kinds that nobody here knows: their scale says which pods are theirs."""

import pytest

from autoscaler.adapters.kubernetes.selectors import equalities


@pytest.mark.parametrize(
    ("selector", "labels"),
    [
        ("app=iris", {"app": "iris"}),
        ("app=iris,tier==models", {"app": "iris", "tier": "models"}),
        ("app=iris, role=", {"app": "iris", "role": ""}),
        ("", {}),
        ("app in (a,b)", {}),
        ("app!=iris", {}),
        ("app", {}),
    ],
)
def test_equalities_are_read_and_nothing_else_is_guessed(
    selector: str, labels: dict[str, str]
) -> None:
    """A wrong guess would have other people's pods taken for replicas."""
    assert equalities(selector) == labels
