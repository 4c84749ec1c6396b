# SPDX-License-Identifier: Apache-2.0
"""What a pod that asks for GPUs becomes, and that a second pass adds nothing."""

from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from scheduler_extender.admission.pods import Wiring
from scheduler_extender.admission.review import mutate, validate
from scheduler_extender.annotations import Unclear, demand_of
from tests.scheduler_extender.admission.pods import (
    ASKING,
    TOLD,
    VOID,
    Raw,
    a_container,
    a_pod,
    a_review,
    given,
    mutated,
    operations,
    refusal,
    reviewed,
)

OURS = "tidegate.dev/"


def resources(pod: Raw, index: int = 0) -> Raw:
    return dict(pod["spec"]["containers"][index]["resources"])


def test_a_pod_that_asks_for_memory_is_made_ready() -> None:
    pod = mutated(a_pod(annotations=ASKING))
    amounts = {"tidegate.dev/gpu-mem-mib": "12288"}
    main = {
        "name": "main",
        "image": "worker",
        "resources": {"requests": amounts, "limits": amounts},
        "env": TOLD,
    }
    assert pod["spec"] == {
        "schedulerName": "tidegate-scheduler",
        "runtimeClassName": "nvidia",
        "restartPolicy": "Always",
        "containers": [main],
    }
    assert pod["metadata"] == a_pod(annotations=ASKING)["metadata"]


@pytest.mark.parametrize(
    ("wish", "amounts"),
    [
        pytest.param({"gpu-memory": "800Mi"}, {"gpu-mem-mib": "800"}, id="MiB"),
        pytest.param({"gpu-memory": "25%"}, {"gpu-mem-percent": "25"}, id="part of a card"),
        pytest.param({"gpu-core": "30%"}, {"gpu-core-percent": "30"}, id="compute"),
        pytest.param(
            {"gpu-memory": "1Gi", "gpu-core": "5"},
            {"gpu-mem-mib": "1024", "gpu-core-percent": "5"},
            id="both",
        ),
        pytest.param({"gpu-count": "2"}, {"gpu": "2"}, id="whole cards"),
        pytest.param(
            {"gpu-count": "4", "gpu-memory": "2Gi"},
            {"gpu": "4", "gpu-mem-mib": "2048"},
            id="a share of each of four",
        ),
        pytest.param({"mig-profile": "1g.10gb"}, {"gpu": "1"}, id="a MIG instance"),
        pytest.param(
            {"mig-profile": "1g.10gb+me", "gpu-count": "3"}, {"gpu": "3"}, id="three of them"
        ),
    ],
)
def test_a_wish_becomes_extended_resources(wish: dict[str, str], amounts: dict[str, str]) -> None:
    pod = mutated(a_pod(annotations={OURS + key: text for key, text in wish.items()}))
    expected = {OURS + key: text for key, text in amounts.items()}
    assert resources(pod) == {"requests": expected, "limits": expected}


def test_other_resources_and_variables_stay_and_come_after_ours() -> None:
    mine = {"name": "CARDS", "value": "$(TIDEGATE_GPU_UUIDS)"}
    container = a_container(env=[mine], requests={"cpu": "2"}, limits={"memory": "8Gi"})
    pod = mutated(a_pod(container, annotations=ASKING))
    (main,) = pod["spec"]["containers"]
    assert main["env"] == [*TOLD, mine]
    assert main["resources"] == {
        "requests": {"cpu": "2", "tidegate.dev/gpu-mem-mib": "12288"},
        "limits": {"memory": "8Gi", "tidegate.dev/gpu-mem-mib": "12288"},
    }


def test_null_where_a_list_or_a_map_may_be_is_as_nothing() -> None:
    container: Raw = {"name": "main", "env": None, "resources": None}
    pod = mutated(a_pod(container, annotations=ASKING))
    assert pod["spec"]["containers"][0]["env"] == TOLD
    assert resources(pod)["limits"] == {"tidegate.dev/gpu-mem-mib": "12288"}


def test_all_containers_see_the_cards_and_the_first_bears_the_resources() -> None:
    pod = mutated(
        a_pod(a_container("a"), a_container("b"), init=(a_container("i"),), annotations=ASKING)
    )
    every = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    assert [container["env"] for container in every] == [TOLD, TOLD, TOLD]
    assert [bool(container["resources"]) for container in every] == [False, True, False]


def test_only_the_container_that_is_named_sees_the_cards() -> None:
    notes = {**ASKING, "tidegate.dev/gpu-container": "b"}
    pod = mutated(
        a_pod(a_container("a"), a_container("b"), init=(a_container("i"),), annotations=notes)
    )
    every = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    assert [container["env"] for container in every] == [[VOID], [VOID], TOLD]
    assert [bool(container["resources"]) for container in every] == [False, False, True]


def test_resources_stay_at_the_container_that_has_them() -> None:
    amounts = {"tidegate.dev/gpu-mem-mib": "12288"}
    there = a_container("b", requests=amounts, limits=amounts)
    pod = mutated(a_pod(a_container("a"), there, annotations=ASKING))
    assert (resources(pod, 0), resources(pod, 1)) == ({}, there["resources"])


