# SPDX-License-Identifier: Apache-2.0
"""What KServe's objects say is read as KServe documents it, and never makes two writers."""

from typing import Any

import pytest

from autoscaler.core.policy import RateRule, RateStep, Target
from autoscaler.core.signals import Signal
from autoscaler.manifests import Wanted, wanted
from autoscaler.manifests.kserve import child_name
from tests.manifests.manifests import an_inference_service, an_llm, knatives, lines, ours, the_one


def by_component(found: tuple[Wanted, ...]) -> dict[str, Wanted]:
    return {one.component: one for one in found}


def test_each_component_is_scaled_for_itself_within_its_own_bounds() -> None:
    """Predictor, transformer and explainer are three Deployments with three policies."""
    manifest = an_inference_service(
        {"minReplicas": 0, "maxReplicas": 4},
        transformer={"minReplicas": 1, "maxReplicas": 2},
        explainer={"maxReplicas": 1},
    )
    found = by_component(wanted(manifest))
    assert {name: one.target.name for name, one in found.items()} == {
        "predictor": "llm-predictor",
        "transformer": "llm-transformer",
        "explainer": "llm-explainer",
    }
    bounds = {
        n: (o.policy.min_replicas, o.policy.max_replicas) for n, o in found.items() if o.policy
    }
    assert bounds == {"predictor": (0, 4), "transformer": (1, 2), "explainer": (0, 1)}
    assert {one.target.kind for one in found.values()} == {"Deployment"}
    assert {str(one.owner) for one in found.values()} == {"InferenceService models/llm"}


def test_our_annotations_count_for_more_and_a_components_own_for_most() -> None:
    """Component's tidegate.dev, then the service's, then KServe's fields, then Knative's."""
    manifest = an_inference_service(
        {"maxReplicas": 4, "annotations": {"tidegate.dev/hold-limit": "5"}},
        annotations=ours(hold_limit="9", min_replicas="1") | knatives(min_scale="3", max_scale="9"),
        transformer={},
    )
    found = by_component(wanted(manifest))
    predictor, transformer = found["predictor"].policy, found["transformer"].policy
    assert predictor
    assert transformer
    assert (predictor.hold_limit, transformer.hold_limit) == (5, 9)
    assert (predictor.min_replicas, transformer.min_replicas) == (1, 1)
    assert (predictor.max_replicas, transformer.max_replicas) == (4, 9)


def test_a_component_may_be_left_out_or_stand_alone() -> None:
    """`enabled` on a component decides for that one."""
    off = {"annotations": {"tidegate.dev/enabled": "false"}}
    assert set(by_component(wanted(an_inference_service(transformer=off)))) == {"predictor"}
    manifest = an_inference_service(
        annotations=ours(enabled="false"), transformer={"annotations": ours()}
    )
    assert set(by_component(wanted(manifest))) == {"transformer"}


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"serving.kserve.io/autoscalerClass": "hpa"}, ["autoscalerClass", "'hpa'", "external"]),
        ({"serving.kserve.io/autoscalerClass": ""}, ["autoscalerClass", "missing", "external"]),
        ({"serving.kserve.io/deploymentMode": "Serverless"}, ["Knative scales it", "Standard"]),
        ({"serving.kserve.io/deploymentMode": "Knative"}, ["Knative scales it", "Standard"]),
        ({"serving.kserve.io/deploymentMode": "ModelMesh"}, ["ModelMesh", "Standard"]),
        ({"serving.kserve.io/deploymentMode": "Standart"}, ["did you mean 'Standard'?"]),
    ],
)
def test_a_second_writer_is_refused(annotations: dict[str, str], words: list[str]) -> None:
    """Whatever else would write the count is told to be switched off."""
    found = the_one(an_inference_service(annotations=annotations))
    assert found.policy is None
    (line,) = lines(found)
    for word in words:
        assert word in line


def test_the_mode_that_kserve_settled_on_counts() -> None:
    """It cannot be changed by an annotation later, so the status says it."""
    manifest = an_inference_service() | {"status": {"deploymentMode": "Serverless"}}
    assert the_one(manifest).policy is None


def test_older_words_for_standard_mode_are_understood() -> None:
    """RawDeployment is what Standard was called."""
    mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    assert the_one(an_inference_service(annotations=mode)).policy


def test_a_stopped_service_is_not_scaled() -> None:
    """KServe has deleted its Deployments."""
    assert wanted(an_inference_service(annotations={"serving.kserve.io/stop": "true"})) == ()


@pytest.mark.parametrize(
    ("fields", "most"),
    [({}, 1), ({"maxReplicas": 0}, 1), ({"minReplicas": 3}, 3), ({"maxReplicas": 5}, 5)],
)
def test_no_limit_of_kserves_is_a_limit_here_and_is_said(fields: Any, most: int) -> None:
    """KServe takes no maxReplicas for no limit; GPUs are not without limit."""
    found = the_one(an_inference_service(fields))
    assert found.policy
    assert found.policy.max_replicas == most
    said = any("no maxReplicas" in note.text for note in found.notes)
    assert said == (fields.get("maxReplicas", 0) == 0)


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({"scaleMetric": "concurrency", "scaleTarget": 8}, (Target(Signal.CONCURRENCY, 8),)),
        ({"scaleMetric": "rps", "scaleTarget": 20}, (Target(Signal.RPS, 20),)),
        ({"containerConcurrency": 10}, (Target(Signal.CONCURRENCY, 7),)),
    ],
)
def test_targets_are_read_from_kserves_fields(fields: Any, targets: tuple[Target, ...]) -> None:
    """What one replica should carry; of containerConcurrency 70 %, as Knative has it."""
    found = the_one(an_inference_service(fields))
    assert found.policy
    assert found.policy.targets == targets
    assert found.policy.slots == fields.get("containerConcurrency")


