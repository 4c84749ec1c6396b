# SPDX-License-Identifier: Apache-2.0
"""The kubelet's pure parts: addresses, references, thresholds, statuses, images."""

import pytest

from autoscaler.errors import RetryLater
from tests.lab import images
from tests.lab.kubelet.addresses import Addresses
from tests.lab.kubelet.env import expand
from tests.lab.kubelet.probes import Threshold
from tests.lab.kubelet.status import difference


def test_an_address_in_use_is_never_given_and_a_freed_one_comes_last() -> None:
    addresses = Addresses("10.0.0.0/29", taken=frozenset({"10.0.0.1"}))
    given = [addresses.take() for _ in range(5)]
    assert len(set(given)) == 5
    with pytest.raises(RetryLater):
        addresses.take()
    addresses.give_back(given[2])
    addresses.give_back(given[0])
    assert addresses.take(wished=given[4]) == given[2]
    assert addresses.take() == given[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("$(A)-$(B)", "1-2", id="references are replaced"),
        pytest.param("$(C) $A $(", "$(C) $A $(", id="what is no known reference stays"),
        pytest.param("$$(A) $$", "$(A) $", id="two dollars are one"),
    ],
)
def test_references_in_text(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_a_probe_changes_its_result_only_after_as_many_equal_answers_as_it_says() -> None:
    threshold = Threshold({"successThreshold": 2, "failureThreshold": 3}, False)
    results = []
    for ok in (True, False, True, True, False, False, True, False, False, False):
        threshold.count(ok)
        results.append(threshold.result)
    assert results == [False, False, False, True, True, True, True, True, True, False]


def test_only_what_changed_of_a_status_is_sent() -> None:
    ready = {"type": "Ready", "status": "False"}
    old = {"phase": "Pending", "conditions": [ready, {"type": "Initialized", "status": "True"}]}
    new = {**old, "conditions": [{"type": "Ready", "status": "True"}, old["conditions"][1]]}
    assert difference(old, old) == {}
    assert difference(old, new) == {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("image", "known"),
    [
        pytest.param("ghcr.io/x/tidegate:1@sha256:ab", "tidegate", id="registry, tag and digest"),
        pytest.param("localhost:5000/tidegate", "tidegate", id="a registry with a port"),
        pytest.param(
            "kserve/sklearnserver:v0.15", "kserve/sklearnserver", id="a name of two parts"
        ),
        pytest.param("other/sklearnserver", None, id="the same last part of another"),
        pytest.param("not-tidegate:1", None, id="a name that only ends alike"),
    ],
)
def test_an_image_is_known_by_its_name(image: str, known: str | None) -> None:
    assert images.find(image) is (images.IMAGES[known] if known else None)
