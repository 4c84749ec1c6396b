# SPDX-License-Identifier: Apache-2.0
"""The fields that are read of KServe's objects are fields that KServe has."""

import os
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPONENT = (
    "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "containerConcurrency",
    "canaryTrafficPercent", "annotations", "autoScaling.metrics.type",
    "autoScaling.behavior.scaleUp.policies.periodSeconds", "autoScaling.behavior.scaleUp.tolerance",
    "autoScaling.behavior.scaleDown.stabilizationWindowSeconds",
    "autoScaling.behavior.scaleDown.selectPolicy",
)  # fmt: skip
LLM = (
    "replicas", "annotations", "worker", "scaling.minReplicas", "scaling.maxReplicas",
    "scaling.wva", "scaling.keda", "prefill.replicas", "prefill.annotations", "prefill.worker",
    "prefill.scaling.minReplicas", "prefill.scaling.wva", "router.scheduler",
)  # fmt: skip


@cache
def specs(kind: str) -> dict[str, Any]:
    """The schema of `spec` in each served version."""
    given = os.environ.get("TIDEGATE_KSERVE_CRDS")
    path = Path(given) if given else ROOT.parent / "shared/data/kserve/crds.tar.xz"
    if not path.exists():
        pytest.skip("no KServe CRDs beside the repository; set TIDEGATE_KSERVE_CRDS to crds.tar.xz")
    with tarfile.open(path) as archive:
        name = next(name for name in archive.getnames() if name.endswith(f"_{kind}.yaml"))
        file = archive.extractfile(name)
        assert file
        document = yaml.load(file, Loader=yaml.CSafeLoader)
    return {
        version["name"]: version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for version in document["spec"]["versions"]
        if version["served"]
    }


def has(schema: dict[str, Any], path: str) -> bool:
    found: Any = schema
    for step in path.split("."):
        found = found.get("items", found).get("properties", {}).get(step, {})
    return bool(found)


def test_an_inference_service_has_what_is_read_of_it() -> None:
    """Each component has the fields, and the canaries are a list beside them."""
    for schema in specs("inferenceservices").values():
        missing = [
            f"{component}.{field}"
            for component in ("predictor", "transformer", "explainer")
            for field in COMPONENT
            if not has(schema, f"{component}.{field}")
        ]
        assert not missing
        assert schema["properties"]["canary"]["type"] == "array"
        assert has(schema, "predictor.workerSpec")


def test_an_llm_has_what_is_read_of_it() -> None:
    """In every version that is served."""
    for version, schema in specs("llminferenceservices").items():
        assert not [field for field in LLM if not has(schema, field)], version
