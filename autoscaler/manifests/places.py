# SPDX-License-Identifier: Apache-2.0
"""What is said of a manifest, each remark with its place; and careful ways into one.

A manifest is whatever somebody wrote: nothing here takes it for granted that a table is a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Place = tuple[str | int, ...]
"""A path into a manifest: names of fields and positions in lists, from the top."""

SHOWN_MOST = 160


@dataclass(frozen=True, slots=True)
class Problem:
    """One remark: where in the manifest, and what is wrong there and how to mend it."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{shown(self.place)}: {self.text}" if self.place else self.text


@dataclass(slots=True)
class Findings:
    """Remarks collected while one manifest is read. Changed by whoever reads.

    `problems` keep the object from being scaled as it is written; `warnings` say that something
    does not do what its writer may think; `notes` say what was assumed.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)

    def wrong(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))

    def warn(self, place: Place, text: str) -> None:
        self.warnings.append(Problem(place, text))

    def note(self, place: Place, text: str) -> None:
        self.notes.append(Problem(place, text))


def shown(place: Place) -> str:
    """`metadata.annotations[tidegate.dev/enabled]`, `spec.canary[0].trafficPercent`; one line."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.isalnum():
            text += f".{step}"
        else:
            text += f"[{step if step.isprintable() else ascii(step)}]"
    text = text.removeprefix(".")
    return text if len(text) <= SHOWN_MOST else text[: SHOWN_MOST - 1] + "…"


def table(manifest: object, *path: str) -> Mapping[str, object]:
    """The table at a path; empty where there is none."""
    for step in path:
        manifest = manifest.get(step) if isinstance(manifest, Mapping) else None
    return manifest if isinstance(manifest, Mapping) else {}


def items(manifest: object, *path: str) -> tuple[object, ...]:
    """The list at a path; empty where there is none."""
    found = table(manifest, *path[:-1]).get(path[-1])
    return tuple(found) if isinstance(found, list | tuple) else ()


def text(manifest: object, *path: str) -> str:
    """The text at a path; empty where there is none or it is something else."""
    found = table(manifest, *path[:-1]).get(path[-1])
    return found if isinstance(found, str) else ""
