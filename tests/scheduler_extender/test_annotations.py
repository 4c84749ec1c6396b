# SPDX-License-Identifier: Apache-2.0
"""What pods and nodes say is read exactly, or refused with what to do about it."""

import math
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_extender.core import annotations as named
from scheduler_extender.core import quantity
from scheduler_extender.core.annotations import Granted, Unclear, demand_of, granted_to, pod_seen
from scheduler_extender.core.demand import Demand, Policy
from scheduler_extender.core.gpus import Grant, Part
from scheduler_extender.core.node_report import GPUS, node_seen, read_report, write_report
from tests.scheduler_extender.builders import a_node
from tests.scheduler_extender.fakes import a_pod

wish = partial(Demand, cpu_milli=1000, ram_mib=1024)  # of the pod that `a_pod` makes


def asking(notes: dict[str, str], resources: dict[str, str] | None = None) -> Demand | Unclear:
    pod = a_pod("p", annotations={getattr(named, key): text for key, text in notes.items()})
    if resources:
        pod["spec"]["containers"][0]["resources"]["limits"] = resources
    return demand_of(pod)


@pytest.mark.parametrize(
    ("notes", "wanted"),
    [
        (
            {},
            wish(
                cards=0,
            ),
        ),
        (
            {"COUNT": "2"},
            wish(
                cards=2,
                whole=True,
            ),
        ),
        (
            {"MEMORY": "12Gi"},
            wish(
                memory_mib=12288,
            ),
        ),
        (
            {"MEMORY": "25%"},
            wish(
                memory_milli=250,
            ),
        ),
        (
            {"CORE": "30%"},
            wish(
                milli=300,
            ),
        ),
        (
            {"CORE": "30", "COUNT": "2"},
            wish(
                cards=2,
                milli=300,
            ),
        ),
        (
            {"PROFILE": "1g.10gb"},
            wish(
                profile="1g.10gb",
            ),
        ),
        ({"COUNT": "1", "MODELS": "B, A"}, wish(whole=True, models=("A", "B"))),
        (
            {"COUNT": "1", "POLICY": "spread"},
            wish(
                whole=True,
                policy=Policy.SPREAD,
            ),
        ),
        (
            {"COUNT": "1", "MESH": "m", "APART": "true"},
            wish(
                whole=True,
                mesh="m",
                apart=True,
            ),
        ),
    ],
)
def test_annotations_tell_the_wish(notes: dict[str, str], wanted: Demand) -> None:
    assert asking(notes) == wanted


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        (
            {named.GPU_RESOURCE: "2"},
            wish(
                cards=2,
                whole=True,
            ),
        ),
        (
            {named.MEM_RESOURCE: "12288"},
            wish(
                memory_mib=12288,
            ),
        ),
        (
            {named.MEM_PERCENT_RESOURCE: "25"},
            wish(
                memory_milli=250,
            ),
        ),
        (
            {named.CORE_RESOURCE: "30"},
            wish(
                milli=300,
            ),
        ),
        (
            {f"{named.MIG_RESOURCE}2g.20gb": "3"},
            wish(
                cards=3,
                profile="2g.20gb",
            ),
        ),
    ],
)
def test_extended_resources_tell_the_same(resources: dict[str, str], wanted: Demand) -> None:
    assert asking({}, resources) == wanted


@pytest.mark.parametrize(("text", "memory_mib"), [("6k", 6000), ("1M", 10**6), ("81920", 81920)])
def test_memory_is_read_as_the_api_server_writes_it(text: str, memory_mib: int) -> None:
    """It stores an extended resource of 6000 as 6k."""
    assert asking({}, {named.MEM_RESOURCE: text}) == wish(memory_mib=memory_mib)


@pytest.mark.parametrize("text", ["12Gi", "12288Mi", "0", "5G"])
def test_memory_as_a_resource_has_no_unit(text: str) -> None:
    found = asking({}, {named.MEM_RESOURCE: text})
    assert isinstance(found, Unclear)
    assert "a whole number of MiB, such as 12288" in str(found)


