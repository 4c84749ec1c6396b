# SPDX-License-Identifier: Apache-2.0
"""Pods as the API server sends them for review, and what a JSON Patch makes of them."""

import base64
from typing import Any

import orjson

from scheduler_extender.admission.pods import Wiring
from scheduler_extender.admission.review import Judge, mutate, review

Raw = dict[str, Any]
ASKING = {"tidegate.dev/gpu-memory": "12Gi"}
NVIDIA = Wiring(runtime_class="nvidia")


def a_pod(
    *containers: Raw,
    annotations: dict[str, str] | None = None,
    init: tuple[Raw, ...] = (),
    **spec: Any,
) -> Raw:
    """With the defaults that the API server has filled in before it asks."""
    spec = {"schedulerName": "default-scheduler", "restartPolicy": "Always", **spec}
    spec["containers"] = list(containers or (a_container(),))
    if init:
        spec["initContainers"] = list(init)
    meta: Raw = {"generateName": "worker-", "namespace": "models"}
    if annotations:
        meta["annotations"] = dict(annotations)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def a_container(name: str = "main", *, env: list[Raw] | None = None, **resources: Raw) -> Raw:
    container: Raw = {"name": name, "image": "worker", "resources": resources}
    if env is not None:
        container["env"] = env
    return container


def a_review(
    pod: Raw | None,
    *,
    operation: str = "CREATE",
    old: Raw | None = None,
    resource: str = "pods",
    subresource: str | None = None,
    version: str = "admission.k8s.io/v1",
) -> bytes:
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": resource},
        "operation": operation,
        "object": pod,
        "oldObject": old,
        "dryRun": False,
    }
    if subresource:
        request["subResource"] = subresource
    return orjson.dumps({"apiVersion": version, "kind": "AdmissionReview", "request": request})


def reviewed(body: bytes, judge: Judge, *, wiring: Wiring = NVIDIA) -> Raw:
    """The `response` of the answer."""
    answer = orjson.loads(review(body, judge, wiring=wiring)[0])
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = answer["response"]
    assert response["uid"] == "705ab4f5-6393-11e8-b7cc-42010a800002"
    return dict(response)


def refusal(body: bytes, judge: Judge, *, wiring: Wiring = NVIDIA) -> str:
    """Why it was refused; empty: it was not."""
    response = reviewed(body, judge, wiring=wiring)
    assert response["allowed"] == ("status" not in response)
    return str(response.get("status", {}).get("message", ""))


def operations(response: Raw) -> list[Raw]:
    if "patch" not in response:
        return []
    assert response["patchType"] == "JSONPatch"
    return list(orjson.loads(base64.b64decode(response["patch"])))


def mutated(pod: Raw, *, wiring: Wiring = NVIDIA, **review: Any) -> Raw:
    """The pod as the API server has it after our webhook."""
    response = reviewed(a_review(pod, **review), mutate, wiring=wiring)
    assert response["allowed"], response
    return patched(pod, operations(response))


def patched(document: Raw, patch: list[Raw]) -> Raw:
    """`add` of RFC 6902, which is all that we use; strict, as the API server is."""
    document = orjson.loads(orjson.dumps(document))
    for operation in patch:
        assert operation["op"] == "add"
        *way, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        parent: Any = document
        for part in way:
            parent = parent[int(part) if isinstance(parent, list) else part]
        if isinstance(parent, list):
            index = int(last)
            assert 0 <= index <= len(parent)
            parent.insert(index, operation["value"])
        else:
            assert isinstance(parent, dict)
            parent[last] = operation["value"]
    return document


def given(name: str, annotation: str) -> Raw:
    """An entry of `env` that the kubelet fills in from an annotation."""
    path = f"metadata.annotations['tidegate.dev/{annotation}']"
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


TOLD = [
    given("NVIDIA_VISIBLE_DEVICES", "gpu-uuids"),
    given("TIDEGATE_GPU_UUIDS", "gpu-uuids"),
    given("TIDEGATE_GPU_MEMORY_MIB", "gpu-mem-mib"),
    given("TIDEGATE_GPU_CORE_PERCENT", "gpu-core-percent"),
    {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},
]
VOID = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
