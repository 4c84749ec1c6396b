# SPDX-License-Identifier: Apache-2.0
"""Reads nodes and pods from CSV. Everything that is wrong is said with file, line and column.

The columns are those of the open GPU traces: a node has `sn`, `cpu_milli`, `memory_mib`, `gpu` and
`model`; a pod `cpu_milli`, `memory_mib`, `num_gpu`, `gpu_milli` and, where it may not have any
model, `gpu_spec` with the permitted models joined by `|`. Other columns are not looked at.
"""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscaler.errors import BadInput
from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.gpus import Card, NodeGpus

MOST_CARDS = 64  # of one node
MEMORY_MIB = 16384  # of a card: the lists do not tell, and no pod of theirs asks for any
SLOTS = WHOLE_MILLI  # pods on a card: as many as its thousandths, so they never limit

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a file, which knows where it stands."""

    path: Path
    line: int
    values: Mapping[str, str | None]

    def text(self, column: str) -> str:
        return (self.values.get(column) or "").strip()

    def whole(self, column: str, *, most: int = 10**9) -> int:
        said = self.text(column)
        if not (said.isascii() and said.isdigit() and int(said) <= most):
            raise self.wrong(column, f"{said!r}", permitted=f"a whole number from 0 to {most}")
        return int(said)

    def wrong(self, column: str, said: str, *, permitted: str) -> BadInput:
        return BadInput(
            f"{self.path}: line {self.line}, column {column}: {said} is not permitted; "
            f"permitted: {permitted}; correct the line or remove it"
        )


def read_nodes(path: Path) -> tuple[NodeGpus, ...]:
    """The nodes that have GPUs, in the order of the file."""
    nodes: dict[str, NodeGpus] = {}
    for row in _rows(path, option="--nodes", columns=NODE_COLUMNS):
        name, count = row.text("sn"), row.whole("gpu", most=MOST_CARDS)
        if not name or name in nodes:
            raise row.wrong("sn", f"{name!r}", permitted="a name that no other node has")
        if count:
            cards = tuple(
                Card(f"{name}/{index}", MEMORY_MIB, slots=SLOTS) for index in range(count)
            )
            nodes[name] = NodeGpus(
                name,
                cards,
                row.text("model"),
                cpu_milli=row.whole("cpu_milli"),
                ram_mib=row.whole("memory_mib"),
            )
    if not nodes:
        raise BadInput(f"--nodes: {path} has no node with GPUs; name a list that has some")
    return tuple(nodes.values())


def read_pods(path: Path) -> tuple[Demand, ...]:
    """What the pods ask for, in the order of the file."""
    pods = tuple(_demand(row) for row in _rows(path, option="--pods", columns=POD_COLUMNS))
    if not any(pod.cards for pod in pods):
        raise BadInput(f"--pods: {path} has no pod that asks for a GPU; name a list that has some")
    return pods


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _demand(row: _Row) -> Demand:
    cards = row.whole("num_gpu", most=MOST_CARDS)
    milli = row.whole("gpu_milli", most=WHOLE_MILLI) if cards else 0
    if cards and not milli:
        raise row.wrong("gpu_milli", "0", permitted=f"1 to {WHOLE_MILLI} where num_gpu is not 0")
    return Demand(
        cards=cards,
        whole=milli == WHOLE_MILLI,
        milli=milli,
        models=tuple(sorted({name for name in row.text("gpu_spec").split("|") if name})),
        cpu_milli=row.whole("cpu_milli"),
        ram_mib=row.whole("memory_mib"),
    )


def _rows(path: Path, *, option: str, columns: Sequence[str]) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise BadInput(
                    f"{option}: {path}: line 1 has no column {missing[0]}; "
                    f"needed: {', '.join(columns)}"
                )
            for values in reader:
                yield _Row(path, reader.line_num, values)
    except OSError as error:
        raise BadInput(f"{option}: {path}: {error.strerror}; name a file to read") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{option}: {path}: {error}; name a CSV file in UTF-8") from None
