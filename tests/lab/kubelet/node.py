# SPDX-License-Identifier: Apache-2.0
"""The Node object and its Lease: what tells the control plane that this kubelet lives."""

import asyncio
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from autoscaler.errors import RetryLater
from tests.lab.kubelet.container import now
from tests.lab.rest import STRATEGIC, Conflict, NotFound, Object, Refused, Rest

log = structlog.get_logger(__name__)

HEARTBEAT_S = 10.0
LEASE_S = 40
RETRY_S = 1.0
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "100Gi"}


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the Node says of itself."""

    name: str
    ip: str
    pod_cidr: str
    capacity: Mapping[str, str]
    labels: Mapping[str, str]

    def object(self) -> Object:
        own = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": {**own, **self.labels}},
            "spec": {"podCIDR": self.pod_cidr, "podCIDRs": [self.pod_cidr]},
        }

    def status(self, *, since: str) -> Object:
        capacity = {**CAPACITY, **self.capacity}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "the lab's kubelet is ready; processes run as root, without containers",
            "lastHeartbeatTime": now(),
            "lastTransitionTime": since,
        }
        addresses = {"InternalIP": self.ip, "Hostname": self.name}
        return {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": kind, "address": value} for kind, value in addresses.items()],
            "conditions": [ready],
            "nodeInfo": {**_NO_INFO, "kubeletVersion": "v1.36.3", "operatingSystem": "linux"},
        }


_NO_INFO = dict.fromkeys(
    (
        *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "architecture"),
        *("containerRuntimeVersion", "kubeProxyVersion"),
    ),
    "",
)


async def register(rest: Rest, facts: NodeFacts) -> None:
    """Create the Node if it is not there, and say what it has. Raises `RetryLater`."""
    path = f"/api/v1/nodes/{facts.name}"
    try:
        await rest.create("/api/v1/nodes", facts.object())
    except Conflict:
        await rest.patch(path, {"metadata": {"labels": facts.object()["metadata"]["labels"]}})
    status = facts.status(since=now())
    await rest.patch(f"{path}/status", {"status": status}, kind=STRATEGIC)


async def keep_alive(rest: Rest, facts: NodeFacts) -> None:
    """Renew the Lease for ever, and say Ready again after somebody doubted it."""
    failed = False
    while True:
        try:
            await _renew(rest, facts.name)
            await _stay_ready(rest, facts)
            failed = False
            await asyncio.sleep(HEARTBEAT_S)
        except (RetryLater, Refused) as error:
            if not failed:  # an outage is one line
                log.info("heartbeat_failed", node=facts.name, why=str(error))
            failed = True
            await asyncio.sleep(RETRY_S)


async def _renew(rest: Rest, name: str) -> None:
    folder = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    spec = {
        "holderIdentity": name,
        "leaseDurationSeconds": LEASE_S,
        "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    try:
        await rest.patch(f"{folder}/{name}", {"spec": spec})
    except NotFound:
        lease = {"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec}
        await rest.create(folder, lease)


async def _stay_ready(rest: Rest, facts: NodeFacts) -> None:
    path = f"/api/v1/nodes/{facts.name}"
    try:
        node = await rest.get(path, resourceVersion="0")
    except NotFound:
        await register(rest, facts)
        return
    conditions = {one["type"]: one for one in node["status"].get("conditions", ())}
    if conditions.get("Ready", {}).get("status") != "True":
        status = facts.status(since=now())
        await rest.patch(f"{path}/status", {"status": status}, kind=STRATEGIC)
