# SPDX-License-Identifier: Apache-2.0
"""The lab is a Kubernetes: what it runs can be reached, and what it forbids is refused."""

import pytest

from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


def test_the_lab_is_up_within_its_time(lab: Lab) -> None:
    """Two nodes are there, and the version is the one that was built."""
    nodes = lab.get("nodes")["items"]
    assert {node["metadata"]["name"] for node in nodes} == {"node-a", "node-b"}
    assert "v1.36.3" in lab.kubectl("version")


def test_an_account_without_rights_is_refused(lab: Lab) -> None:
    """The API server's RBAC is on."""
    with lab.namespace() as namespace:
        config = lab.kubeconfig_for("default", namespace=namespace)
        said = lab.kubectl("--kubeconfig", str(config), "get", "pods", check=False)
    assert "forbidden" in said.lower()


def test_objects_outlive_the_api_server(lab: Lab) -> None:
    """Stopped and started again it knows what it knew."""
    with lab.namespace() as namespace:
        lab.kubectl("create", "configmap", "kept", "-n", namespace, "--from-literal=a=b")
        lab.stop_component("kube-apiserver")
        lab.start_component("kube-apiserver")
        assert lab.get("configmap", "kept", "-n", namespace)["data"] == {"a": "b"}


def test_a_watch_from_before_a_compaction_is_refused(lab: Lab) -> None:
    """Whoever resumes too late is told 410 and has to list anew."""
    with lab.namespace() as namespace:
        lab.kubectl("create", "configmap", "old", "-n", namespace)
        version = lab.get("configmap", "old", "-n", namespace)["metadata"]["resourceVersion"]
        lab.kubectl("delete", "configmap", "old", "-n", namespace)
        lab.compact()
        lab.stop_component("kube-apiserver")
        lab.start_component("kube-apiserver")
        path = f"/api/v1/namespaces/{namespace}/configmaps?watch=1&timeoutSeconds=2"
        said = lab.kubectl("get", "--raw", f"{path}&resourceVersion={version}", check=False)
    assert "410" in said or "Expired" in said
