# SPDX-License-Identifier: Apache-2.0
"""The chart on a real API server: installed, upgraded, uninstalled by the real Helm.

Controller and activators run as the chart says, under its service accounts, with RBAC and Pod
Security on; only the image is this repository.
"""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.lab import Lab, LabError

pytestmark = pytest.mark.lab

CHART = Path(__file__).parents[2] / "charts" / "tidegate"
LEASE = "tidegate-controller"
SOON_S = 60.0  # two cores start four pods of Python


@contextmanager
def release(lab: Lab, namespace: str, **values: Any) -> Iterator[None]:
    """The chart installed over this namespace alone, and gone afterwards."""
    lab.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    lab.helm("install", "tide", str(CHART), "-n", namespace, *scoped(namespace, values))
    try:
        wait_ready(lab, namespace)
        yield
    finally:
        lab.helm("uninstall", "tide", "-n", namespace, "--ignore-not-found", check=False)


def scoped(namespace: str, values: dict[str, Any]) -> list[str]:
    """Helm's flags. A short drain, for what is held here is not worth waiting for."""
    said = {"namespaces": [namespace], "activator": {"drainSeconds": 1}} | values
    return [f"--set-json={key}={json.dumps(value)}" for key, value in said.items()]


def wait_ready(lab: Lab, namespace: str) -> None:
    """Every Deployment of the release has rolled out."""

    def rolled_out() -> bool:
        found = lab.get("deployments", "-n", namespace)["items"]
        return len(found) == 2 and all(complete(one) for one in found)

    lab.wait_for(rolled_out, what=f"the pods in {namespace}", within_s=SOON_S)


def complete(deployment: dict[str, Any]) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    return bool(
        status.get("observedGeneration") == deployment["metadata"]["generation"]
        and status.get("updatedReplicas") == wanted
        and status.get("availableReplicas") == wanted
        and status.get("replicas") == wanted
    )


def pods(lab: Lab, namespace: str, component: str) -> dict[str, str]:
    """The address of each pod of a component, by name."""
    found = lab.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/component={component}")
    return {
        pod["metadata"]["name"]: pod["status"].get("podIP", "")
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"]
    }


def leader(lab: Lab, namespace: str) -> str:
    """The pod that holds the Lease; empty while none does."""
    found = json.loads(
        lab.kubectl("get", "lease", LEASE, "-n", namespace, "-o", "json", "--ignore-not-found")
        or "{}"
    )
    return str(found.get("spec", {}).get("holderIdentity") or "")


def wait_leader(lab: Lab, namespace: str) -> str:
    """The address of the pod that leads."""

    def address() -> str:
        return pods(lab, namespace, "controller").get(leader(lab, namespace), "")

    return str(lab.wait_for(address, what=f"a leader in {namespace}", within_s=SOON_S))


def ask(url: str, *, within_s: float = 5.0) -> str:
    with urllib.request.urlopen(url, timeout=within_s) as answer:  # noqa: S310  our own pods
        return str(answer.read().decode())


def connected(lab: Lab, namespace: str) -> bool:
    """Whether every activator hears the controller."""
    addresses = pods(lab, namespace, "activator").values()
    return bool(addresses) and all(
        "tidegate_activator_channel_up 1.0" in ask(f"http://{ip}:8072/metrics") for ip in addresses
    )


def wait_connected(lab: Lab, namespace: str) -> None:
    lab.wait_for(
        lambda: connected(lab, namespace), what=f"activators in {namespace}", within_s=SOON_S
    )


def test_an_install_runs_under_its_own_rights(lab: Lab) -> None:
    """One controller leads, the activators are let in, nothing that it asks for is forbidden."""
    with lab.namespace("gate") as namespace, release(lab, namespace):
        address = wait_leader(lab, namespace)
        wait_connected(lab, namespace)
        assert json.loads(ask(f"http://{address}:8070/v1/services"))["services"] == []
        assert_nothing_forbidden(lab, namespace)