def test_capabilities_that_a_pod_names_are_its_own() -> None:
    own = {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "all"}
    pod = mutated(a_pod(a_container(env=[own]), annotations=ASKING))
    assert pod["spec"]["containers"][0]["env"] == [*TOLD[:-1], own]


def test_without_a_runtime_class_none_is_set() -> None:
    pod = mutated(a_pod(annotations=ASKING), wiring=Wiring(scheduler="packer"))
    assert "runtimeClassName" not in pod["spec"]
    assert pod["spec"]["schedulerName"] == "packer"


def test_another_scheduler_and_runtime_class_stay_and_the_user_is_warned() -> None:
    pod = a_pod(annotations=ASKING, schedulerName="mine", runtimeClassName="kata")
    after = mutated(pod)
    assert (after["spec"]["schedulerName"], after["spec"]["runtimeClassName"]) == ("mine", "kata")
    (warning,) = reviewed(a_review(after), validate)["warnings"]
    assert "mine" in warning
    assert "tidegate-scheduler" in warning


@pytest.mark.parametrize(
    "annotations",
    [
        pytest.param(None, id="none"),
        pytest.param({"tidegate.dev/mesh": "chat"}, id="one that asks for nothing"),
        pytest.param({"example.com/gpu-memory": "12Gi"}, id="somebody else's"),
    ],
)
def test_a_pod_that_does_not_ask_is_not_touched(annotations: dict[str, str] | None) -> None:
    response = reviewed(a_review(a_pod(annotations=annotations)), mutate)
    assert response == {"uid": response["uid"], "allowed": True}


@pytest.mark.parametrize(
    ("resource", "operation", "subresource"),
    [
        pytest.param("pods", "UPDATE", None, id="an update"),
        pytest.param("pods", "CREATE", "binding", id="a Binding"),
        pytest.param("nodes", "CREATE", None, id="no pod"),
    ],
)
def test_only_pods_that_are_created_are_changed(
    resource: str, operation: str, subresource: str | None
) -> None:
    pod = a_pod(annotations=ASKING)
    body = a_review(pod, old=pod, resource=resource, operation=operation, subresource=subresource)
    assert operations(reviewed(body, mutate)) == []


def test_a_debugger_sees_what_the_pod_sees() -> None:
    old = mutated(a_pod(annotations=ASKING))
    spec = {**old["spec"], "ephemeralContainers": [{"name": "debugger", "image": "cuda"}]}
    pod = mutated(
        {**old, "spec": spec}, operation="UPDATE", old=old, subresource="ephemeralcontainers"
    )
    assert pod["spec"]["ephemeralContainers"] == [
        {"name": "debugger", "image": "cuda", "env": TOLD}
    ]


def test_what_is_deleted_is_let_go() -> None:
    body = a_review(None, operation="DELETE", old=a_pod(annotations=ASKING))
    assert refusal(body, mutate) == refusal(body, validate) == ""


_wishes = st.fixed_dictionaries(
    {},
    optional={
        "tidegate.dev/gpu-count": st.sampled_from(["1", "2", "8"]),
        "tidegate.dev/gpu-memory": st.sampled_from(["1", "800Mi", "12Gi", "7G", "1%", "100%"]),
        "tidegate.dev/gpu-core": st.sampled_from(["1", "30%", "100"]),
        "tidegate.dev/mig-profile": st.sampled_from(["1g.10gb", "3g.40gb", "1g.10gb+me"]),
        "tidegate.dev/gpu-models": st.sampled_from(["A", "A,B"]),
        "tidegate.dev/gpu-container": st.sampled_from(["a", "b", "i"]),
        "other": st.just("x"),
    },
)
_env = st.lists(
    st.sampled_from(
        [
            {"name": "HOME", "value": "/"},
            VOID,
            given("NVIDIA_VISIBLE_DEVICES", "gpu-uuids"),
            given("TIDEGATE_GPU_MEMORY_MIB", "gpu-mem-mib"),
        ]
    ),
    max_size=3,
    unique_by=lambda entry: entry["name"],
)
_resources = st.sampled_from(
    [{}, {"requests": {"cpu": "1"}}, {"limits": {"memory": "1Gi"}}, {"requests": None}]
)


@st.composite
def _pods(draw: st.DrawFn) -> Raw:
    def container(name: str) -> Any:
        maybe: Any = st.one_of(st.none(), _env)
        return {"name": name, "resources": draw(_resources), "env": draw(maybe)}

    init = (container("i"),) if draw(st.booleans()) else ()
    every = [container(name) for name in draw(st.sampled_from(["a", "ab"]))]
    return a_pod(*every, init=init, annotations=draw(_wishes))


@drawn(_pods())
def test_a_second_pass_adds_nothing_and_the_wish_stays_what_it_was(pod: Raw) -> None:
    response = reviewed(a_review(pod), mutate)
    if not response["allowed"]:
        return
    once = mutated(pod)
    assert operations(reviewed(a_review(once), mutate)) == []
    assert refusal(a_review(once), validate) == ""
    before, after = demand_of(pod), demand_of(once)
    assert not isinstance(before, Unclear)
    assert before == after
