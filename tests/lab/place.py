# SPDX-License-Identifier: Apache-2.0
"""What the lab's own tests say and see: objects with full defaults, one namespace of the lab."""

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab.lab import Lab

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace of the lab that belongs to one test."""

    lab: Lab
    namespace: str

    def kubectl(self, *words: str) -> str:
        return self.lab.kubectl("-n", self.namespace, *words)

    def apply(self, *objects: Object) -> None:
        self.lab.apply(*objects, namespace=self.namespace)

    def get(self, kind: str, name: str) -> Object:
        """The object; {} where there is none."""
        found = self.lab.get(
            kind, "-n", self.namespace, "--field-selector", f"metadata.name={name}"
        )
        return next(iter(found["items"]), {})

    def until(self, done: Callable[[], object], *, within_s: float = 20.0) -> Any:
        return self.lab.wait_for(done, what="what the test waits for", within_s=within_s)

    def emptied(self) -> None:
        """Until the last pod is gone, which answers a moment longer to whom still finds it."""
        where = ("pods", "-n", self.namespace)
        self.lab.wait_for(lambda: not self.lab.get(*where)["items"], what="no pod", within_s=60.0)

    def condition(self, kind: str, name: str, of: str = "Ready") -> str:
        """True, False, Unknown; empty while it is not told."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", ())
        return next((one["status"] for one in conditions if one["type"] == of), "")

    def is_ready(self, pod: str) -> bool:
        return self.condition("pod", pod) == "True"

    def container(self, pod: str) -> Object:
        """The status of the first container; {} while it is not told."""
        statuses = self.get("pod", pod).get("status", {}).get("containerStatuses") or [{}]
        found: Object = statuses[0]
        return found

    def waiting_for(self, pod: str) -> str:
        """Why the first container waits."""
        state = self.container(pod).get("state", {})
        return str(state.get("waiting", {}).get("reason", ""))

    def ip(self, pod: str) -> str:
        return str(self.get("pod", pod)["status"]["podIP"])

    def cluster_ip(self, service: str) -> str:
        return str(self.get("service", service)["spec"]["clusterIP"])

    def log_of(self, pod: str, container: str = "c") -> str:
        logs = self.lab.folder.glob(f"*/pods/{self.namespace}_{pod}/{container}.log")
        return "".join(path.read_text() for path in logs)

    def answers(self, service: str) -> bool:
        """Whether somebody answers at the Service's address."""
        try:
            return get(self.cluster_ip(service))[0] == 200
        except OSError:
            return False


def a_pod(name: str, *containers: Object, **spec: Any) -> Object:
    meta = {"name": name, "labels": {"app": name}}
    pod = {"containers": list(containers), "terminationGracePeriodSeconds": 1, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod}


def a_shell(script: str, **fields: Any) -> Object:
    return {"name": "c", "image": "shell", "command": ["sh", "-c", script], **fields}


def an_echo(*args: str, **fields: Any) -> Object:
    port = {"containerPort": 8080, "name": "http"}
    return {"name": "c", "image": "lab/echo:1", "args": list(args), "ports": [port], **fields}


def a_service(name: str, **spec: Any) -> Object:
    ports = [{"port": 80, "targetPort": 8080}]
    body = {"selector": {"app": name}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def a_deployment(name: str, replicas: int, spec: Object) -> Object:
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    body = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    meta = {"name": name}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": body}


PROBE = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
ECHO = {"name": "kserve-container", "image": "lab/echo:1", "readinessProbe": PROBE}


def an_isvc(name: str, *, annotations: Object | None = None, **spec: Any) -> Object:
    """As a user writes it: scaled by somebody else than KServe, from zero."""
    external = {"serving.kserve.io/autoscalerClass": "external"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": external if annotations is None else annotations},
        "spec": {"predictor": {"containers": [ECHO], "minReplicas": 0}, **spec},
    }


def get(address: str, path: str = "/", port: int = 80) -> tuple[int, str]:
    """One request on a connection of its own: the status and the body."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
