# SPDX-License-Identifier: Apache-2.0
"""YAML or JSON text -> Kubernetes objects, with the line of every place in them.

Whatever the text is, this ends soon and with values: documents are parsed one by one, so a broken
one hides no other; anchors are shared, never copied, so a text cannot grow when it is read; and
loops, duplicate keys and what YAML would turn into something else than JSON are told.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from autoscaler.manifests.places import Place, Problem, items, text

LARGEST_BYTES = 16 * 2**20
MOST_OBJECTS = 20_000  # of one file, after Lists are opened
DEEPEST = 100
DEEPEST_PARSED = 1000
DEEPEST_MERGE, MOST_MERGED = 5, 10  # how far `<<` is followed to find the line of a key
_MERGE = "tag:yaml.org,2002:merge"
_TEMPLATE = (
    "a Helm template is no manifest yet: render it first, `helm template ... | tidegate check -`"
)


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a file, and where it stands there; `place` is its path, for one in a List."""

    manifest: Mapping[str, object]
    node: Node
    place: Place
    first_line: int

    def line(self, place: Place) -> int:
        """The line, from 1, of the deepest part of a place that is there."""
        node, line = self.node, self.node.start_mark.line
        for step in place:
            found = _step(node, step)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line
        return int(line) + self.first_line


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a part of a file cannot be read as objects."""

    line: int
    problem: Problem


def objects_of(data: bytes) -> Iterator[Object | Fault]:
    """Every object of one file, Lists opened, in the order in which they are written."""
    if len(data) > LARGEST_BYTES:
        why = f"{len(data) >> 20} MiB, at most {LARGEST_BYTES >> 20} are read; split it"
        yield Fault(1, Problem((), why))
        return
    try:
        whole = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as trouble:
        line = data.count(b"\n", 0, trouble.start) + 1
        yield Fault(line, Problem((), "no UTF-8 text; manifests are YAML or JSON"))
        return
    count = 0
    for first_line, document in _documents(whole):
        for found in _objects(document, first_line):
            count += 1
            if count > MOST_OBJECTS:
                why = f"more than {MOST_OBJECTS} objects; split the file"
                yield Fault(first_line, Problem((), why))
                return
            yield found


def _documents(whole: str) -> Iterator[tuple[int, str]]:
    """The texts between `---`, each with its first line's number."""
    if whole.lstrip()[:1] in ("{", "["):
        yield 1, _json_as_yaml(whole)
        return
    first, lines = 1, list[str]()
    for number, line in enumerate(whole.split("\n"), start=1):
        if re.match(r"---(\s|$)", line):
            if not all(re.match(r"\s*(#|%|$)", before) for before in lines):
                yield first, "\n".join(lines)
            first, lines = number, [line]
        else:
            lines.append(line)
    yield first, "\n".join(lines)


def _too_deep(document: str) -> bool:
    """Whether the parser may not see it: it recurses without a bound, and would take Python along.

    A guess by brackets, indentation and dashes, on the safe side of what the parser bears.
    """
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", document))
    return (
        max(accumulate(steps), default=0) > DEEPEST_PARSED
        or re.search(rf"^ {{{DEEPEST_PARSED}}}", document, flags=re.MULTILINE) is not None
        or re.search(rf"(?:[-?:]\s+){{{DEEPEST_PARSED}}}", document) is not None
    )


def _json_as_yaml(whole: str) -> str:
    """What JSON permits and YAML does not: tabs between tokens, and letters as two escapes."""
    pair = r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
    return re.sub(pair, _letter, whole.replace("\t", " "))


def _letter(pair: re.Match[str]) -> str:
    return bytes.fromhex(pair[1] + pair[2]).decode("utf-16-be")


