# SPDX-License-Identifier: Apache-2.0
"""A table of a generated page, as Markdown."""

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Bars within a cell are escaped; nothing else is."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([*row] for row in rows)]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )
