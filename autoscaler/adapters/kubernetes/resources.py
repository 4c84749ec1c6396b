# SPDX-License-Identifier: Apache-2.0
"""Which resources of the Kubernetes API there are for us, and their paths. Pure.

A path is built here and nowhere else: names come from users, and are quoted.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object as the API serves it. `group` is empty for the core."""

    group: str
    version: str
    plural: str
    namespaced: bool = True
    kind: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Of one object, or of all in a namespace, or of all (both empty).

        The namespace of a resource that has none is left out, so callers need not know.
        """
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.plural}/{name}: an object of this resource has a namespace")
        root = ("apis", self.group) if self.group else ("api",)
        within = ("namespaces", namespace) if self.namespaced and namespace else ()
        parts = (*root, self.version, *within, self.plural, name, subresource)
        return "".join(f"/{quote(part, safe='')}" for part in parts if part)


@dataclass(frozen=True, slots=True)
class Place:
    """What a path speaks of, as RBAC sees it. `plural` is the path itself outside the resources."""

    path: str
    group: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def resource(self) -> bool:
        return self.plural != self.path

    @property
    def what(self) -> str:
        """The resource with its subresource, as in a rule: `deployments/scale`."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural


def place_of(path: str) -> Place:
    match [unquote(part) for part in path.strip("/").split("/")]:
        case ["api", _version, *rest]:
            group = ""
        case ["apis", group, _version, *rest]:
            pass
        case _:
            rest = []
    match rest:
        case ["namespaces", namespace, plural, *named] if plural not in {"status", "finalize"}:
            pass
        case [plural, *named]:
            namespace = ""
        case _:
            return Place(path, "", path)
    name, subresource, *_ = [*named, "", ""]
    return Place(path, group, plural, namespace, name, subresource)


PODS: Final = Resource("", "v1", "pods", kind="Pod")
SERVICES: Final = Resource("", "v1", "services", kind="Service")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", kind="ConfigMap")
NODES: Final = Resource("", "v1", "nodes", namespaced=False, kind="Node")
NAMESPACES: Final = Resource("", "v1", "namespaces", namespaced=False, kind="Namespace")
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", kind="EndpointSlice")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", kind="Deployment")
STATEFUL_SETS: Final = Resource("apps", "v1", "statefulsets", kind="StatefulSet")
LEADER_WORKER_SETS: Final = Resource(
    "leaderworkerset.x-k8s.io", "v1", "leaderworkersets", kind="LeaderWorkerSet"
)
INFERENCE_SERVICES: Final = Resource(
    "serving.kserve.io", "v1beta1", "inferenceservices", kind="InferenceService"
)
LLM_INFERENCE_SERVICES: Final = Resource(
    "serving.kserve.io", "v1alpha2", "llminferenceservices", kind="LLMInferenceService"
)
HPAS: Final = Resource(
    "autoscaling", "v2", "horizontalpodautoscalers", kind="HorizontalPodAutoscaler"
)
SCALED_OBJECTS: Final = Resource("keda.sh", "v1alpha1", "scaledobjects", kind="ScaledObject")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", kind="Lease")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", kind="Event")
TOKEN_REVIEWS: Final = Resource(
    "authentication.k8s.io", "v1", "tokenreviews", namespaced=False, kind="TokenReview"
)
