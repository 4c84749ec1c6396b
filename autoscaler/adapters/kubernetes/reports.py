# SPDX-License-Identifier: Apache-2.0
"""Tells the people who look with kubectl: Events, and one status line on the scale target.

Nothing is ever written on an InferenceService: KServe copies its annotations to the pod template,
so that a line of ours there would roll every pod.
"""

from collections.abc import Callable
from typing import Final

from autoscaler.adapters.kubernetes.annotations import AnnotationWriter
from autoscaler.adapters.kubernetes.cluster import Governed, KubernetesCluster
from autoscaler.adapters.kubernetes.events import EventRecorder, Kind, ObjectRef
from autoscaler.adapters.kubernetes.inventory import Inventory
from autoscaler.core.decide import COOL_OFF_S, Decision
from autoscaler.core.path import BLIND
from autoscaler.core.signals import ServiceId
from autoscaler.loop import Record
from autoscaler.manifests import Problem

STATUS: Final = "tidegate.dev/status"


class Reports:
    """Says what changed, once."""

    def __init__(
        self,
        events: EventRecorder,
        annotations: AnnotationWriter,
        *,
        cluster: KubernetesCluster,
        inventory: Inventory,
        blind: Callable[[ServiceId], str | None] = lambda service: None,
    ) -> None:
        """`blind(service)`: why none of its ready pods tells how busy it is."""
        self._events = events
        self._annotations = annotations
        self._cluster = cluster
        self._inventory = inventory
        self._blind = blind
        self._decisions: dict[ServiceId, Decision] = {}
        self._problems: dict[ServiceId, str] = {}
        self._warnings: dict[ServiceId, tuple[Problem, ...]] = {}

    def recorded(self, record: Record) -> None:
        """A decision was made and carried out, or refused."""
        decision = record.decision
        governed = self._cluster.governed.get(decision.service)
        if governed is None:
            return
        before = self._decisions.get(decision.service)
        self._decisions[decision.service] = decision
        blind = self._blind(decision.service) if decision.in_path == BLIND else None
        self._say_problem(decision.service, governed, _cannot_sleep(blind))
        if record.refused is None and decision.changes:
            self._event(governed, *_what_changed(decision))
        elif before is None or not decision.acts:
            pass  # in a dry run somebody else is meant to write
        elif before.state is not decision.state and governed.parked:
            words = f"{governed.written_by} set the count to 0; it stays 0 until it is set above"
            self._event(governed, "SwitchedOff", words)
        elif governed.written_by and before.current != decision.current:
            words = f"{governed.written_by} set the count to {decision.current}; "
            self._event(governed, "LeftAlone", words + f"left alone for {COOL_OFF_S:.0f} s")
        if before is None or _said(before) != _said(decision):
            self._status(governed, _line(decision))

    def stood_still(self) -> None:
        """Say why services that are asked for are not scaled at all; call it once a tick."""
        for gone in self._problems.keys() - self._cluster.governed.keys():
            del self._problems[gone]
            self._warnings.pop(gone, None)
            self._decisions.pop(gone, None)
        for service, governed in self._cluster.governed.items():
            if governed.view is None:
                self._say_problem(service, governed)

    def _say_problem(self, service: ServiceId, governed: Governed, other: str = "") -> None:
        warnings = governed.wanted.warnings
        for warning in warnings:
            if warning not in self._warnings.get(service, ()):
                self._event(governed, "PolicyWarning", str(warning), kind=Kind.WARNING)
        self._warnings[service] = warnings
        words = governed.problem or other
        if words == self._problems.get(service, ""):
            return
        self._problems[service] = words
        if words:
            reason = "NotScaled" if governed.stands_still else "NeedsAttention"
            reason = "InvalidPolicy" if governed.wanted.problems else reason
            self._event(governed, reason, words, kind=Kind.WARNING)

    def _event(
        self, governed: Governed, reason: str, message: str, *, kind: Kind = Kind.NORMAL
    ) -> None:
        """On the scale target, and on the object whose annotations speak for it."""
        for ref in dict.fromkeys((self._target(governed), self._owner(governed))):
            if ref is not None:
                self._events.record(ref, reason=reason, message=message, kind=kind)

    def _status(self, governed: Governed, line: str) -> None:
        target = self._target(governed)
        workload = self._inventory.workloads.get(governed.target)
        if target is not None and workload is not None:
            self._annotations.annotate(target, {STATUS: line}, seen={STATUS: workload.status})

    def _target(self, governed: Governed) -> ObjectRef | None:
        workload = self._inventory.workloads.get(governed.target)
        resource = self._cluster.resource_of(governed.wanted.target.kind)
        if workload is None or resource is None:
            return None
        return ObjectRef(resource, workload.namespace, workload.name, workload.uid)

    def _owner(self, governed: Governed) -> ObjectRef | None:
        owner = governed.wanted.owner
        resource = self._cluster.resource_of(owner.kind)
        if resource is None:
            return None
        return ObjectRef(resource, owner.namespace, owner.name, owner.uid)


def _cannot_sleep(blind: str | None) -> str:
    return (
        f"it cannot be put to sleep, for nothing proves that it is idle: {blind}" if blind else ""
    )


def _said(decision: Decision) -> tuple[object, ...]:
    """All that `_line` says."""
    return (decision.state, decision.replicas, decision.why, decision.acts)


def _line(decision: Decision) -> str:
    """One line without numbers that move all the time: it is written each time it changes."""
    halted = "" if decision.acts else " (does not act: dry run, or paused)"
    return f"{decision.state}: {decision.replicas} replicas; {decision.why}{halted}"


def _what_changed(decision: Decision) -> tuple[str, str]:
    before, after = decision.current, decision.replicas
    because = decision.because[-1] if decision.because else decision.why
    if after == 0:
        return "Slept", f"{before} -> 0 replicas: {decision.why}"
    if before == 0:
        return "Woke", f"0 -> {after} replicas: {because}"
    reason = "ScaledUp" if after > before else "ScaledDown"
    return reason, f"{before} -> {after} replicas: {because}"
