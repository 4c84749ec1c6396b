# SPDX-License-Identifier: Apache-2.0
"""An annotated object says what is scaled and how, or all that is wrong with it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.contract import KEYS, OBJECT_KEYS
from autoscaler.core.policy import InPath, ServicePolicy
from autoscaler.manifests import ObjectRef, TargetRef, wanted
from tests.manifests.manifests import (
    an_inference_service,
    an_llm,
    an_object,
    knatives,
    lines,
    ours,
    the_one,
)


def test_one_annotation_is_enough() -> None:
    """Enabled and nothing else: the defaults, for the object itself."""
    found = the_one(an_object())
    assert found.target == TargetRef("apps", "v1", "deployments", "Deployment", "models", "llm")
    assert found.owner == ObjectRef("apps", "v1", "Deployment", "models", "llm")
    assert found.policy == ServicePolicy()
    assert (found.component, found.problems, found.policy_from) == ("", (), None)


@pytest.mark.parametrize(
    ("kind", "api", "plural"),
    [
        ("StatefulSet", "apps/v1", "statefulsets"),
        ("LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    ],
)
def test_kinds_that_are_known_need_no_plural(kind: str, api: str, plural: str) -> None:
    """What has a replica count and is common is known by name."""
    assert the_one(an_object(kind, api=api)).target.plural == plural


def test_any_other_kind_is_scaled_under_the_plural_that_the_caller_knows() -> None:
    """Whoever watches a kind knows its plural; a manifest alone does not say it."""
    manifest = an_object("RayCluster", api="ray.io/v1")
    (found,) = wanted(manifest, plural="rayclusters")
    assert (found.target.group, found.target.plural) == ("ray.io", "rayclusters")
    assert found.policy is not None


@pytest.mark.parametrize("enabled", [None, "false"])
def test_what_does_not_ask_is_left_alone(enabled: str | None) -> None:
    """Other keys without `enabled` put nothing in force."""
    annotations = ours(max_replicas="4")
    annotations["tidegate.dev/enabled"] = enabled or ""
    if enabled is None:
        del annotations["tidegate.dev/enabled"]
    assert wanted(an_object(annotations=annotations)) == ()


@pytest.mark.parametrize("word", ["True", "yes", "1", "", True])
def test_another_word_for_enabled_is_a_problem_and_not_a_no(word: str | bool) -> None:
    """Who writes `yes` wants something; doing nothing in silence would hide it."""
    found = the_one(an_object(annotations={"tidegate.dev/enabled": word}))
    assert found.policy is None
    (line,) = lines(found)
    assert line.startswith("metadata.annotations[tidegate.dev/enabled]")
    assert "true" in line


@pytest.mark.parametrize(
    ("api", "kind"),
    [
        ("serving.kserve.io/v1beta1", "InferenceService"),
        ("serving.kserve.io/v1alpha2", "LLMInferenceService"),
        ("apps/v1", "Deployment"),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
    ],
)
def test_what_another_object_speaks_for_is_not_scaled_twice(api: str, kind: str) -> None:
    """KServe and the Deployment controller copy annotations to what they make."""
    manifest = an_object()
    owner = {"apiVersion": api, "kind": kind, "name": "iris", "controller": True}
    manifest["metadata"]["ownerReferences"] = [owner]
    assert wanted(manifest) == ()
    owner["controller"] = False
    assert wanted(manifest)


def test_an_owner_that_knows_nothing_of_scaling_does_not_speak() -> None:
    """A Deployment that some operator made is scaled like any other."""
    manifest = an_object()
    manifest["metadata"]["ownerReferences"] = [
        {"apiVersion": "example.com/v1", "kind": "Chat", "name": "x", "controller": True}
    ]
    assert the_one(manifest).policy


def test_all_mistakes_come_at_once_each_with_its_place() -> None:
    """Nothing half-applies: three mistakes, three lines, no policy (I9)."""
    keys = {"max_replica": "4", "targets": "concurency=8", "min_replicas": "-1", "paused": "true"}
    found = the_one(an_object(annotations=ours(**keys)))
    assert found.policy is None
    told = lines(found)
    assert len(told) == 3
    for place, words in (
        ("[tidegate.dev/max-replica]", "did you mean 'max-replicas'?"),
        ("[tidegate.dev/targets]", "did you mean 'concurrency'?"),
        ("[tidegate.dev/min-replicas]", "a whole number from 0 to 10000"),
    ):
        assert [line for line in told if place in line and words in line], place


def test_a_value_that_is_no_text_is_told_how_to_quote() -> None:
    """YAML reads 4 as a number, and the API server would refuse it."""
    found = the_one(an_object(annotations={**ours(), "tidegate.dev/max-replicas": 4}))
    assert lines(found) == [
        "metadata.annotations[tidegate.dev/max-replicas]: "
        'the value of an annotation is text: put it in quotes, "4"'
    ]


def test_what_tidegate_writes_itself_is_no_unknown_key() -> None:
    """The status annotation stands on the very object that is read."""
    assert the_one(an_object(annotations=ours(status="active 2 of 4"))).policy


@pytest.mark.parametrize("kind", ["DaemonSet", "ReplicationController"])
def test_kinds_without_a_count_are_refused(kind: str) -> None:
    """A DaemonSet has nothing to scale; of an unknown kind nobody can say so here."""
    found = the_one(an_object(kind))
    assert (found.policy is None) == (kind == "DaemonSet")


def test_a_config_map_gives_what_the_object_does_not_say() -> None:
    """`policy-from`: both are read, the annotation counts for more."""
    manifest = an_object(annotations=ours(policy_from="gpu", max_replicas="3"))
    data = {"max-replicas": "9", "min-replicas": "2"}
    (found,) = wanted(manifest, config_map={"gpu": data}.get)
    assert found.policy_from == "gpu"
    assert found.policy
    assert (found.policy.min_replicas, found.policy.max_replicas) == (2, 3)


def test_a_config_map_is_judged_like_annotations() -> None:
    """Its mistakes keep the object from being scaled, and name map and key."""
    manifest = an_object(annotations=ours(policy_from="gpu"))
    data = {"max-replica": "9", "hold-limit": "many", "enabled": "true"}
    (found,) = wanted(manifest, config_map={"gpu": data}.get)
    assert found.policy is None
    assert len(found.problems) == 3
    assert all("ConfigMap 'gpu', key '" in line for line in lines(found))


def test_a_config_map_that_is_not_there_is_a_problem() -> None:
    """Scaling by the rest of the keys would half-apply the policy."""
    manifest = an_object(annotations=ours(policy_from="gpu"))
    for found in (*wanted(manifest, config_map=lambda _: None), *wanted(manifest)):
        assert found.policy is None
        assert "there is no ConfigMap 'gpu'" in lines(found)[0]
        assert found.policy_from == "gpu"


def test_knative_annotations_are_read_on_any_object_and_ours_count_for_more() -> None:
    """An object that came from Knative keeps its bounds."""
    annotations = ours(max_replicas="7") | knatives(min_scale="2", max_scale="5")
    policy = the_one(an_object(annotations=annotations)).policy
    assert policy
    assert (policy.min_replicas, policy.max_replicas) == (2, 7)


def test_when_the_activator_stands_in_the_path_is_the_users_to_say() -> None:
    """The three words of the contract, and no other."""
    for word in InPath:
        policy = the_one(an_object(annotations=ours(activator=word.value))).policy
        assert policy
        assert policy.activator is word
    assert the_one(an_object(annotations=ours(activator="sometimes"))).policy is None


names = st.sampled_from([key.name for key in (*KEYS, *OBJECT_KEYS)]) | st.text(max_size=12)
values: st.SearchStrategy[Any] = (
    st.text(max_size=30)
    | st.sampled_from(["true", "0", "3", "10s", "auto", "concurrency=2", "100%/15s", "-1", "gpu"])
    | st.none()
    | st.integers()
    | st.floats()
    | st.lists(st.integers(), max_size=2)
)
annotation_tables = st.dictionaries(
    st.builds(lambda name: f"tidegate.dev/{name}", names)
    | st.builds(
        lambda name: f"autoscaling.knative.dev/{name}",
        st.sampled_from(
            ["min-scale", "maxScale", "target", "window", "metric", "scale-down-delay"]
        ),
    )
    | st.sampled_from(["serving.kserve.io/stop", "serving.kserve.io/autoscalerClass"]),
    values,
    max_size=6,
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling", "behavior",
             "scaleUp", "policies", "metrics", "annotations", "containerConcurrency", "scaling",
             "tolerance", "replicas", "canary", "router", "worker", "type", "value"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(annotation_tables, junk, st.booleans())
def test_whatever_is_written_it_is_a_policy_or_a_problem_and_never_both(
    annotations: dict[str, Any], part: Any, llm: bool
) -> None:
    """I9: no input raises, and a policy comes out exactly when there is no problem."""
    annotations = {"tidegate.dev/enabled": "true", **annotations}
    service = an_inference_service(annotations=annotations, transformer=part)
    service["spec"]["predictor"] = part
    for manifest in (
        an_object(annotations=annotations),
        service,
        an_llm(annotations, prefill=part, scaling=part) if llm else an_llm(annotations, x=part),
        {"kind": "Deployment", "apiVersion": part, "metadata": part, "spec": part},
    ):
        for found in wanted(manifest):
            assert (found.policy is None) == bool(found.problems)
            assert all("\n" not in str(problem) for problem in found.problems)
            if found.policy:
                assert found.policy.min_replicas <= found.policy.max_replicas
