# SPDX-License-Identifier: Apache-2.0
"""`tidegate check`: finds the files, has them judged, prints what was said; judges nothing."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import typer

from autoscaler.manifests.documents import LARGEST_BYTES
from autoscaler.manifests.places import Problem, shown
from autoscaler.manifests.review import Remark, Review, Scaled, Severity, review

SUFFIXES = (".yaml", ".yml", ".json")

cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@cli.command()
def check(
    manifests: Annotated[
        list[Path],
        typer.Argument(help="Files, folders (read with all below them), or - for standard input."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 2 on warnings too.")] = False,
) -> None:
    """Read manifests as the controller would, and say all that is wrong with them at once.

    Each remark is a line FILE:LINE with what is permitted and the nearest spelling. A problem keeps
    an object from being scaled as it is written, a warning says that something may not do what you
    think, a note says what was assumed. No cluster is asked.

    \b
      tidegate check deploy/
      helm template my-release ./chart | tidegate check -
      kubectl get isvc,deploy -A -o yaml | tidegate check -

    An object is scaled once it has the annotation tidegate.dev/enabled: "true"; an InferenceService
    also serving.kserve.io/autoscalerClass: external. docs/settings.md lists every key.

    Exit code 0: no problem; 2: a problem, or with --strict a warning.
    """
    found = review(_sources(manifests))
    if as_json:
        sys.stdout.buffer.write(_json(found) + b"\n")
    else:
        for line in report(found):
            typer.echo(line)
    failing = [Severity.PROBLEM, *([Severity.WARNING] if strict else [])]
    if any(found.of(severity) for severity in failing):
        raise typer.Exit(2)


def report(found: Review) -> Iterator[str]:
    """The lines a person reads: remarks by file and line, then the sum of it."""
    order = {file: number for number, file in enumerate(r.file for r in found.remarks)}
    for remark in sorted(found.remarks, key=lambda r: (order[r.file], r.line)):
        yield _printable(_line(remark))
    problems, warnings = found.of(Severity.PROBLEM), found.of(Severity.WARNING)
    counts = [
        _counted(found.objects, "object"),
        f"{len(found.scaled)} scaled",
        _counted(len(problems), "problem"),
        *([_counted(len(warnings), "warning")] if warnings else []),
    ]
    yield ", ".join(counts)


def _line(remark: Remark) -> str:
    where = f"{remark.file}:{remark.line}" if remark.line else remark.file
    kind = "" if remark.severity is Severity.PROBLEM else f"{remark.severity}: "
    return f"{where}: {kind}{remark.problem}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _printable(line: str) -> str:
    """One line of the terminal's, whatever stands in a file or its name."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def _json(found: Review) -> bytes:
    document = {
        "objects": found.objects,
        "scaled": [_scaled(scaled) for scaled in found.scaled],
        **{f"{severity}s": [_remark(r) for r in found.of(severity)] for severity in Severity},
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2, default=_plain)


def _scaled(scaled: Scaled) -> dict[str, object]:
    return {
        "file": _printable(scaled.file),
        "line": scaled.line,
        "component": scaled.wanted.component,
        "target": {k: _printable(v) for k, v in asdict(scaled.wanted.target).items()},
        "policy_from": scaled.wanted.policy_from,
        "policy": scaled.wanted.policy,
    }


def _remark(remark: Remark) -> dict[str, object]:
    return {
        "file": _printable(remark.file),
        "line": remark.line,
        "object": _printable(remark.object),
        "place": _printable(shown(remark.problem.place)),
        "text": _printable(remark.problem.text),
    }


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not part of a report")


def _sources(paths: Iterable[Path]) -> Iterator[tuple[str, bytes | Problem]]:
    for path in paths:
        if str(path) == "-":
            yield "stdin", sys.stdin.buffer.read(LARGEST_BYTES + 1)
        elif path.is_dir():
            files = sorted(_below(path))
            if not files:
                yield str(path), Problem((), f"no manifest in it ({', '.join(SUFFIXES)})")
            yield from ((str(file), _content(file)) for file in files)
        else:
            yield str(path), _content(path)


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (Path(root, name) for name in files if not name.startswith("."))
        yield from (file for file in found if file.suffix.lower() in SUFFIXES and file.is_file())


def _content(file: Path) -> bytes | Problem:
    try:
        with file.open("rb") as opened:
            return opened.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as trouble:  # ValueError: a zero byte in the name
        return Problem((), f"cannot be read: {getattr(trouble, 'strerror', None) or trouble}")
