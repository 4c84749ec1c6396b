# SPDX-License-Identifier: Apache-2.0
"""What KServe reports of an InferenceService in Standard mode, from its Deployments. Pure.

At 0 replicas it is Ready, as the real one: a Deployment of none is Available.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.lab.kserve.components import Component, stopped
from tests.lab.rest import Object

DOMAIN = "svc.cluster.local"


def available(deployment: Object | None) -> bool:
    conditions: list[Any] = ((deployment or {}).get("status") or {}).get("conditions") or []
    return any(one["type"] == "Available" and one["status"] == "True" for one in conditions)


def status(
    isvc: Object,
    running: Sequence[tuple[Component, Object | None]],
    *,
    runtime: str,
    problem: str,
    now: str,
) -> Object:
    """The whole status; `running` are the components with their Deployments, as last seen."""
    truths = _truths(isvc, running, problem=problem)
    stable = [(one, made) for one, made in running if not one.canary]
    name, namespace = isvc["metadata"]["name"], isvc["metadata"]["namespace"]
    kinds = {one.kind: one.name for one, _ in stable}
    entry = kinds.get("transformer", kinds.get("predictor", f"{name}-predictor"))
    told: Object = {
        "observedGeneration": isvc["metadata"]["generation"],
        "deploymentMode": "Standard",
        "conditions": _conditions(isvc, truths, now=now),
        "url": f"http://{name}-{namespace}.example.com",
        "address": {"url": f"http://{entry}.{namespace}.{DOMAIN}"},
        "components": {
            one.kind: {"url": f"http://{one.name}-{namespace}.example.com"} for one, _ in stable
        },
        "modelStatus": _model_status(stable),
    }
    if runtime:
        told["clusterServingRuntimeName"] = runtime
    canaries = [(one, made) for one, made in running if one.canary]
    if canaries:
        told["canaryStatuses"] = [_canary(one, made) for one, made in canaries]
    return told


def _truths(
    isvc: Object, running: Sequence[tuple[Component, Object | None]], *, problem: str
) -> Mapping[str, tuple[bool, str, str]]:
    if stopped(isvc):
        off = (False, "Stopped", "the InferenceService is stopped")
        return {"PredictorReady": off, "IngressReady": off, "Stopped": (True, "", ""), "Ready": off}
    parts = {
        f"{'Canary' if one.canary else ''}{one.kind.capitalize()}Ready": _part(made)
        for one, made in running
    }
    if problem:
        parts["PredictorReady"] = (False, "InvalidPredictorSpec", problem)
    parts.setdefault("PredictorReady", (False, "", ""))
    bad = sorted(kind for kind, (holds, *_) in parts.items() if not holds)
    ready = (not bad, f"{bad[0]} not ready".replace(" ", "") if bad else "", "")
    return {
        **parts,
        "IngressReady": (True, "", ""),
        "Stopped": (False, "", ""),
        "Ready": ready,
    }


def _part(deployment: Object | None) -> tuple[bool, str, str]:
    if available(deployment):
        return True, "", ""
    return False, "MinimumReplicasUnavailable", "Deployment does not have minimum availability."


def _conditions(
    isvc: Object, truths: Mapping[str, tuple[bool, str, str]], *, now: str
) -> list[Object]:
    before = {c["type"]: c for c in (isvc.get("status") or {}).get("conditions") or ()}
    told = []
    for kind, (holds, reason, message) in sorted(truths.items()):
        text = "True" if holds else "False"
        old = before.get(kind)
        since = old["lastTransitionTime"] if old and old["status"] == text else now
        why = {k: v for k, v in (("reason", reason), ("message", message)) if v}
        told.append({"type": kind, "status": text, "lastTransitionTime": since, **why})
    return told


def _model_status(stable: Sequence[tuple[Component, Object | None]]) -> Object:
    predictors = [made for one, made in stable if one.kind == "predictor"]
    made = predictors[0] if predictors else None
    ready = ((made or {}).get("status") or {}).get("readyReplicas", 0)
    state = "Loaded" if ready else "Pending"
    return {
        "states": {"activeModelState": state, "targetModelState": state},
        "copies": {"totalCopies": ready, "failedCopies": 0},
        "transitionStatus": "UpToDate" if ready else "InProgress",
    }


def _canary(one: Component, made: Object | None) -> Object:
    name = one.spec["name"]
    percents = {c["predictor"]["name"]: c["trafficPercent"] for c in one.isvc["spec"]["canary"]}
    return {"name": name, "ready": available(made), "trafficPercent": percents[name]}
