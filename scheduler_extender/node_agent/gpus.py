# SPDX-License-Identifier: Apache-2.0
"""One reading of a node's GPUs, whoever read them. Pure; what is not known is None, never 0."""

from dataclasses import dataclass

Links = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that is given to pods, or a MIG instance of one: a GPU that is split is not listed.

    `memory_mib`: what pods may have, the driver's own part taken off. `xid`: the newest critical
    event that counts against it, 0 for none. `ails`: why it gets no pods; empty: it is well.
    """

    uuid: str
    model: str
    memory_mib: int
    profile: str = ""
    xid: int = 0
    ails: str = ""
    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """All GPUs of a node. `links` [gpu][gpu]: more is better; empty: all alike.

    `one_process`: each takes a single process at a time, which an MPS server may be. `unlisted`:
    what is wrong with GPUs of which not even the UUID is known.
    """

    gpus: tuple[Gpu, ...]
    links: Links = ()
    driver: str = ""
    one_process: bool = False
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotRead:
    """The driver did not tell; that is not a node without GPUs."""

    why: str