def test_annotations_and_resources_that_agree_are_one_wish() -> None:
    both = asking(
        {"MEMORY": "12Gi", "CORE": "30%"},
        {named.MEM_RESOURCE: "12288", named.CORE_RESOURCE: "30"},
    )
    assert both == wish(
        memory_mib=12288,
        milli=300,
    )


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ({"COUNT": "0"}, "gpu-count: '0' is not a whole number from 1 to 64"),
        ({"MEMORY": "lots"}, "gpu-memory: 'lots' is not memory on each card, such as 12Gi"),
        ({"MEMORY": "-1Gi"}, "such as 12Gi"),
        ({"MEMORY": "0"}, "such as 12Gi"),
        ({"CORE": "130%"}, "gpu-core: '130%' is not a whole percentage"),
        ({"CORE": "12.5%"}, "a whole percentage"),
        ({"PROFILE": "big"}, "a MIG profile such as 1g.10gb"),
        ({"POLICY": "best"}, "one of tidegate, binpack, spread, topology"),
        ({"APART": "yes"}, "true or false"),
        ({"MODELS": "A,,B"}, "a list of GPU models"),
        ({"PROFILE": "1g.10gb", "CORE": "10%"}, "a MIG instance is given as a whole"),
    ],
)
def test_a_wish_that_cannot_be_read_says_what_is_permitted(
    notes: dict[str, str], says: str
) -> None:
    found = asking(notes)
    assert isinstance(found, Unclear)
    assert says in str(found)


def test_every_problem_of_a_pod_is_told_at_once() -> None:
    found = asking({"COUNT": "0", "MEMORY": "lots", "POLICY": "best"})
    assert isinstance(found, Unclear)
    assert len(found.problems) == 3


def test_annotation_and_resource_that_differ_are_told_with_both_names() -> None:
    found = asking({"MEMORY": "12Gi"}, {named.MEM_RESOURCE: "100"})
    assert isinstance(found, Unclear)
    assert named.MEM_RESOURCE in str(found)
    assert named.MEMORY in str(found)
    assert "make them agree" in str(found)


def test_memory_in_mib_and_in_percent_cannot_be_asked_for_together() -> None:
    found = asking({"MEMORY": "12Gi"}, {named.MEM_PERCENT_RESOURCE: "10"})
    assert isinstance(found, Unclear)
    assert "not for both" in str(found)


def test_only_one_container_may_ask() -> None:
    pod = a_pod("p")
    ours = {"limits": {named.GPU_RESOURCE: "1"}}
    pod["spec"]["containers"] = [{"name": n, "resources": ours} for n in ("left", "right")]
    found = demand_of(pod)
    assert isinstance(found, Unclear)
    assert "left, right" in str(found)


def test_a_pod_without_containers_asks_for_nothing() -> None:
    assert demand_of({"metadata": {}, "spec": {"containers": None}}) == Demand(cards=0)


def test_init_containers_count_as_kube_scheduler_counts_them() -> None:
    pod = a_pod("p", cpu="1", node="n1")
    pod["spec"]["initContainers"] = [
        {"name": "sidecar", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
        {"name": "once", "resources": {"requests": {"cpu": "3"}}},
    ]
    pod["spec"]["overhead"] = {"cpu": "250m"}
    assert pod_seen(pod).cpu_milli == 3750


@given(
    st.lists(st.uuids().map(str), min_size=1, max_size=8, unique=True),
    st.integers(1, 10**6),
    st.integers(0, 100),
    st.sampled_from(["", "llama"]),
)
def test_a_grant_is_read_back_as_it_was_written(
    uuids: list[str], memory_mib: int, percent: int, mesh: str
) -> None:
    parts = tuple(Part(n, uuid, memory_mib, percent * 10) for n, uuid in enumerate(uuids))
    written = named.grant_annotations(Grant("n", parts, mesh=mesh))
    assert granted_to(written) == Granted(tuple(uuids), memory_mib, percent * 10, mesh)


@pytest.mark.parametrize(
    "notes",
    [
        {named.GRANTED_UUIDS: "GPU-1"},
        {named.GRANTED_UUIDS: "GPU-1,", named.GRANTED_MIB: "1", named.GRANTED_CORE: "1"},
        {named.GRANTED_UUIDS: "GPU-1,GPU-1", named.GRANTED_MIB: "1", named.GRANTED_CORE: "1"},
        {named.GRANTED_UUIDS: "GPU-1", named.GRANTED_MIB: "-1", named.GRANTED_CORE: "1"},
    ],
)
def test_a_grant_that_we_would_not_write_is_kept_as_unread(notes: dict[str, str]) -> None:
    seen = pod_seen(a_pod("p", annotations=notes, node="n1"))
    assert seen.granted is None
    assert "gpu-" in seen.unread


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("500m", 500),
        ("2", 2000),
        ("0.1", 100),
        ("1e3", 10**6),
        ("1u", 1),
        (".5", 500),
        ("3k", 3 * 10**6),
    ],
)
def test_quantities_are_whole_thousandths_rounded_up(text: str, wanted: int) -> None:
    assert quantity.milli(text) == wanted


