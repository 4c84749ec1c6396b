# SPDX-License-Identifier: Apache-2.0
"""What KServe makes of an LLMInferenceService, the least of it: Deployments and a Service. Pure.

`NAME-kserve` and, with `spec.prefill`, `NAME-kserve-prefill`; their size is `replicas` where it is
given. Absent: routers, schedulers, presets, multi-node, WVA and KEDA.
"""

from tests.lab.kserve.components import owned_by
from tests.lab.rest import Object

PORT = 8000


def objects(llm: Object) -> list[Object]:
    """Deployments (with `replicas` only where the spec fixes them) and the Service."""
    name = llm["metadata"]["name"]
    made = [_deployment(llm, llm["spec"], name=f"{name}-kserve", role="workload")]
    if prefill := llm["spec"].get("prefill"):
        made.append(_deployment(llm, prefill, name=f"{name}-kserve-prefill", role="prefill"))
    port = {"name": "http", "port": PORT, "targetPort": PORT}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(llm, f"{name}-kserve-workload-svc", role="workload"),
        "spec": {"selector": _labels(llm, role="workload"), "ports": [port]},
    }
    return [*made, service]


def _deployment(llm: Object, part: Object, *, name: str, role: str) -> Object:
    labels = _labels(llm, role=role)
    template = part.get("template") or {}
    first, *rest = template.get("containers") or [{"name": "main"}]
    image = {"image": "lab/echo:1", "args": ["--port", str(PORT)]}
    containers = [{**image, **first}, *rest]
    size = {"replicas": part["replicas"]} if "replicas" in part else {}
    pods = {"metadata": {"labels": labels}, "spec": {**template, "containers": containers}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(llm, name, role=role),
        "spec": {"selector": {"matchLabels": labels}, "template": pods, **size},
    }


def _labels(llm: Object, *, role: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": llm["metadata"]["name"],
        "app.kubernetes.io/part-of": "llminferenceservice",
        "app.kubernetes.io/component": f"llminferenceservice-{role}",
    }


def _metadata(llm: Object, name: str, *, role: str) -> Object:
    return {
        "name": name,
        "namespace": llm["metadata"]["namespace"],
        "labels": _labels(llm, role=role),
        "ownerReferences": owned_by(llm, version="v1alpha2", kind="LLMInferenceService"),
    }


def status(llm: Object, *, ready: bool, now: str) -> Object:
    text = "True" if ready else "False"
    before = (llm.get("status") or {}).get("conditions") or ()
    old = next((one for one in before if one["type"] == "Ready"), None)
    since = old["lastTransitionTime"] if old and old["status"] == text else now
    name, namespace = llm["metadata"]["name"], llm["metadata"]["namespace"]
    return {
        "observedGeneration": llm["metadata"]["generation"],
        "conditions": [{"type": "Ready", "status": text, "lastTransitionTime": since}],
        "url": f"http://{name}-kserve-workload-svc.{namespace}.svc.cluster.local:{PORT}",
    }
