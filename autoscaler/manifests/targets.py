# SPDX-License-Identifier: Apache-2.0
"""One annotated object -> what is to be scaled for it, with which policy, and every problem.

Pure: an object as YAML or the API gives it goes in, values come out. Nothing half-applies.
"""

from collections.abc import Mapping

from autoscaler.manifests import knative, kserve
from autoscaler.manifests.annotations import ConfigMapLookup, from_config_map, ours, resolved
from autoscaler.manifests.objects import LWS, SERVING, TargetRef, Wanted, object_ref, speaker
from autoscaler.manifests.places import Findings, table

PLURALS: Mapping[tuple[str, str], str] = {
    ("apps", "Deployment"): "deployments",
    ("apps", "StatefulSet"): "statefulsets",
    ("apps", "ReplicaSet"): "replicasets",
    (LWS, "LeaderWorkerSet"): "leaderworkersets",
}

# Kinds that never have a replica count that others may write, and what to annotate in their place.
_NOT_SCALABLE: Mapping[tuple[str, str], str] = {
    ("", "Pod"): "annotate what makes the pod, such as its Deployment",
    ("", "Service"): "annotate the Deployment behind it",
    ("", "ConfigMap"): "name it in tidegate.dev/policy-from of the object that is to be scaled",
    ("apps", "DaemonSet"): "it runs one pod on every node",
    ("batch", "Job"): "jobs are not scaled by traffic",
    ("batch", "CronJob"): "jobs are not scaled by traffic",
    ("serving.knative.dev", "Service"): "Knative scales it itself",
    ("autoscaling", "HorizontalPodAutoscaler"): "annotate what it scales, and remove it",
    ("keda.sh", "ScaledObject"): "annotate what it scales, and remove it",
    (SERVING, "ServingRuntime"): "annotate the InferenceService",
    (SERVING, "ClusterServingRuntime"): "annotate the InferenceService",
    (SERVING, "InferenceGraph"): "annotate the InferenceServices that it names",
    (SERVING, "TrainedModel"): "annotate the InferenceService that serves it",
}


def wanted(
    manifest: Mapping[str, object],
    *,
    plural: str | None = None,
    config_map: ConfigMapLookup | None = None,
) -> tuple[Wanted, ...]:
    """What is to be scaled for this object; empty where it does not ask, or another speaks for it.

    `plural`: of the object's kind, for kinds that are not known here. `config_map`: how the
    ConfigMap of `policy-from` is had; who gives none has no ConfigMaps, and so no half policies.
    """
    owner = object_ref(manifest)
    if speaker(manifest):
        return ()
    match owner.group, owner.kind:
        case "serving.kserve.io", "InferenceService":
            return kserve.inference_service(manifest, owner, config_map)
        case "serving.kserve.io", "LLMInferenceService":
            return kserve.llm_inference_service(manifest, owner, config_map)
        case _:
            return _itself(manifest, plural, config_map)


def _itself(
    manifest: Mapping[str, object], plural: str | None, config_map: ConfigMapLookup | None
) -> tuple[Wanted, ...]:
    """The object is what has the replica count."""
    owner, findings = object_ref(manifest), Findings()
    place = ("metadata", "annotations")
    said = ours(table(manifest, *place), place, findings)
    if not said.enabled:
        return ()
    kind = (owner.group, owner.kind)
    if not owner.name:
        findings.wrong(("metadata", "name"), "there is no name, so nothing can be scaled by it")
    if kind in _NOT_SCALABLE:
        why = f"a {owner.kind} has no replica count to scale: {_NOT_SCALABLE[kind]}"
        findings.wrong((*place, "tidegate.dev/enabled"), why)
    layers = [said.policy]
    if said.config_map:
        layers.append(from_config_map(said.config_map, config_map, findings))
    layers.append(knative.layer(manifest, [place], findings))
    policy = resolved(layers, findings)
    target = TargetRef(
        group=owner.group,
        version=owner.version,
        plural=plural or PLURALS.get(kind, ""),
        kind=owner.kind,
        namespace=owner.namespace,
        name=owner.name,
    )
    return (
        Wanted(
            target=target,
            owner=owner,
            component="",
            policy=policy,
            problems=tuple(findings.problems),
            warnings=tuple(findings.warnings),
            notes=tuple(findings.notes),
            policy_from=str(said.config_map.value) if said.config_map else None,
        ),
    )