@pytest.mark.parametrize("text", ["", "m", "1.2.3", "-1", "nan", "inf", "1ki", "1 Gi", "0x10"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        quantity.quantity(text)


@given(st.integers(0, 2**60))
def test_memory_is_rounded_up_to_whole_mib(size: int) -> None:
    assert quantity.mib(str(size)) == math.ceil(size / 2**20) or size > 2**52
    assert quantity.mib(str(size)) * 2**20 >= size


def a_raw_node(report: dict[str, Any] | str) -> dict[str, Any]:
    text = report if isinstance(report, str) else orjson.dumps(report).decode()
    status = {"allocatable": {"cpu": "63500m", "memory": "260000Ki"}}
    return {"metadata": {"name": "n", "annotations": {GPUS: text}}, "status": status}


def test_a_report_is_read_back_as_it_was_written() -> None:
    for mixed in (False, True):
        report = a_node("n", cards=4, ill=1, mixed=mixed).report
        assert report is not None
        again = read_report("n", write_report(report))
        assert again.gpus == report.gpus
        assert again.ill == (("GPU-n-0", "no reason given"),)
        assert again.mixed is mixed


def test_a_node_tells_its_cpu_and_memory_rounded_down_and_what_its_device_plugin_has() -> None:
    raw = a_raw_node({"version": 1, "cards": [{"uuid": "G", "memory_mib": 10}]})
    node = node_seen(raw)
    assert node.report is not None
    assert (node.report.gpus.cpu_milli, node.report.gpus.ram_mib) == (63500, 253)
    assert node.plugin == 0
    raw["status"]["allocatable"]["nvidia.com/gpu"] = "7"
    assert node_seen(raw).plugin == 7


@pytest.mark.parametrize(
    "report",
    [
        "", "[]", "{}",
        {"version": 2, "cards": []},
        {"version": 1, "cards": [{"uuid": "G"}]},
        {"version": 1, "cards": [{"uuid": "G", "memory_mib": 0}]},
        {"version": 1, "cards": [{"uuid": "G", "memory_mib": True}]},
        {"version": 1, "cards": [{"uuid": "G,H", "memory_mib": 1}]},
        {"version": 1, "cards": [{"uuid": "G", "memory_mib": 1}] * 2},
        {"version": 1, "cards": [{"uuid": "G", "memory_mib": 1}], "links": [[0, 1]]},
        {"version": 1, "cards": [], "enforcement": "magic"},
        {"version": 1, "cards": [], "mixed": "no"},
    ],
)  # fmt: skip
def test_a_report_of_another_form_is_told_and_not_guessed(report: dict[str, Any] | str) -> None:
    node = node_seen(a_raw_node(report))
    assert node.report is None
    assert GPUS in node.unread


def test_keys_that_a_newer_agent_adds_are_passed_by() -> None:
    card = {"uuid": "G", "memory_mib": 1, "colour": "green"}
    node = node_seen(a_raw_node({"version": 1, "cards": [card], "more": {}}))
    assert node.report is not None
