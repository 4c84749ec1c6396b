# SPDX-License-Identifier: Apache-2.0
"""Small manifests, complete but for what a test is about."""

from collections.abc import Mapping
from typing import Any

from autoscaler.manifests import Wanted, wanted

Manifest = dict[str, Any]


def ours(**keys: str) -> dict[str, str]:
    """`max_replicas="4"` -> `tidegate.dev/max-replicas: "4"`; enabled unless said otherwise."""
    named = {"enabled": "true", **{name.replace("_", "-"): value for name, value in keys.items()}}
    return {f"tidegate.dev/{name}": value for name, value in named.items()}


def knatives(**keys: str) -> dict[str, str]:
    return {f"autoscaling.knative.dev/{k.replace('_', '-')}": value for k, value in keys.items()}


def an_object(
    kind: str = "Deployment", *, api: str = "apps/v1", annotations: Mapping[str, Any] | None = None
) -> Manifest:
    metadata = {
        "name": "llm",
        "namespace": "models",
        "annotations": dict(ours() if annotations is None else annotations),
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": {}}


def an_inference_service(
    predictor: Mapping[str, Any] | None = None,
    *,
    annotations: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Manifest:
    manifest = an_object("InferenceService", api="serving.kserve.io/v1beta1")
    manifest["metadata"]["annotations"] |= {
        "serving.kserve.io/autoscalerClass": "external",
        "serving.kserve.io/deploymentMode": "Standard",
        **(annotations or {}),
    }
    manifest["spec"] = {"predictor": dict(predictor or {}), **spec}
    return manifest


def an_llm(annotations: Mapping[str, Any] | None = None, **spec: Any) -> Manifest:
    manifest = an_object("LLMInferenceService", api="serving.kserve.io/v1alpha2")
    manifest["metadata"]["annotations"] |= dict(annotations or {})
    manifest["spec"] = spec
    return manifest


def the_one(manifest: Manifest) -> Wanted:
    (found,) = wanted(manifest)
    return found


def lines(found: Wanted) -> list[str]:
    return [str(problem) for problem in found.problems]
