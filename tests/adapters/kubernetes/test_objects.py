# SPDX-License-Identifier: Apache-2.0
"""What is read of Kubernetes objects, from JSON as the API server gives it."""

from typing import Any

import pytest

from autoscaler.adapters.kubernetes import objects

MADE = "2026-11-21T13:22:05Z"
LATER = "2026-11-21T13:30:00Z"


def a_deployment(*writers: dict[str, Any], **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "shop",
            "name": "iris",
            "uid": "u",
            "generation": 3,
            "resourceVersion": "7",
            "creationTimestamp": MADE,
            "managedFields": list(writers),
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "iris"}},
            "template": {
                "metadata": {"labels": {"app": "iris"}},
                "spec": {"containers": [{"name": "c", **container}]},
            },
        },
    }


def writes_replicas(manager: str, time: str) -> dict[str, Any]:
    return {"manager": manager, "time": time, "fieldsV1": {"f:spec": {"f:replicas": {}}}}


@pytest.mark.parametrize(
    ("writers", "by"),
    [
        ([], ""),
        ([writes_replicas("kubectl", MADE)], ""),
        ([writes_replicas("kubectl", LATER)], "kubectl"),
        ([writes_replicas("tidegate", LATER)], ""),
        ([{"manager": "kubectl", "time": LATER, "fieldsV1": {"f:spec": {"f:template": {}}}}], ""),
    ],
    ids=["nobody", "as it was made", "changed later", "ours", "another field"],
)
def test_who_changed_the_count_is_read_from_the_servers_own_notes(
    writers: list[dict[str, Any]], by: str
) -> None:
    """A count that came with the object is nobody's change, though annotations came since."""
    assert objects.workload(a_deployment(*writers), plural="deployments").written_by == by


@pytest.mark.parametrize(
    ("probe", "read"),
    [
        ({"tcpSocket": {"port": 8080}}, "tcp"),
        ({"httpGet": {"port": 8080, "path": "/ready"}}, "http:8080:/ready"),
        ({"httpGet": {"port": "http"}}, "http:8000:/"),
        ({"httpGet": {"port": 8080, "scheme": "HTTPS"}}, ""),
        ({"exec": {"command": ["true"]}}, ""),
    ],
)
def test_an_activator_makes_the_pods_own_readiness_probe_where_it_can(
    probe: dict[str, Any], read: str
) -> None:
    """What only the kubelet can ask is left to it."""
    ports = [{"name": "http", "containerPort": 8000}]
    raw = a_deployment(readinessProbe=probe, ports=ports)
    assert objects.workload(raw, plural="deployments").probe == read


def test_a_pod_that_cannot_start_says_why() -> None:
    """The kubelet's words reach whoever waits for the service."""
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    pod = objects.pod(
        {
            "metadata": {"namespace": "shop", "name": "iris-1", "uid": "u"},
            "status": {"containerStatuses": [{"state": waiting}]},
        }
    )
    assert pod.failed
    assert pod.why == "ErrImagePull: no such image"


@pytest.mark.parametrize(
    ("container", "processes"),
    [
        ({"args": ["--model_name=iris", "--workers=3"]}, 3),
        ({"args": ["--workers", "2", "--http_port=8080"]}, 2),
        ({"command": ["sh", "-c", "python -m server --workers 4"]}, 4),
        ({"args": ["--workers", "'1'"]}, 1),
        ({"args": ["--worker", "3"]}, 3),
        ({"args": ["--workers=$(WORKERS)"]}, objects.MANY),
        ({"args": ["--max-workers=8", "--what=2"]}, 1),
        ({}, 1),
    ],
)
def test_a_pod_tells_how_many_processes_answer_at_one_port(
    container: dict[str, Any], processes: int
) -> None:
    """Each of them would tell of itself alone."""
    meta = {"namespace": "shop", "name": "iris-1", "uid": "u"}
    pod = objects.pod({"metadata": meta, "spec": {"containers": [{"name": "c"}, container]}})
    assert pod.processes == processes


def test_a_service_without_a_selector_is_none_of_ours() -> None:
    """Its endpoints are somebody's by hand."""
    meta = {"namespace": "shop", "name": "external"}
    assert objects.service({"metadata": meta, "spec": {"ports": []}}) is None
