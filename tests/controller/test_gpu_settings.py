# SPDX-License-Identifier: Apache-2.0
"""The section `[gpus]` of a cluster's config file."""

import pytest

from autoscaler.cluster_settings import parse
from autoscaler.errors import BadInput


def test_exporters_are_named_by_their_service_or_their_urls() -> None:
    found = parse(
        {"gpus": {"dcgm-service": "mon/dcgm-exporter", "dcgm": ["http://n1:9400/metrics"] * 2}}
    )
    assert found.dcgm_service == ("mon", "dcgm-exporter")
    assert found.dcgm == ("http://n1:9400/metrics",)


def test_without_the_section_or_with_an_empty_name_none_is_asked() -> None:
    for document in ({}, {"gpus": {"dcgm-service": "", "dcgm": []}}):
        found = parse(document)
        assert (found.dcgm_service, found.dcgm) == (None, ())


@pytest.mark.parametrize(
    ("gpus", "named"),
    [
        pytest.param({"dcgm-service": "dcgm-exporter"}, "dcgm-service", id="no namespace"),
        pytest.param({"dcgm-service": "a/b/c"}, "dcgm-service", id="too many parts"),
        pytest.param({"dcgm-service": 5}, "dcgm-service", id="no text"),
        pytest.param({"dcgm": "http://n1:9400"}, "dcgm", id="no list"),
        pytest.param({"dcgm": ["https://n1:9400/metrics"]}, "https://n1", id="TLS"),
        pytest.param({"dcgm": ["n1:9400"]}, "n1:9400", id="no scheme"),
        pytest.param({"dcgm": ["http://n1:port/metrics"]}, "http://n1:port", id="no port"),
        pytest.param({"dcgm": ["http://n1/a b"]}, "http://n1/a b", id="a space"),
        pytest.param({"dcgm": [7]}, "7", id="a number"),
        pytest.param({"dcgm-servce": "a/b"}, "dcgm-service", id="a slip of the pen"),
    ],
)
def test_what_is_not_permitted_is_named_with_what_is(gpus: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse({"gpus": gpus})
    (problem,) = refused.value.problems
    assert named in problem
    assert "gpus." in problem
