# SPDX-License-Identifier: Apache-2.0
"""What is kept of each Kubernetes object, and how it is read from the API's JSON. Pure.

A cluster has tens of thousands of pods; only what a decision or a route needs stays in memory.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final

from autoscaler.adapters.kubernetes.gpus import GpuUse, needs_of
from autoscaler.manifests import Wanted, wanted
from scheduler_extender.core.demand import Demand

Raw = Mapping[str, Any]
Labels = Mapping[str, str]

FIELD_MANAGER: Final = "tidegate"  # whom the API server notes as the writer of what we write
OUR_SLICES: Final = "tidegate.dev"  # `endpointslice.kubernetes.io/managed-by` of our slices
MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
SERVICE_NAME: Final = "kubernetes.io/service-name"
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"

# Where pods say that their metrics are; KServe's runtimes carry the first pair.
METRICS_ANNOTATIONS: Final = (
    ("prometheus.kserve.io/port", "prometheus.kserve.io/path"),
    ("prometheus.io/port", "prometheus.io/path"),
)

# As Python's own parser of options reads it: any beginning of the name will do.
_WORKERS: Final = re.compile(r"(?<!\S)--w(?:o(?:r(?:k(?:e(?:r(?:s)?)?)?)?)?)?[= ]+(\S*)")

MANY: Final = 2

_ENDED: Final = ("Failed", "Succeeded")  # no process of such a pod will ever run again

# A container that waits for one of these will not start by itself soon.
_STUCK: Final = frozenset(
    {"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName",
     "RunContainerError", "CreateContainerConfigError", "CreateContainerError"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pod:
    """`metrics`: port and path where the pod says its metrics are. `why`: what keeps it.

    `processes`: how many a server in it answers with on one port, each for itself, as far as its
    options tell; `gpus`: where there is a budget what it has of GPUs, or waits for; else None.
    """

    namespace: str
    name: str
    uid: str
    labels: Labels
    ip: str
    ready: bool
    deleting: bool
    failed: bool
    why: str
    metrics: tuple[int, str] | None
    deletion_cost: str | None
    processes: int = 1
    gpus: GpuUse | None = None


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    port: int
    target: int | str


@dataclass(frozen=True, slots=True)
class KubeService:
    """A Service with a selector; those without select nothing that we scale."""

    namespace: str
    name: str
    selector: Labels
    cluster_ip: str  # empty: headless
    ports: tuple[ServicePort, ...]
    ipv6: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Slice:
    """One of our own EndpointSlices. `ports`: the Service's port name -> the port on activators."""

    namespace: str
    name: str
    service: str
    addresses: frozenset[str]
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Workload:
    """A scale target: what has pods and a count of them.

    `written_by`: who set the count, where that was neither Tidegate nor whoever made the object.
    `ports`: of the template's containers by name. `probe`: as in `core.routes.Backend`.
    `selector` is None where only the scale subresource tells it. `needs`: what one more pod takes
    of GPUs, where the template asks for any.
    """

    plural: str
    namespace: str
    name: str
    uid: str
    version: int = field(compare=False)  # grows with every write; a later one is a larger one
    replicas: int
    selector: Labels | None
    template_labels: Labels
    ports: Mapping[str, int]
    probe: str
    written_by: str
    status: str | None  # the status annotation as it stands
    wanted: tuple[Wanted, ...] = field(default=(), repr=False)
    needs: Demand | None = None

    @property
    def pod_labels(self) -> Labels:
        """What all of its pods carry, as far as it tells."""
        return self.template_labels or self.selector or {}

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.plural, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class OtherScaler:
    """An object that writes a scale target's count: an HPA, or KEDA's ScaledObject."""

    kind: str
    namespace: str
    name: str
    target_kind: str
    target_name: str


def pod(raw: Raw, *, gpus: Callable[[Raw], GpuUse | None] = lambda raw: None) -> Pod:
    meta, status = raw["metadata"], raw.get("status", {})
    annotations = meta.get("annotations") or {}
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())
    )
    why = _why_stuck(status)
    return Pod(
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        uid=meta["uid"],
        labels=_labels(meta.get("labels")),
        ip=status.get("podIP", ""),
        ready=ready,
        deleting="deletionTimestamp" in meta,
        failed=bool(why) or status.get("phase") in _ENDED,
        why=why or (str(status.get("message", "")) if status.get("phase") in _ENDED else ""),
        metrics=_metrics(annotations),
        deletion_cost=annotations.get(DELETION_COST),
        processes=_processes(raw.get("spec", {}).get("containers", ())),
        gpus=gpus(raw),
    )


