# SPDX-License-Identifier: Apache-2.0
"""Writes what the Helm chart says twice: everything follows from values.yaml, the contract, panels.

`make docs` writes it; `make check` fails when something is not current. In the chart's README only
the table between the marks is written, in the schema only descriptions and defaults.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autoscaler.contract import KEYS, OBJECT_KEYS
from docs.dashboard import dashboard

CHART = Path(__file__).parents[1] / "charts" / "tidegate"
MARKS = ("<!-- values: written by `make docs` from values.yaml -->\n", "<!-- /values -->\n")

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z]+):")


@dataclass(frozen=True, slots=True)
class Value:
    """One key that the chart takes."""

    path: tuple[str, ...]
    meaning: str
    default: Any

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def type(self) -> str:
        names = {bool: "flag", int: "number", float: "number", str: "text", list: "list"}
        return names.get(type(self.default), "map")


def values(text: str) -> Iterator[Value]:
    """Every key of a values.yaml that has a comment directly above it; the others are sections."""
    defaults = yaml.safe_load(text)
    comment: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip()[1:].strip())
            continue
        if key := _KEY.match(line):
            path = [*path[: len(key["indent"]) // 2], key["key"]]
            if comment:
                yield Value(tuple(path), " ".join(comment), _at(defaults, path))
        comment = []


def _at(tree: Any, path: list[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def readme(text: str, known: list[Value]) -> str:
    """The chart's README with a new table of values."""
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    rows = [
        f"| `{value.name}` | {value.type} | `{json.dumps(value.default)}` | {value.meaning} |\n"
        for value in known
    ]
    table = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)
    return before + MARKS[0] + "\n" + table + "\n" + MARKS[1] + after


def schema(text: str, known: list[Value]) -> str:
    """The schema with the meaning and default of each value beside its type."""
    tree = json.loads(text)
    for value in known:
        node = tree
        for key in value.path:
            node = node["properties"][key]
        node["description"] = value.meaning
        node["default"] = value.default
    return json.dumps(tree, indent=2) + "\n"


def annotations() -> str:
    """The keys that KServe must not copy to pods, for the chart's NOTES.txt."""
    return (
        json.dumps([f"tidegate.dev/{key.name}" for key in (*KEYS, *OBJECT_KEYS)], indent=2) + "\n"
    )


def pages() -> Mapping[str, Callable[[], str]]:
    def read(name: str) -> str:
        return (CHART / name).read_text(encoding="utf-8")

    known = list(values(read("values.yaml")))
    return {
        "README.md": lambda: readme(read("README.md"), known),
        "values.schema.json": lambda: schema(read("values.schema.json"), known),
        "files/annotations.json": annotations,
        "files/dashboard.json": dashboard,
    }


def main(arguments: list[str]) -> int:
    stale = []
    for name, page in pages().items():
        path, text = CHART / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(f"charts/tidegate/{name}")
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(
            f"not current: {', '.join(stale)}; run `make docs` and commit the result\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
