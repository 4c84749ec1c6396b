# SPDX-License-Identifier: Apache-2.0
"""Which pods are refused, in one line that names the thing and the remedy."""

import pytest

from scheduler_extender.admission.pods import Wiring
from scheduler_extender.admission.review import mutate, review, validate
from scheduler_extender.errors import Malformed
from tests.scheduler_extender.admission.pods import (
    ASKING,
    NVIDIA,
    VOID,
    Raw,
    a_container,
    a_pod,
    a_review,
    given,
    mutated,
    refusal,
    reviewed,
)

ALL = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}
GPU = {"nvidia.com/gpu": "1"}


def from_elsewhere(source: Raw) -> Raw:
    return {"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": source}


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(ALL, id="all"),
        pytest.param({"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}, id="an index"),
        pytest.param(from_elsewhere({"configMapKeyRef": {"name": "m", "key": "k"}}), id="a map"),
        pytest.param(given("NVIDIA_VISIBLE_DEVICES", "gpu-mem-mib"), id="another annotation"),
    ],
)
@pytest.mark.parametrize("annotations", [None, ASKING], ids=["not asking", "asking"])
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_nobody_sets_the_visible_devices_himself(
    entry: Raw, annotations: dict[str, str] | None, where: str
) -> None:
    greedy = a_container("greedy", env=[entry])
    init = (greedy,) if where == "initContainers" else ()
    pod = a_pod(*(() if init else (greedy,)), init=init, annotations=annotations)
    why = refusal(a_review(pod), validate)
    assert why.startswith("container greedy: nobody sets NVIDIA_VISIBLE_DEVICES himself; ")
    if annotations:
        assert refusal(a_review(pod), mutate) == why


def test_of_two_entries_of_a_name_each_is_looked_at() -> None:
    env = [given("NVIDIA_VISIBLE_DEVICES", "gpu-uuids"), ALL]
    assert "nobody sets" in refusal(a_review(a_pod(a_container(env=env))), validate)


@pytest.mark.parametrize(
    "env",
    [
        pytest.param([VOID], id="no GPU"),
        pytest.param([{"name": "NVIDIA_VISIBLE_DEVICES"}], id="an empty value"),
        pytest.param([given("NVIDIA_VISIBLE_DEVICES", "gpu-uuids")], id="the grant"),
    ],
)
def test_a_pod_may_name_the_grant_or_no_gpu(env: list[Raw]) -> None:
    assert refusal(a_review(a_pod(a_container(env=env))), validate) == ""


def test_the_size_of_a_share_is_not_for_its_pod_to_set() -> None:
    env = [{"name": "TIDEGATE_GPU_MEMORY_MIB", "value": "80000"}]
    why = refusal(a_review(a_pod(a_container(env=env), annotations=ASKING)), mutate)
    assert "TIDEGATE_GPU_MEMORY_MIB" in why
    assert "leave it out" in why


def test_a_pod_brings_no_grant_along() -> None:
    pod = a_pod(annotations={"tidegate.dev/gpu-uuids": "GPU-1"})
    why = refusal(a_review(pod), validate)
    assert why == "tidegate.dev/gpu-uuids: only the scheduler extender writes it; leave it out"


def test_the_grant_of_a_pod_is_not_changed_afterwards() -> None:
    old = a_pod(annotations={"tidegate.dev/gpu-uuids": "GPU-1", "other": "a"})
    pod = a_pod(annotations={"tidegate.dev/gpu-uuids": "GPU-1,GPU-2", "other": "a"})
    gone = a_pod(annotations={"other": "a"})
    for changed, subresource in ((pod, None), (gone, None), (pod, "status")):
        body = a_review(changed, operation="UPDATE", old=old, subresource=subresource)
        assert refusal(body, validate).startswith("tidegate.dev/gpu-uuids: ")
    fine = a_pod(annotations={"tidegate.dev/gpu-uuids": "GPU-1", "other": "b"})
    assert refusal(a_review(fine, operation="UPDATE", old=old), validate) == ""


def test_a_pod_from_before_the_webhook_can_still_be_labelled() -> None:
    old = a_pod(a_container(env=[ALL]))
    body = a_review(a_pod(a_container(env=[ALL])), operation="UPDATE", old=old)
    assert refusal(body, validate) == ""


def test_a_debugger_takes_no_gpus_either() -> None:
    old = a_pod()
    spec = {**old["spec"], "ephemeralContainers": [{"name": "debugger", "env": [ALL]}]}
    body = a_review(
        {**old, "spec": spec}, operation="UPDATE", old=old, subresource="ephemeralcontainers"
    )
    assert refusal(body, validate).startswith("container debugger: nobody sets ")


@pytest.mark.parametrize(
    ("annotation", "text", "permitted"),
    [
        pytest.param("gpu-memory", "12GB", "such as 12Gi, 800Mi or 25%", id="a wrong unit"),
        pytest.param("gpu-memory", "0", "such as 12Gi, 800Mi or 25%", id="nothing"),
        pytest.param("gpu-core", "0.5", "from 1% to 100%", id="a part, not a percentage"),
        pytest.param("gpu-count", "65", "from 1 to 64", id="too many"),
        pytest.param("mig-profile", "small", "such as 1g.10gb", id="no profile"),
    ],
)
def test_an_amount_that_makes_no_sense_is_refused_with_what_is_permitted(
    annotation: str, text: str, permitted: str
) -> None:
    pod = a_pod(annotations={f"tidegate.dev/{annotation}": text})
    for judge in (mutate, validate):
        why = refusal(a_review(pod), judge)
        assert why.startswith(f"tidegate.dev/{annotation}: '{text}' is not ")
        assert permitted in why
        assert "\n" not in why


