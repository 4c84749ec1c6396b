# SPDX-License-Identifier: Apache-2.0
"""Names of objects: what is annotated, what is scaled for it, and who speaks for whom."""

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaler.core.policy import ServicePolicy
from autoscaler.manifests.places import Problem, items, table, text

SERVING = "serving.kserve.io"
LWS = "leaderworkerset.x-k8s.io"

# What makes these copies its own annotations onto them, or scales them, and answers for both.
_SPEAKERS = frozenset(
    {
        ("apps", "Deployment"),
        ("apps", "StatefulSet"),
        ("apps", "ReplicaSet"),
        (LWS, "LeaderWorkerSet"),
        (SERVING, "InferenceService"),
        (SERVING, "LLMInferenceService"),
        ("serving.knative.dev", "Revision"),
    }
)


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object by its names; `uid` is empty in a manifest that no API server has seen."""

    group: str
    version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class TargetRef:
    """What has the replica count. `plural` is empty where a manifest alone cannot tell it."""

    group: str
    version: str
    plural: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """That something is to be scaled, and how; without a policy: that it is, and why it cannot be.

    `policy` is None whenever there is a problem, so the caller keeps the last valid one (I9).
    `component`: predictor, transformer, explainer, prefill; empty where the owner is the target.
    `policy_from`: the ConfigMap in the owner's namespace that the policy also depends on.
    """

    target: TargetRef
    owner: ObjectRef
    component: str
    policy: ServicePolicy | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    policy_from: str | None = None


def object_ref(manifest: Mapping[str, object]) -> ObjectRef:
    """The manifest's own names; no namespace reads as `default`."""
    group, _, version = text(manifest, "apiVersion").rpartition("/")
    return ObjectRef(
        group=group,
        version=version,
        kind=text(manifest, "kind"),
        namespace=text(manifest, "metadata", "namespace") or "default",
        name=text(manifest, "metadata", "name"),
        uid=text(manifest, "metadata", "uid"),
    )


def speaker(manifest: Mapping[str, object]) -> str:
    """`Kind name` of the controlling owner that speaks for this object; empty: it is its own."""
    for owner in items(manifest, "metadata", "ownerReferences"):
        group = text(owner, "apiVersion").rpartition("/")[0]
        if table(owner).get("controller") is True and (group, text(owner, "kind")) in _SPEAKERS:
            return f"{text(owner, 'kind')} {text(owner, 'name')}"
    return ""