def assert_nothing_forbidden(lab: Lab, namespace: str) -> None:
    """No pod of the release has been refused anything by the API server."""
    for component in ("controller", "activator"):
        for name in pods(lab, namespace, component):
            (log,) = lab.folder.glob(f"*/pods/{namespace}_{name}/{component}.log")
            said = log.read_text()
            assert said
            assert "forbidden" not in said.lower(), said


IRIS = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: iris
  annotations:
    tidegate.dev/enabled: "true"
    tidegate.dev/scale-to-zero-after: 2s
    tidegate.dev/scale-down: window=2s
spec:
  selector: {matchLabels: {app: iris}}
  template:
    metadata:
      labels: {app: iris}
      annotations: {prometheus.io/port: "8080", prometheus.io/path: /metrics}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: iris
          image: kserve/sklearnserver
          args: [--model_name=iris]
          ports: [{containerPort: 8080}]
          readinessProbe:
            httpGet: {path: /v2/health/ready, port: 8080}
            periodSeconds: 1
          securityContext:
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
            runAsNonRoot: true
            seccompProfile: {type: RuntimeDefault}
---
apiVersion: v1
kind: Service
metadata: {name: iris}
spec:
  selector: {app: iris}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""


def test_a_service_sleeps_and_wakes_under_these_rights(lab: Lab) -> None:
    """Scale, slices, Events, status line: all permitted. The first request is answered."""
    with lab.namespace("gate") as namespace, release(lab, namespace):
        wait_leader(lab, namespace)
        wait_connected(lab, namespace)
        lab.apply(IRIS, namespace=namespace)

        def replicas() -> int:
            return int(lab.get("deployment", "iris", "-n", namespace)["spec"]["replicas"])

        lab.wait_for(lambda: replicas() == 0, what="the service to sleep", within_s=SOON_S)
        slices = lab.get("endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=iris")
        assert "tidegate-iris" in [one["metadata"]["name"] for one in slices["items"]]
        address = lab.get("service", "iris", "-n", namespace)["spec"]["clusterIP"]
        assert ask(f"http://{address}/v2/models/iris", within_s=SOON_S)
        assert replicas() == 1
        told = lab.get("deployment", "iris", "-n", namespace)["metadata"]["annotations"]
        assert told["tidegate.dev/status"]
        events = lab.get("events.events.k8s.io", "-n", namespace)["items"]
        assert [e for e in events if e["reportingController"] == "tidegate-controller"]
        assert_nothing_forbidden(lab, namespace)


def test_an_upgrade_rolls_the_controller_and_hands_over(lab: Lab) -> None:
    """New pods lead, and the activators, which did not change, find them."""
    with lab.namespace("gate") as namespace, release(lab, namespace):
        wait_leader(lab, namespace)
        wait_connected(lab, namespace)
        before = {c: set(pods(lab, namespace, c)) for c in ("controller", "activator")}
        changed = scoped(namespace, {"controller": {"tickSeconds": 0.5}})
        lab.helm("upgrade", "tide", str(CHART), "-n", namespace, *changed)
        wait_ready(lab, namespace)
        wait_leader(lab, namespace)
        wait_connected(lab, namespace)
        assert not before["controller"] & set(pods(lab, namespace, "controller"))
        assert before["activator"] == set(pods(lab, namespace, "activator"))
        assert leader(lab, namespace) not in before["controller"]


def test_an_uninstall_leaves_what_was_learned_and_nothing_else(lab: Lab) -> None:
    """No pod, permission or policy; what was learned waits for the next install."""
    with lab.namespace("gate") as namespace:
        with release(lab, namespace):
            wait_leader(lab, namespace)
        kinds = "deployments,pods,services,serviceaccounts,roles,rolebindings,networkpolicies"
        kinds += ",poddisruptionbudgets,configmaps,endpointslices"

        def left() -> list[str]:
            everything = lab.kubectl("get", kinds, "-n", namespace, "-o", "name").split()
            return [name for name in everything if "/tidegate-" in name]

        lab.wait_for(
            lambda: all("/tidegate-state-" in name for name in left()),
            what="the pods to go",
            within_s=SOON_S,
        )
        cluster = lab.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
        assert f"tidegate-controller-{namespace}" not in cluster


