# SPDX-License-Identifier: Apache-2.0
"""How one table of a config file is read: each key by its name, each problem one line.

Which keys there are is `settings.py`'s, `cluster_settings.py`'s and `prometheus_settings.py`'s to
say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoscaler.text import Unreadable, bad_value, duration_s, unknown_key


@dataclass(frozen=True, slots=True)
class FileKey:
    """One key of the file outside the contract, as the documentation shows it."""

    section: str
    name: str
    permitted: str
    meaning: str
    default: str


class Table:
    """One table of the file; takes values out by name and notes what is wrong with them."""

    def __init__(
        self, parent: Mapping[str, Any], name: str, where: str, problems: list[str]
    ) -> None:
        self.where = f"{where}{name}."
        self.problems = problems
        table = parent.get(name, {})
        if not isinstance(table, dict):
            problems.append(bad_value(f"{where}{name}", table, f"a table [{name}]"))
            table = {}
        self.values: dict[str, Any] = dict(table)

    def take(self, name: str, default: Any, read: Any, permitted: str) -> Any:
        """The value of a key, read and checked; the default where it is absent or wrong."""
        if name not in self.values:
            return default
        value = self.values.pop(name)
        try:
            return read(value)
        except (Unreadable, TypeError, ValueError, OSError) as why:  # OSError: no such path can be
            detail = str(why) if isinstance(why, Unreadable) else ""
            self.problems.append(bad_value(self.where + name, value, permitted, detail))
            return default

    def refuse_rest(self, permitted: list[str]) -> None:
        for name in self.values:
            self.problems.append(unknown_key(self.where + name, name, permitted))


def seconds(value: object) -> float:
    return duration_s(str(value))


def between_s(least: float, most: float) -> Any:
    def read(value: object) -> float:
        length_s = seconds(value)
        if not least <= length_s <= most:
            raise Unreadable
        return length_s

    return read