@pytest.mark.parametrize(
    "fields",
    [
        {"scaleMetric": "cpu", "scaleTarget": 80},
        {"scaleTarget": 80},
        {"scaleMetric": "rps"},
        {"autoScaling": {"metrics": [{"type": "External"}]}},
        {"canaryTrafficPercent": 10},
    ],
)
def test_what_means_nothing_here_is_a_warning_and_changes_nothing(fields: Any) -> None:
    """CPU is no signal of a model server's load, so the default target stays."""
    found = the_one(an_inference_service(fields))
    assert len(found.warnings) == 1
    assert found.policy
    assert found.policy.targets == (Target(Signal.CONCURRENCY, 1),)


def test_behavior_is_read_as_the_rate_rules_it_is() -> None:
    """HPA's words for scale-up and scale-down, which KServe itself drops."""
    behavior = {
        "scaleUp": {
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 15},
                {"type": "Pods", "value": 4, "periodSeconds": 30},
            ],
            "tolerance": "50m",
        },
        "scaleDown": {"stabilizationWindowSeconds": 300},
    }
    policy = the_one(an_inference_service({"autoScaling": {"behavior": behavior}})).policy
    assert policy
    steps = (RateStep(15, ratio=1.0), RateStep(30, replicas=4))
    assert policy.scale_up == RateRule(steps, 0.0, 0.05)
    assert policy.scale_down == RateRule((), 300.0, 0.1)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"minReplicas": -1}, "spec.predictor.minReplicas"),
        ({"minReplicas": "2"}, "spec.predictor.minReplicas"),
        ({"minReplicas": 5, "maxReplicas": 2}, "spec.predictor.minReplicas"),
        ({"maxReplicas": 99999}, "spec.predictor.maxReplicas"),
        ({"scaleMetric": "rps", "scaleTarget": 0}, "spec.predictor.scaleTarget"),
        ({"workerSpec": {}}, "spec.predictor.workerSpec"),
        (
            {"autoScaling": {"behavior": {"scaleUp": {"policies": [{"type": "Pods"}]}}}},
            "spec.predictor.autoScaling.behavior.scaleUp.policies[0]",
        ),
    ],
)
def test_a_field_out_of_range_is_told_at_its_own_place(fields: Any, place: str) -> None:
    """Whoever reads the line finds the field."""
    found = the_one(an_inference_service(fields))
    assert found.policy is None
    (line,) = lines(found)
    assert line.startswith(f"{place}: ")


def test_beside_a_canary_the_predictor_does_not_sleep() -> None:
    """They share a Service: asleep, the canary would get everything."""
    canary = [{"trafficPercent": 10, "predictor": {"name": "next"}}]
    schedule = {"tidegate.dev/schedule": "Sat,Sun 00:00-24:00 UTC min=0"}
    manifest = an_inference_service(
        {"minReplicas": 0, "maxReplicas": 3}, annotations=schedule, canary=canary, transformer={}
    )
    found = by_component(wanted(manifest))
    predictor, transformer = found["predictor"].policy, found["transformer"].policy
    assert predictor
    assert transformer
    assert predictor.min_replicas == 1
    assert predictor.schedule[0].min_replicas == 1
    assert any("canary" in warning.text for warning in found["predictor"].warnings)
    assert transformer.min_replicas == 0


def test_editing_a_key_on_an_inference_service_is_said_to_roll_its_pods() -> None:
    """KServe copies annotations to pods; `enabled` and `policy-from` alone need no editing."""
    manifest = an_inference_service(annotations=ours(max_replicas="3"))
    assert any("rolls" in warning.text for warning in the_one(manifest).warnings)
    assert not the_one(an_inference_service()).warnings


def test_an_llm_is_its_main_deployment_and_its_prefill() -> None:
    """The names are KServe's; prefill never sleeps, since nothing could hold its requests."""
    manifest = an_llm(
        ours(max_replicas="4"), model={}, prefill={"scaling": {"minReplicas": 2, "maxReplicas": 6}}
    )
    found = by_component(wanted(manifest))
    assert {n: o.target.name for n, o in found.items()} == {
        "": "llm-kserve",
        "prefill": "llm-kserve-prefill",
    }
    main, prefill = found[""].policy, found["prefill"].policy
    assert main
    assert prefill
    assert (main.min_replicas, main.max_replicas) == (0, 4)
    assert (prefill.min_replicas, prefill.max_replicas) == (2, 4)


def test_behind_a_scheduler_an_llm_does_not_sleep() -> None:
    """The endpoint picker sends to pods directly, so nothing stands where requests could wait."""
    policy = the_one(an_llm(router={"scheduler": {}})).policy
    assert policy
    assert policy.min_replicas == 1


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({"replicas": 2}, "spec.replicas"),
        ({"scaling": {"wva": {}}}, "spec.scaling.wva"),
        ({"scaling": {"keda": {"triggers": []}}}, "spec.scaling.keda"),
        ({"worker": {}}, "spec.worker"),
    ],
)
def test_an_llm_with_another_writer_is_refused(spec: Any, place: str) -> None:
    """KServe would keep `replicas`, and its own scalers would write too."""
    found = the_one(an_llm(**spec))
    assert found.policy is None
    assert [str(p).partition(":")[0] for p in found.problems] == [place]


def test_long_names_are_cut_and_hashed_as_kserve_does() -> None:
    """The Deployment that is scaled must be the one that exists."""
    assert child_name("a" * 56, "-kserve") == "a" * 56 + "-kserve"
    long = child_name("a" * 57, "-kserve")
    assert len(long) == 63
    assert long.startswith("a" * 24)
    assert long.endswith("-kserve")
    assert "a" * 25 not in long