def test_a_second_release_over_the_same_services_is_refused(lab: Lab) -> None:
    """Replicas have one writer, and the message names what stands in the way."""
    with lab.namespace("gate") as one, lab.namespace("gate") as other:
        lab.helm("install", "tide", str(CHART), "-n", one, *scoped(one, {}))
        flags = ("--set-json", f'namespaces=["{other}","{one}"]')
        with pytest.raises(LabError, match=r'Role "tidegate-controller" in namespace .* exists'):
            lab.helm("install", "late", str(CHART), "-n", other, *flags)
        lab.helm("uninstall", "tide", "-n", one)


@pytest.mark.parametrize("namespaces", [[], ["default"]], ids=["whole cluster", "one namespace"])
def test_the_api_server_takes_every_object_as_written(lab: Lab, namespaces: list[str]) -> None:
    """No unknown field, no warning, and pods that Pod Security's `restricted` admits."""
    with lab.namespace("gate") as namespace:
        for level in ("enforce", "warn"):
            label = f"pod-security.kubernetes.io/{level}=restricted"
            lab.kubectl("label", "namespace", namespace, label)
        flags = ("--set-json", f"namespaces={json.dumps(namespaces)}")
        text = lab.helm("template", "tide", str(CHART), "-n", namespace, *flags)
        said = lab.kubectl(
            *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"),
            stdin=text,
            check=False,
        )
        assert "arning" not in said
        assert "rror" not in said
        kinds = [one for one in yaml.safe_load_all(text) if one]
        assert said.count("serverside-applied") == len(kinds)


MAY = [
    ("controller", "patch", "apps/deployments/scale"),
    ("controller", "patch", "apps/statefulsets/scale"),
    ("controller", "patch", "leaderworkerset.x-k8s.io/leaderworkersets/scale"),
    ("controller", "patch", "/pods/"),
    ("controller", "create", "discovery.k8s.io/endpointslices/"),
    ("controller", "watch", "serving.kserve.io/inferenceservices/"),
    ("controller", "create", "events.k8s.io/events/"),
    ("activator", "watch", "discovery.k8s.io/endpointslices/"),
]
MAY_NOT = [
    ("controller", "update", "apps/deployments/"),
    ("controller", "delete", "/pods/"),
    ("controller", "create", "/pods/exec"),
    ("controller", "get", "/secrets/"),
    ("controller", "patch", "serving.kserve.io/inferenceservices/"),
    ("activator", "patch", "apps/deployments/scale"),
    ("activator", "create", "discovery.k8s.io/endpointslices/"),
    ("activator", "get", "/secrets/"),
]


def may(lab: Lab, user: str, verb: str, what: str, namespace: str) -> bool:
    """What the API server's RBAC says. `what`: GROUP/RESOURCE/SUBRESOURCE."""
    group, resource, subresource = what.split("/")
    place = {"namespace": namespace, "group": group, "resource": resource}
    asked = {"verb": verb, "subresource": subresource, **place}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": asked},
    }
    said = lab.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review))
    return bool(json.loads(said)["status"]["allowed"])


def test_rights_end_where_the_listed_namespaces_end(lab: Lab) -> None:
    """The API server's own answer, for each service account."""
    with lab.namespace("gate") as gate, lab.namespace("team") as team:
        lab.helm("install", "tide", str(CHART), "-n", gate, *scoped(team, {}))
        user = f"system:serviceaccount:{gate}:tidegate-"
        try:
            for component, verb, what in MAY:
                assert may(lab, user + component, verb, what, team), (component, verb, what)
                assert not may(lab, user + component, verb, what, gate), (component, verb, what)
            for component, verb, what in MAY_NOT:
                assert not may(lab, user + component, verb, what, team), (component, verb, what)
        finally:
            lab.helm("uninstall", "tide", "-n", gate)
