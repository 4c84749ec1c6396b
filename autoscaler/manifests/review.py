# SPDX-License-Identifier: Apache-2.0
"""All manifests of one run, judged together: each object by itself, then against the others.

Pure: bytes with a name go in, remarks with file and line come out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from autoscaler.manifests.documents import Object, objects_of
from autoscaler.manifests.hints import hints
from autoscaler.manifests.objects import ObjectRef, TargetRef, Wanted, object_ref
from autoscaler.manifests.places import Place, Problem, table, text
from autoscaler.manifests.targets import wanted

_POLICY_FROM = ("metadata", "annotations", "tidegate.dev/policy-from")


class Severity(StrEnum):
    PROBLEM = "problem"  # not scaled as it is written
    WARNING = "warning"  # does not do what its writer may think
    NOTE = "note"  # what was assumed


@dataclass(frozen=True, slots=True)
class Remark:
    """One line of the report. `line` counts from 1; 0: of the file as a whole."""

    file: str
    line: int
    severity: Severity
    object: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Scaled:
    """One target that would be scaled, and where that is written."""

    file: str
    line: int
    wanted: Wanted


@dataclass(slots=True)
class Review:
    """What one run found."""

    objects: int = 0
    remarks: list[Remark] = field(default_factory=list)
    scaled: list[Scaled] = field(default_factory=list)

    def of(self, severity: Severity) -> list[Remark]:
        return [remark for remark in self.remarks if remark.severity is severity]


@dataclass(frozen=True, slots=True)
class _Read:
    file: str
    object: Object
    ref: ObjectRef

    def remark(self, severity: Severity, problem: Problem) -> Remark:
        line = self.object.line(problem.place)
        placed = Problem((*self.object.place, *problem.place), problem.text)
        return Remark(self.file, line, severity, str(self.ref), placed)


def review(sources: Iterable[tuple[str, bytes | Problem]]) -> Review:
    """Judge files by name and content; a content that could not be had is its problem."""
    found, read = Review(), list[_Read]()
    for file, content in sources:
        if isinstance(content, Problem):
            found.remarks.append(Remark(file, 0, Severity.PROBLEM, "", content))
            continue
        for item in objects_of(content):
            if not isinstance(item, Object):
                fault = Remark(file, item.line, Severity.PROBLEM, "", item.problem)
                found.remarks.append(fault)
            elif text(item.manifest, "kind") and text(item.manifest, "apiVersion"):
                read.append(_Read(file, item, object_ref(item.manifest)))
            else:
                why = Problem((), "left out: no apiVersion and kind, so no object of Kubernetes")
                found.remarks.append(Remark(file, item.line(()), Severity.NOTE, "", why))
    found.objects = len(read)
    config_maps = {
        (one.ref.namespace, one.ref.name): table(one.object.manifest, "data")
        for one in read
        if (one.ref.group, one.ref.kind) == ("", "ConfigMap")
    }
    wishes = [wish for one in read for wish in _alone(one, config_maps, found)]
    _together(read, wishes, found)
    found.remarks = list(dict.fromkeys(found.remarks))
    return found


def _alone(
    one: _Read, config_maps: Mapping[tuple[str, str], Mapping[str, object]], found: Review
) -> list[Scaled]:
    """What one object asks for, and all that is to be said of it by itself."""
    missing: list[str] = []

    def beside(name: str) -> Mapping[str, object]:
        if (one.ref.namespace, name) not in config_maps:
            missing.append(name)
        return config_maps.get((one.ref.namespace, name), {})

    wishes = wanted(one.object.manifest, config_map=beside)
    for wish in wishes:
        _remarks(one, wish.problems, wish.warnings, wish.notes, found)
    said = hints(one.object.manifest)
    notes = [
        Problem(_POLICY_FROM, f"ConfigMap {name!r} is not among these files: not checked")
        for name in missing
    ]
    if any(wish.target.plural == "" and wish.policy for wish in wishes):
        why = f"whether a {one.ref.kind} has a replica count to scale cannot be seen from here"
        notes.append(Problem(("kind",), why))
    _remarks(one, said.problems, said.warnings, [*said.notes, *notes], found)
    return [Scaled(one.file, one.object.line(()), wish) for wish in wishes]


def _remarks(
    one: _Read,
    problems: Iterable[Problem],
    warnings: Iterable[Problem],
    notes: Iterable[Problem],
    found: Review,
) -> None:
    for severity, said in (
        (Severity.PROBLEM, problems),
        (Severity.WARNING, warnings),
        (Severity.NOTE, notes),
    ):
        found.remarks += [one.remark(severity, problem) for problem in said]


def _together(read: list[_Read], wishes: list[Scaled], found: Review) -> None:
    """One writer a target: neither another object of ours nor another autoscaler."""
    first: dict[tuple[str, ...], Scaled] = {}
    for wish in wishes:
        other = first.setdefault(_name(wish.wanted.target), wish)
        if other is not wish:
            why = (
                f"{wish.wanted.target} is scaled by {other.wanted.owner} "
                f"at {other.file}:{other.line} already; remove one"
            )
            subject, problem = str(wish.wanted.owner), Problem((), why)
            found.remarks.append(Remark(wish.file, wish.line, Severity.PROBLEM, subject, problem))
        elif wish.wanted.policy is not None:
            found.scaled.append(wish)
    for one in read:
        for place, name in _claims(one):
            if (mine := first.get(name)) and not _only_watches(mine):
                why = (
                    f"scales {mine.wanted.target}, which Tidegate is to scale by "
                    f"{mine.file}:{mine.line}: two writers of one replica count; remove one, "
                    f"or set tidegate.dev/dry-run to true there"
                )
                found.remarks.append(one.remark(Severity.PROBLEM, Problem(place, why)))


def _only_watches(scaled: Scaled) -> bool:
    """Whether Tidegate decides on it and leaves the writing to another."""
    return scaled.wanted.policy is not None and scaled.wanted.policy.dry_run


def _name(target: TargetRef) -> tuple[str, ...]:
    return target.group, target.kind, target.namespace, target.name


def _claims(one: _Read) -> list[tuple[Place, tuple[str, ...]]]:
    """What another autoscaler's object scales, and where it says so."""
    known = {
        ("autoscaling", "HorizontalPodAutoscaler"),
        ("keda.sh", "ScaledObject"),
        ("http.keda.sh", "HTTPScaledObject"),
    }
    if (one.ref.group, one.ref.kind) not in known:
        return []
    reference = table(one.object.manifest, "spec", "scaleTargetRef")
    group = (text(reference, "apiVersion") or "apps/v1").rpartition("/")[0]
    kind = text(reference, "kind") or "Deployment"
    name = (group, kind, one.ref.namespace, text(reference, "name"))
    return [(("spec", "scaleTargetRef"), name)]
