# SPDX-License-Identifier: Apache-2.0
"""Which pods and Services belong to which scale target. Pure; fed by the informers.

Matching every selector with every pod would take minutes in a large cluster, so each selector is
filed under one of its label pairs and looked up by the labels that a pod or template carries.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Generic, TypeVar

from autoscaler.adapters.kubernetes.objects import KubeService, Labels, Pod, Workload

K = TypeVar("K")
Target = tuple[str, str, str]  # plural, namespace, name
Name = tuple[str, str]  # namespace, name


class Selectors(Generic[K]):
    """Label selectors by what they might match."""

    def __init__(self) -> None:
        self._selectors: dict[K, tuple[str, Labels]] = {}
        self._filed: defaultdict[tuple[str, str, str], set[K]] = defaultdict(set)

    def put(self, key: K, *, namespace: str, selector: Labels | None) -> None:
        """File a selector in place of what `key` had; None or empty matches nothing."""
        self.drop(key)
        if selector:
            self._selectors[key] = (namespace, selector)
            self._filed[(namespace, *_pair(selector))].add(key)

    def drop(self, key: K) -> None:
        if key in self._selectors:
            namespace, selector = self._selectors.pop(key)
            place = (namespace, *_pair(selector))
            self._filed[place].discard(key)
            if not self._filed[place]:
                del self._filed[place]

    def matching(self, labels: Labels, *, namespace: str) -> Iterator[K]:
        """The keys whose selector is within `labels`."""
        for name, value in labels.items():
            for key in self._filed.get((namespace, name, value), ()):
                selector = self._selectors[key][1]
                if all(labels.get(n) == v for n, v in selector.items()):
                    yield key


class Inventory:
    """Everything the informers have told, and who belongs to whom."""

    def __init__(self) -> None:
        self.workloads: dict[Target, Workload] = {}
        self.services: dict[Name, KubeService] = {}
        self._by_pod_labels: Selectors[Target] = Selectors()
        self._by_template: Selectors[Name] = Selectors()
        self._pods_of: defaultdict[Target, dict[str, Pod]] = defaultdict(dict)
        self._owner_of: dict[str, Target] = {}  # by pod uid
        # Pods of no known target by uid, under each of their label pairs.
        self._loose: defaultdict[tuple[str, str, str], dict[str, Pod]] = defaultdict(dict)
        self._labelled: defaultdict[tuple[str, str, str], set[Target]] = defaultdict(set)

    # What the informers say

    def workload_changed(self, old: Workload | None, new: Workload | None) -> None:
        if old is None or new is None or old.pod_labels != new.pod_labels:
            self._label(old, new)
        if new is None:
            if old is not None:
                del self.workloads[old.key]
                self._by_pod_labels.drop(old.key)
                self._reassign(self._pods_of.pop(old.key, {}).values())
            return
        self.workloads[new.key] = new
        if old is None or old.selector != new.selector:
            self._by_pod_labels.put(new.key, namespace=new.namespace, selector=new.selector)
            self._reassign(self._pods_of.pop(new.key, {}).values())
            self._adopt(new.namespace, new.selector)

    def pod_changed(self, old: Pod | None, new: Pod | None) -> Collection[Target]:
        """Take in a pod; returns the targets that are concerned."""
        concerned = set()
        if old is not None and (new is None or old.uid != new.uid or old.labels != new.labels):
            concerned |= self._forget(old)
        if new is not None:
            owner = self._owner_of.get(new.uid) or self._owner(new)
            self._assign(new, owner)
            concerned |= {owner} if owner else set()
        return concerned

    def service_changed(self, old: KubeService | None, new: KubeService | None) -> None:
        if new is None:
            if old is not None:
                del self.services[old.key]
                self._by_template.drop(old.key)
            return
        self.services[new.key] = new
        self._by_template.put(new.key, namespace=new.namespace, selector=new.selector)

    # Who belongs to whom

    def pods_of(self, target: Target) -> Mapping[str, Pod]:
        """By uid."""
        return self._pods_of.get(target, {})

    def services_of(self, target: Target) -> list[KubeService]:
        """The Services that select this target's pods, by name."""
        workload = self.workloads.get(target)
        if workload is None:
            return []
        keys = self._by_template.matching(workload.pod_labels, namespace=workload.namespace)
        return [self.services[key] for key in sorted(keys)]

    def targets_behind(self, service: KubeService) -> list[Target]:
        """The targets whose pods a Service selects, by name."""
        candidates = self._labelled.get((service.namespace, *_pair(service.selector)), ())
        return sorted(
            key
            for key in candidates
            if all(self.workloads[key].pod_labels.get(n) == v for n, v in service.selector.items())
        )

    def shared_with(self, target: Target) -> Target | None:
        """Another target that has replicas behind one of this target's Services."""
        for service in self.services_of(target):
            for other in self.targets_behind(service):
                if other != target and self.workloads[other].replicas > 0:
                    return other
        return None

    def _label(self, old: Workload | None, new: Workload | None) -> None:
        if old is not None:
            for name, value in old.pod_labels.items():
                self._labelled[(old.namespace, name, value)].discard(old.key)
        if new is not None:
            for name, value in new.pod_labels.items():
                self._labelled[(new.namespace, name, value)].add(new.key)

    def _owner(self, pod: Pod) -> Target | None:
        return min(self._by_pod_labels.matching(pod.labels, namespace=pod.namespace), default=None)

    def _assign(self, pod: Pod, owner: Target | None) -> None:
        if owner is None:
            for name, value in pod.labels.items():
                self._loose[(pod.namespace, name, value)][pod.uid] = pod
            return
        self._not_loose(pod)
        self._owner_of[pod.uid] = owner
        self._pods_of[owner][pod.uid] = pod

    def _forget(self, pod: Pod) -> set[Target]:
        self._not_loose(pod)
        owner = self._owner_of.pop(pod.uid, None)
        if owner is None:
            return set()
        self._pods_of[owner].pop(pod.uid, None)
        return {owner}

    def _not_loose(self, pod: Pod) -> None:
        for name, value in pod.labels.items():
            place = (pod.namespace, name, value)
            loose = self._loose.get(place)
            if loose is not None and loose.pop(pod.uid, None) is not None and not loose:
                del self._loose[place]

    def _adopt(self, namespace: str, selector: Labels | None) -> None:
        """Give the pods that a new selector may match to whom they belong."""
        if selector:
            loose = self._loose.get((namespace, *_pair(selector)), {})
            self._reassign(list(loose.values()))

    def _reassign(self, pods: Collection[Pod]) -> None:
        for pod in pods:
            self._owner_of.pop(pod.uid, None)
            self._assign(pod, self._owner(pod))


def _pair(selector: Labels) -> tuple[str, str]:
    """The label pair that a selector is filed under: the value that fewest objects have in common.

    Names like `app.kubernetes.io/managed-by` are alike on everything; the longest value seldom is.
    """
    return max(selector.items(), key=lambda item: (len(item[1]), item))