def test_a_wish_and_resources_that_differ_are_refused() -> None:
    amounts = {"tidegate.dev/gpu-mem-mib": "1024"}
    pod = a_pod(a_container(requests=amounts, limits=amounts), annotations=ASKING)
    assert "make them agree" in refusal(a_review(pod), mutate)


@pytest.mark.parametrize(
    "name", ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/gpu.shared"]
)
def test_device_plugin_and_extender_do_not_serve_the_same_pod(name: str) -> None:
    amounts = {name: "1"}
    pod = a_pod(a_container(requests=amounts, limits=amounts), annotations=ASKING)
    why = refusal(a_review(pod), validate)
    assert why.startswith(f"container main: {name} beside annotations of tidegate.dev; ")


def test_a_pod_that_chose_its_node_would_get_no_gpu() -> None:
    why = refusal(a_review(a_pod(annotations=ASKING, nodeName="n1")), mutate)
    assert "spec.nodeName: n1" in why
    assert "spec.nodeSelector" in why


def test_a_container_that_is_named_must_be_there() -> None:
    notes = {**ASKING, "tidegate.dev/gpu-container": "mian"}
    why = refusal(a_review(a_pod(annotations=notes)), mutate)
    assert why == "tidegate.dev/gpu-container: 'mian' is no container of this pod; it has main"


def test_a_container_that_is_named_is_the_one_with_the_resources() -> None:
    amounts = {"tidegate.dev/gpu-mem-mib": "12288"}
    notes = {**ASKING, "tidegate.dev/gpu-container": "b"}
    bearer = a_container("a", requests=amounts, limits=amounts)
    why = refusal(a_review(a_pod(bearer, a_container("b"), annotations=notes)), mutate)
    assert "stand at a; move them" in why


def test_all_problems_are_told_at_once_in_one_line() -> None:
    notes = {"tidegate.dev/gpu-memory": "much", "tidegate.dev/gpu-core": "0"}
    why = refusal(a_review(a_pod(a_container(env=[ALL]), annotations=notes)), validate)
    assert why.count("; ") >= 2
    assert all(part in why for part in ("NVIDIA_VISIBLE_DEVICES", "gpu-memory", "gpu-core"))


def test_the_runtime_that_shows_gpus_is_for_pods_that_ask() -> None:
    why = refusal(a_review(a_pod(runtimeClassName="nvidia")), validate)
    assert why.startswith("container main: spec.runtimeClassName nvidia shows it whatever GPUs ")


def test_resources_alone_do_not_say_which_gpus_a_container_sees() -> None:
    amounts = {"tidegate.dev/gpu-mem-mib": "12288"}
    told = given("NVIDIA_VISIBLE_DEVICES", "gpu-uuids")
    for env, refused in (([], True), ([told], False)):
        bearer = a_container(env=env, requests=amounts, limits=amounts)
        why = refusal(a_review(a_pod(bearer, runtimeClassName="nvidia")), validate)
        assert bool(why) is refused


def test_a_sidecar_beside_the_device_plugins_container_is_let_be() -> None:
    pod = a_pod(a_container(requests=GPU, limits=GPU), a_container("b"), runtimeClassName="nvidia")
    assert refusal(a_review(pod), validate) == ""


@pytest.mark.parametrize(
    ("container", "wiring"),
    [
        pytest.param(a_container(requests=GPU, limits=GPU), NVIDIA, id="the device plugin's"),
        pytest.param(a_container(env=[VOID]), NVIDIA, id="hidden"),
        pytest.param(a_container(), Wiring(), id="no runtime class of ours"),
    ],
)
def test_the_runtime_that_shows_gpus_is_left_to(container: Raw, wiring: Wiring) -> None:
    pod = a_pod(container, runtimeClassName="nvidia")
    assert refusal(a_review(pod), validate, wiring=wiring) == ""


def test_a_pod_that_was_not_made_ready_is_refused() -> None:
    why = refusal(a_review(a_pod(annotations=ASKING)), validate)
    assert "mutating webhook" in why
    assert refusal(a_review(mutated(a_pod(annotations=ASKING))), validate) == ""


def test_a_sidecar_that_came_after_us_is_noticed() -> None:
    pod = mutated(a_pod(annotations=ASKING))
    pod["spec"]["containers"].append(a_container("late"))
    assert "reinvocationPolicy" in refusal(a_review(pod), validate)


def test_the_api_servers_default_in_a_fieldref_is_still_ours() -> None:
    pod = mutated(a_pod(annotations=ASKING))
    for entry in pod["spec"]["containers"][0]["env"]:
        if "valueFrom" in entry:
            entry["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    assert refusal(a_review(pod), validate) == ""


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        pytest.param("tidegate.dev/gpu-mem", "is not known", id="misspelt"),
        pytest.param("tidegate.dev/gpu-models", "alone asks for no GPU", id="how, not how much"),
    ],
)
def test_an_annotation_that_does_nothing_is_warned_about(annotation: str, words: str) -> None:
    response = reviewed(a_review(a_pod(annotations={annotation: "x"})), validate)
    (warning,) = response["warnings"]
    assert response["allowed"]
    assert f"{annotation} {words}" in warning
    assert "tidegate.dev/gpu-memory" in warning


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="no kind"),
        pytest.param(b"[1]", id="a list"),
        pytest.param(a_review(a_pod(), version="admission.k8s.io/v1beta1"), id="an old version"),
        pytest.param(a_review({"spec": {"containers": [3]}}), id="no containers"),
        pytest.param(a_review({"metadata": {"annotations": ASKING}}), id="no spec"),
    ],
)
def test_what_is_no_review_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        review(body, validate, wiring=NVIDIA)
