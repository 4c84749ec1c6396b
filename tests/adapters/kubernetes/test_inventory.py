# SPDX-License-Identifier: Apache-2.0
"""Who belongs to whom, in whatever order the cluster tells it."""

from dataclasses import replace
from itertools import permutations

import pytest

from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.adapters.kubernetes.objects import KubeService, Pod, ServicePort, Workload


def a_pod(name: str = "iris-1", *, namespace: str = "shop", **labels: str) -> Pod:
    return Pod(
        namespace=namespace,
        name=name,
        uid=f"uid-{namespace}-{name}",
        labels=labels or {"app": "iris"},
        ip="10.0.0.1",
        ready=True,
        deleting=False,
        failed=False,
        why="",
        metrics=None,
        deletion_cost=None,
    )


def a_workload(name: str = "iris", *, namespace: str = "shop", replicas: int = 1) -> Workload:
    return Workload(
        plural="deployments",
        namespace=namespace,
        name=name,
        uid=f"uid-{namespace}-{name}",
        version=1,
        replicas=replicas,
        selector={"app": name},
        template_labels={"app": name, "tier": "models"},
        ports={},
        probe="",
        written_by="",
        status=None,
    )


def a_service(name: str = "iris", *, namespace: str = "shop", **selector: str) -> KubeService:
    ports = (ServicePort("http", 80, 8080),)
    return KubeService(namespace, name, selector or {"app": "iris"}, "10.96.0.7", ports)


TARGET = a_workload().key


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_pods_and_services_find_their_target_in_any_order(order: tuple[int, ...]) -> None:
    """A watch promises nothing about which kind of object is heard of first."""
    inventory = Inventory()
    for number in order:
        match number:
            case 0:
                inventory.workload_changed(None, a_workload())
            case 1:
                inventory.pod_changed(None, a_pod())
            case _:
                inventory.service_changed(None, a_service())
    assert [pod.name for pod in inventory.pods_of(TARGET).values()] == ["iris-1"]
    assert [service.name for service in inventory.services_of(TARGET)] == ["iris"]


def test_the_same_labels_in_another_namespace_are_somebody_else() -> None:
    """Selectors reach no further than their namespace."""
    inventory = Inventory()
    inventory.workload_changed(None, a_workload())
    inventory.pod_changed(None, a_pod(namespace="other"))
    inventory.service_changed(None, a_service(namespace="other"))
    assert not inventory.pods_of(TARGET)
    assert not inventory.services_of(TARGET)


def test_a_pod_that_is_gone_or_relabelled_belongs_to_nobody() -> None:
    """A pod taken out of its set for debugging is no replica any more."""
    inventory = Inventory()
    inventory.workload_changed(None, a_workload())
    pod, moved = a_pod(), a_pod(app="debug")
    inventory.pod_changed(None, pod)
    assert inventory.pod_changed(pod, moved) == {TARGET}
    assert not inventory.pods_of(TARGET)
    inventory.pod_changed(moved, pod)
    assert inventory.pod_changed(pod, None) == {TARGET}
    assert not inventory.pods_of(TARGET)


def test_a_target_that_comes_back_finds_its_pods_again() -> None:
    """Pods outlive a Deployment that is deleted with its pods left as orphans."""
    inventory = Inventory()
    workload = a_workload()
    inventory.workload_changed(None, workload)
    inventory.pod_changed(None, a_pod())
    inventory.workload_changed(workload, None)
    assert not inventory.pods_of(TARGET)
    inventory.workload_changed(None, workload)
    assert [pod.name for pod in inventory.pods_of(TARGET).values()] == ["iris-1"]


def test_a_service_that_selects_two_targets_is_shared_while_the_other_has_replicas() -> None:
    """A canary behind the same Service would be left with all the requests."""
    inventory = Inventory()
    canary = a_workload("canary")
    for workload in (a_workload(), canary):
        inventory.workload_changed(None, workload)
    inventory.service_changed(None, a_service(tier="models"))
    assert inventory.shared_with(TARGET) == canary.key
    inventory.workload_changed(canary, a_workload("canary", replicas=0))
    assert inventory.shared_with(TARGET) is None


def test_a_service_whose_selector_changes_leaves_its_target() -> None:
    """The old selector is forgotten."""
    inventory = Inventory()
    inventory.workload_changed(None, a_workload())
    before, after = a_service(), a_service(app="other")
    inventory.service_changed(None, before)
    inventory.service_changed(before, after)
    assert not inventory.services_of(TARGET)
    assert inventory.targets_behind(before) == [TARGET]


def test_a_target_that_only_tells_its_selector_is_found_behind_a_service() -> None:
    """Kinds without a pod template: what their selector asks for, all of their pods carry."""
    inventory = Inventory()
    bare = replace(a_workload(), template_labels={})
    inventory.workload_changed(None, bare)
    inventory.service_changed(None, a_service())
    assert inventory.services_of(TARGET) == [a_service()]
    assert inventory.targets_behind(a_service()) == [TARGET]