def service(raw: Raw) -> KubeService | None:
    spec, meta = raw["spec"], raw["metadata"]
    if not spec.get("selector") or spec.get("type") == "ExternalName":
        return None
    cluster_ip = spec.get("clusterIP", "")
    return KubeService(
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        selector=_labels(spec["selector"]),
        cluster_ip="" if cluster_ip == "None" else cluster_ip,
        ports=tuple(
            ServicePort(p.get("name", ""), p["port"], p.get("targetPort", p["port"]))
            for p in spec.get("ports", ())
            if p.get("protocol", "TCP") == "TCP"
        ),
        ipv6=(spec.get("ipFamilies") or ["IPv4"])[0] == "IPv6",
    )


def our_slice(raw: Raw) -> Slice:
    meta = raw["metadata"]
    return Slice(
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        service=meta["labels"][SERVICE_NAME],
        addresses=frozenset(a for e in raw.get("endpoints") or () for a in e["addresses"]),
        ports={p.get("name", ""): p["port"] for p in raw.get("ports") or ()},
    )


def workload(
    raw: Raw, *, plural: str, read: Callable[..., tuple[Wanted, ...]] = wanted
) -> Workload:
    """A Deployment, a StatefulSet, or anything else with `spec.replicas`.

    `read(raw, plural=...)` tells what its annotations ask for.
    """
    meta, spec = raw["metadata"], raw.get("spec", {})
    template = spec.get("template") or {}
    containers = (template.get("spec") or {}).get("containers", ())
    return Workload(
        plural=plural,
        namespace=intern(meta["namespace"]),
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        replicas=spec.get("replicas", 1),
        selector=_selector(spec.get("selector")),
        template_labels=_labels((template.get("metadata") or {}).get("labels")),
        ports={
            p["name"]: p["containerPort"]
            for c in containers
            for p in c.get("ports", ())
            if "name" in p
        },
        probe=_probe(containers),
        written_by=_written_by(meta),
        status=(meta.get("annotations") or {}).get("tidegate.dev/status"),
        wanted=read(raw, plural=plural),
        needs=needs_of(template),
    )


def autoscaler(raw: Raw) -> OtherScaler | None:
    """A HorizontalPodAutoscaler or a ScaledObject; None where it names no target."""
    target = raw.get("spec", {}).get("scaleTargetRef") or {}
    if not target.get("name"):
        return None
    meta = raw["metadata"]
    kind = raw.get("kind") or "HorizontalPodAutoscaler"
    return OtherScaler(
        kind, meta["namespace"], meta["name"], target.get("kind", "Deployment"), target["name"]
    )


def _labels(raw: Any) -> Labels:
    return {intern(name): intern(value) for name, value in (raw or {}).items()}


def _selector(raw: Any) -> Labels | None:
    """The labels to match; None where the selector has expressions, or there is none."""
    if not isinstance(raw, dict) or raw.get("matchExpressions") or not raw.get("matchLabels"):
        return None
    return _labels(raw["matchLabels"])


def _written_by(meta: Raw) -> str:
    """Who last changed `spec.replicas`, by the API server's own notes.

    A count that was written together with the object is how it was made, and nobody's change. (The
    generation does not tell: annotations count it up as well.)
    """
    writers = [
        entry
        for entry in meta.get("managedFields") or ()
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    if not writers or any(entry.get("manager") == FIELD_MANAGER for entry in writers):
        return ""
    if any(entry.get("time") == meta.get("creationTimestamp") for entry in writers):
        return ""
    return str(writers[-1].get("manager", "unknown"))


def _metrics(annotations: Mapping[str, str]) -> tuple[int, str] | None:
    for port_key, path_key in METRICS_ANNOTATIONS:
        port = annotations.get(port_key, "")
        if port.isdecimal():
            return int(port), annotations.get(path_key, "/metrics")
    return None


def _processes(containers: Any) -> int:
    """By the option of Python's servers, KServe's among them; what is no number may be many."""
    words = (" ".join((*(c.get("command") or ()), *(c.get("args") or ()))) for c in containers)
    said = (told.strip("'\"") for text in words for told in _WORKERS.findall(text))
    return max((int(told) if told.isdecimal() else MANY for told in said), default=1)


def _probe(containers: Any) -> str:
    """The one readiness probe, where an activator can make it as well; else empty."""
    probes = [c["readinessProbe"] for c in containers if c.get("readinessProbe")]
    if len(probes) != 1:
        return ""
    named = {
        p["name"]: p["containerPort"] for c in containers for p in c.get("ports", ()) if "name" in p
    }
    check = probes[0].get("httpGet")
    if check and check.get("scheme", "HTTP") == "HTTP" and not check.get("host"):
        port = named.get(check["port"], check["port"])
        return f"http:{port}:{check.get('path', '/')}"
    return "tcp" if "tcpSocket" in probes[0] else ""


def _why_stuck(status: Raw) -> str:
    """What a container that does not run waits for, in the kubelet's words."""
    for container in (
        *status.get("initContainerStatuses", ()),
        *status.get("containerStatuses", ()),
    ):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _STUCK:
            message = waiting.get("message", "")
            return f"{waiting['reason']}: {message}" if message else str(waiting["reason"])
    return ""