def _objects(document: str, first_line: int) -> Iterator[Object | Fault]:
    if _too_deep(document):
        yield Fault(first_line, Problem((), "not YAML of ours: nested far too deep"))
        return
    try:
        node = yaml.compose(document, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as trouble:
        yield _not_yaml(document, first_line, trouble)
        return
    if node is None:
        return
    reading = _Reading(first_line)
    value = reading.value(node, (), depth=0)
    template = _template_line(document)
    if template is not None and reading.no_text_keys:  # {{ x }} reads as a table in a table
        yield Fault(first_line + template, Problem((), _TEMPLATE))
        return
    yield from reading.faults
    if isinstance(value, Mapping):
        yield from _opened(Object(value, node, (), first_line), depth=0)
    elif value is not None and not reading.faults:
        why = "no Kubernetes object: no table of keys"
        yield Fault(first_line + node.start_mark.line, Problem((), why))


def _opened(found: Object, *, depth: int) -> Iterator[Object]:
    """The object itself, or what its List holds."""
    if not text(found.manifest, "kind").endswith("List") or "items" not in found.manifest:
        yield found
        return
    for number, item in enumerate(items(found.manifest, "items")):
        place: Place = ("items", number)
        step = _at(found.node, place)
        if isinstance(item, Mapping) and step is not None and depth < 3:
            inner = Object(item, step, (*found.place, *place), found.first_line)
            yield from _opened(inner, depth=depth + 1)


def _not_yaml(document: str, first_line: int, trouble: Exception) -> Fault:
    template = _template_line(document)
    if template is not None:
        return Fault(first_line + template, Problem((), _TEMPLATE))
    mark = getattr(trouble, "problem_mark", None)
    line = mark.line if mark is not None else 0
    if isinstance(trouble, yaml.reader.ReaderError):
        line = document.count("\n", 0, int(trouble.position))
    why = getattr(trouble, "problem", None) or getattr(trouble, "reason", None) or "nested too deep"
    return Fault(first_line + line, Problem((), f"not YAML: {why}"))


def _template_line(document: str) -> int | None:
    """The first line with `{{` outside quotes and comments, counted from 0."""
    for number, line in enumerate(document.split("\n")):
        if re.match(r"""[^'"#]*\{\{""", line):
            return number
    return None


class _Reading:
    """One document's nodes on their way to plain values; notes every fault with its line."""

    def __init__(self, first_line: int) -> None:
        self.faults: list[Fault] = []
        self.no_text_keys = 0
        self._first_line = first_line
        self._values: dict[int, object] = {}  # by node: what an anchor names is read once
        self._open: set[int] = set()
        self._scalars = SafeConstructor()

    def value(self, node: Node, place: Place, *, depth: int) -> object:
        """What a node says, as JSON would have it. Nodes reached again are not read again."""
        if id(node) in self._values:
            return self._values[id(node)]
        if id(node) in self._open or depth > DEEPEST:
            why = "refers to itself" if id(node) in self._open else f"deeper than {DEEPEST} levels"
            self._fault(node, place, why)
            return None
        self._open.add(id(node))
        value: object
        if isinstance(node, MappingNode):
            value = self._table(node, place, depth)
        elif isinstance(node, SequenceNode):
            value = [
                self.value(item, (*place, number), depth=depth + 1)
                for number, item in enumerate(node.value)
            ]
        else:
            value = self._scalar(node)
        self._open.discard(id(node))
        self._values[id(node)] = value
        return value

    def _table(self, node: MappingNode, place: Place, depth: int) -> dict[str, object]:
        table: dict[str, object] = {}
        inherited: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.no_text_keys += 1
                self._fault(key_node, place, "a key is text, not a table or a list")
                continue
            if key_node.tag == _MERGE:
                inherited |= self._merged(value_node, place, depth)
                continue
            key = key_node.value
            if key in table:
                self._fault(key_node, (*place, key), "stands there twice, and only one can count")
            table[key] = self.value(value_node, (*place, key), depth=depth + 1)
        return inherited | table

    def _merged(self, node: Node, place: Place, depth: int) -> dict[str, object]:
        """What `<<` brings in: a table, or several of which the first counts most."""
        sources = node.value if isinstance(node, SequenceNode) else [node]
        found: dict[str, object] = {}
        for source in reversed(sources):
            value = self.value(source, place, depth=depth + 1)
            found |= value if isinstance(value, dict) else {}
        return found

    def _scalar(self, node: Node) -> object:
        # Dates and such are text to Kubernetes.
        if node.tag.rpartition(":")[2] not in ("null", "bool", "int", "float"):
            return node.value
        try:
            return self._scalars.construct_object(node)
        except (ConstructorError, ValueError, OverflowError, IndexError, KeyError):
            return node.value  # a number beyond all bounds: whoever wants it says so

    def _fault(self, node: Node, place: Place, why: str) -> None:
        line = self._first_line + node.start_mark.line
        self.faults.append(Fault(line, Problem(place, why)))


def _at(node: Node, place: Place) -> Node | None:
    for step in place:
        found = _step(node, step)
        if found is None:
            return None
        node = found[1]
    return node


def _step(node: Node, step: str | int, *, depth: int = 0) -> tuple[Node, Node] | None:
    """The key's node and the value's, one step down; as the value was read: the last one counts."""
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    if not isinstance(node, MappingNode) or depth > DEEPEST_MERGE:
        return None
    inherited: list[Node] = []
    for key, value in reversed(node.value):
        if isinstance(key, ScalarNode) and key.tag == _MERGE:
            inherited += value.value if isinstance(value, SequenceNode) else [value]
        elif isinstance(key, ScalarNode) and key.value == step:
            return key, value
    found = (_step(source, step, depth=depth + 1) for source in inherited[:MOST_MERGED])
    return next((pair for pair in found if pair), None)
