# SPDX-License-Identifier: Apache-2.0
"""What KServe makes of an InferenceService in Standard mode: Deployment, Service, HPA. Pure.

Names, labels, ports and annotations are those that its own controller was seen to give. Absent: the
storage initialiser, agents and loggers, multi-node, ingress, Knative and ModelMesh modes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from tests.lab.rest import Object

GROUP = "serving.kserve.io"
SERVICE_LABEL = f"{GROUP}/inferenceservice"
CONTAINER = "kserve-container"
HTTP_PORT = 8080
KINDS = ("predictor", "transformer", "explainer")
FORMATS = ("sklearn", "xgboost", "lightgbm", "onnx", "pmml", "pytorch", "tensorflow", "triton")
# Fields of a component that are not fields of its pods.
NOT_OF_PODS = {
    *("annotations", "autoScaling", "batcher", "canaryTrafficPercent", "containerConcurrency"),
    *("containers", "deploymentStrategy", "huggingface", "labels", "logger", "maxReplicas"),
    *("minReplicas", "model", "name", "paddle", "scaleMetric", "scaleMetricType", "scaleTarget"),
    *("storageContainerName", "storageUris", "timeout", "workerSpec", *FORMATS),
}
DISALLOWED = (
    *("autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/max-scale"),
    *("autoscaling.knative.dev/minScale", "autoscaling.knative.dev/maxScale"),
    "internal.serving.kserve.io/storage-initializer-sourceuri",
    "kubectl.kubernetes.io/last-applied-configuration",
)
PROBE = {
    "tcpSocket": {"port": HTTP_PORT},
    "timeoutSeconds": 1,
    "periodSeconds": 10,
    "successThreshold": 1,
    "failureThreshold": 3,
}


class Unusable(Exception):
    """KServe would report this in the status and make nothing."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the ConfigMap `inferenceservice-config` says, as far as it matters here."""

    disallowed: tuple[str, ...] = DISALLOWED
    headless: bool = False

    @staticmethod
    def read(config_map: Object | None) -> "Config":
        data = (config_map or {}).get("data") or {}
        ours = json.loads(data.get("inferenceService", "{}"))
        service = json.loads(data.get("service", "{}"))
        more = tuple(ours.get("serviceAnnotationDisallowedList", ()))
        return Config((*DISALLOWED, *more), bool(service.get("serviceClusterIPNone", False)))


@dataclass(frozen=True, slots=True)
class Component:
    """One Deployment with its Service. `fixed_size` None: somebody else may scale it."""

    name: str
    kind: str
    spec: Object  # predictor, transformer or explainer as written
    isvc: Object
    fixed_size: int | None = None
    canary: bool = False

    @property
    def autoscaler(self) -> str:
        return str(_annotations(self.isvc).get(f"{GROUP}/autoscalerClass", "hpa"))

    @property
    def labels(self) -> dict[str, str]:
        meta = self.isvc["metadata"]
        own = {"app": f"isvc.{self.name}", "component": self.kind, SERVICE_LABEL: meta["name"]}
        return {**(meta.get("labels") or {}), **self.spec.get("labels", {}), **own}


def stopped(isvc: Object) -> bool:
    return str(_annotations(isvc).get(f"{GROUP}/stop", "")).lower() == "true"


def components(isvc: Object) -> list[Component]:
    """All that should run for an InferenceService; nothing for a stopped one."""
    if stopped(isvc):
        return []
    name, spec = isvc["metadata"]["name"], isvc["spec"]
    found = [
        Component(name=f"{name}-{kind}", kind=kind, spec=spec[kind], isvc=isvc)
        for kind in KINDS
        if kind in spec
    ]
    if found and found[0].autoscaler == "none":
        found = [replace(one, fixed_size=one.spec.get("minReplicas", 1)) for one in found]
    stable_min = max(spec["predictor"].get("minReplicas", 1), 1)
    for canary in spec.get("canary", ()):
        predictor = canary["predictor"]
        found.append(
            Component(
                name=f"{name}-{predictor['name']}-predictor",
                kind="predictor",
                spec=predictor,
                isvc=isvc,
                fixed_size=ceil(stable_min * canary["trafficPercent"] / 100),
                canary=True,
            )
        )
    return found


def deployment(one: Component, config: Config, *, runtimes: Iterable[Object]) -> Object:
    """Without `replicas`: who sets them is the caller's to know. Raises `Unusable`."""
    runtime = None if one.spec.get("containers") else _runtime(one.spec, runtimes)
    passed = {k: v for k, v in _annotations(one.isvc).items() if k not in config.disallowed}
    annotations = {**passed, **one.spec.get("annotations", {})}
    of_runtime = runtime["spec"].get("annotations", {}) if runtime else {}
    pod = {k: v for k, v in one.spec.items() if k not in NOT_OF_PODS}
    default = {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(one, annotations),
        "spec": {
            "selector": {"matchLabels": {"app": f"isvc.{one.name}"}},
            "strategy": one.spec.get("deploymentStrategy", default),
            "template": {
                "metadata": {"labels": one.labels, "annotations": {**of_runtime, **annotations}},
                "spec": {**pod, "containers": _containers(one, runtime)},
            },
        },
    }


