# SPDX-License-Identifier: Apache-2.0
"""The rule of the batches: which of the waiting requests run together, and when.

The semantics are those of Triton's dynamic batcher: first come, first served; the walk along the
queue ends at a request of another shape or one that would pass the largest batch. A batch that
cannot grow goes at once, any other when its oldest request has waited `max_delay_s`; a delay of 0
sends whatever is there. One difference: a request that alone is wider than `max_rows` is not
refused, it runs alone.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.core.tensors import Array, Tensors


@dataclass(frozen=True, slots=True)
class Waiting:
    """One queued request.

    Only requests with equal `key` may share a batch; None shares with nobody.
    """

    rows: int
    key: Hashable | None
    since_s: float


@dataclass(frozen=True, slots=True)
class Send:
    """Run the first `count` requests of the queue now, as one batch."""

    count: int


@dataclass(frozen=True, slots=True)
class Wait:
    """The batch may still grow: look again in `for_s` seconds, or when a request arrives."""

    for_s: float


def next_batch(
    queue: Iterable[Waiting], *, now_s: float, max_rows: int, max_delay_s: float
) -> Send | Wait:
    """What to do with a queue of at least one request while a slot is free."""
    walk = iter(queue)
    oldest = next(walk)
    count, rows = 1, oldest.rows
    if oldest.key is None or rows >= max_rows:
        return Send(1)
    for request in walk:
        if request.key != oldest.key or rows + request.rows > max_rows:
            return Send(count)
        count, rows = count + 1, rows + request.rows
        if rows == max_rows:
            return Send(count)
    waited_s = max(0.0, now_s - oldest.since_s)
    return Send(count) if waited_s >= max_delay_s else Wait(max_delay_s - waited_s)


def key_of(inputs: Tensors) -> Hashable:
    """What requests in one batch have in common: names, types, all dimensions but the first."""
    return tuple((name, t.dtype.str, t.shape[1:]) for name, t in sorted(inputs.items()))


def rows_of(inputs: Tensors) -> int | str:
    """How many rows the inputs have in their first dimension, or why that cannot be said."""
    sizes: dict[str, int | None] = {
        name: t.shape[0] if t.ndim else None for name, t in inputs.items()
    }
    distinct = set(sizes.values())
    if len(distinct) == 1:
        rows = distinct.pop()
        if rows is not None and rows >= 1:
            return rows
    return f"the inputs need one common first dimension of at least 1 row, got {sizes}"


def join(requests: Sequence[Tensors]) -> Tensors:
    """The rows of all requests below one another, in order. The requests have equal `key_of`."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors] | None:
    """The inverse of `join` on a model's outputs.

    None when some output does not have one entry a row: the model does not work row by row, and
    what came out belongs to no single request.
    """
    total = sum(rows)
    if any(t.ndim == 0 or t.shape[0] != total for t in outputs.values()):
        return None
    parts: list[dict[str, Array]] = []
    start = 0
    for count in rows:
        parts.append({name: t[start : start + count] for name, t in outputs.items()})
        start += count
    return list(parts)