def service(one: Component, config: Config) -> Object:
    port = {"name": one.name, "port": 80, "targetPort": HTTP_PORT, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(one, {}),
        "spec": {
            "selector": {"app": f"isvc.{one.name}"},
            "ports": [port],
            **({"clusterIP": "None"} if config.headless else {}),
        },
    }


def hpa(one: Component) -> Object | None:
    """The HPA of the default class; None for every other, and for canaries."""
    if one.autoscaler != "hpa" or one.canary:
        return None
    low = max(one.spec.get("minReplicas", 1), 1)
    target = {"type": "Utilization", "averageUtilization": one.spec.get("scaleTarget", 80)}
    metric = {"name": one.spec.get("scaleMetric", "cpu"), "target": target}
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": one.name}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(one, {}),
        "spec": {
            "scaleTargetRef": owner,
            "minReplicas": low,
            "maxReplicas": max(one.spec.get("maxReplicas", low), low),
            "metrics": [{"type": "Resource", "resource": metric}],
            "behavior": {},
        },
    }


def owned_by(owner: Object, *, version: str, kind: str) -> list[Object]:
    meta = owner["metadata"]
    reference = {"apiVersion": f"{GROUP}/{version}", "kind": kind}
    names = {"name": meta["name"], "uid": meta["uid"]}
    return [{**reference, **names, "controller": True, "blockOwnerDeletion": True}]


def _metadata(one: Component, annotations: Mapping[str, str]) -> Object:
    return {
        "name": one.name,
        "namespace": one.isvc["metadata"]["namespace"],
        "labels": one.labels,
        "annotations": dict(annotations),
        "ownerReferences": owned_by(one.isvc, version="v1beta1", kind="InferenceService"),
    }


def _annotations(item: Object) -> Mapping[str, Any]:
    return item["metadata"].get("annotations") or {}


def _runtime(predictor: Object, runtimes: Iterable[Object]) -> Object:
    """The runtime that is named, else the first that takes the model's format by itself."""
    model = _model(predictor)
    wanted = model["modelFormat"]["name"]
    enabled = [one for one in runtimes if not one["spec"].get("disabled")]
    for runtime in enabled:
        if model.get("runtime") == runtime["metadata"]["name"]:
            return runtime
        formats = runtime["spec"].get("supportedModelFormats", ())
        takes = any(one["name"] == wanted and one.get("autoSelect") for one in formats)
        if takes and not model.get("runtime"):
            return runtime
    raise Unusable(f"No runtime found to support specified framework/version: {wanted}")


def _model(predictor: Object) -> Object:
    if "model" in predictor:
        model: Object = predictor["model"]
        return model
    for known in FORMATS:  # the older way to write it
        if known in predictor:
            return {**predictor[known], "modelFormat": {"name": known}}
    raise Unusable("a component needs a model or containers")


def _containers(one: Component, runtime: Object | None) -> list[Object]:
    if runtime is None:
        first, *rest = one.spec["containers"]
        return [_complete(first, _custom_args(one, first)), *rest]
    first, *rest = runtime["spec"]["containers"]
    model = {k: v for k, v in _model(one.spec).items() if k in _OF_CONTAINERS}
    args = [word.replace("{{.Name}}", one.isvc["metadata"]["name"]) for word in first["args"]]
    env = [*first.get("env", ()), *model.get("env", ())]
    merged = {**first, **model, **({"env": env} if env else {})}
    return [_complete(merged, [*args, *model.get("args", ())]), *rest]


_OF_CONTAINERS = {
    *("args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "ports"),
    *("livenessProbe", "readinessProbe", "resources", "securityContext", "startupProbe"),
    *("volumeMounts", "workingDir"),
}


def _custom_args(one: Component, container: Object) -> Sequence[str]:
    args: list[str] = list(container.get("args", ()))
    if one.kind == "predictor":
        return args
    meta = one.isvc["metadata"]
    host = f"{meta['name']}-predictor.{meta['namespace']}"
    http = ["--http_port", str(HTTP_PORT)]
    return [*args, "--model_name", meta["name"], "--predictor_host", host, *http]


def _complete(container: Object, args: Sequence[str]) -> Object:
    return {
        "readinessProbe": PROBE,
        **{k: v for k, v in container.items() if k != "args"},
        "name": CONTAINER,
        **({"args": list(args)} if args else {}),
    }
