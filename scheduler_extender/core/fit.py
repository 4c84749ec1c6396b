# SPDX-License-Identifier: Apache-2.0
"""Whether a demand fits a node now, and why it does not. Reads, never writes."""

from dataclasses import dataclass

import numpy as np

from scheduler_extender.core.demand import WHOLE_MILLI, Demand
from scheduler_extender.core.gpus import Fleet, Ints, Mask, row_sums


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node does not take a demand. `permanent`: nor would it if it were empty."""

    why: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where a demand fits: which of the rows that were asked for, and which of their cards."""

    at: Ints  # indices into those rows
    cards: Mask  # that could take their part of it, one at a time: [at, cards]


def hosts(fleet: Fleet, demand: Demand, rows: Ints) -> Hosts:
    """Those of `rows` that can host `demand` now."""
    room = (demand.cpu_milli <= fleet.cpu_free.take(rows)) & fleet.present.take(rows)
    room &= demand.ram_mib <= fleet.ram_free.take(rows)
    if demand.cards and demand.models:
        room &= permitted(fleet, demand)[fleet.model[rows]]
    at = np.flatnonzero(room)
    if not demand.cards:
        return Hosts(at, np.zeros((len(at), fleet.width), dtype=np.bool_))
    cards = cards_that_fit(fleet, demand, rows[at])
    enough = np.flatnonzero(row_sums(cards.view(np.int8)) >= demand.cards)
    return Hosts(at[enough], cards.take(enough, axis=0))


def fits(fleet: Fleet, demand: Demand, rows: Ints) -> Mask:
    """Which of `rows` can host `demand` now."""
    found = np.zeros(len(rows), dtype=np.bool_)
    found[hosts(fleet, demand, rows).at] = True
    return found


def permitted(fleet: Fleet, demand: Demand) -> Mask:
    """By index of model: whether the demand may have it."""
    return np.array([not demand.models or model in demand.models for model in fleet.models])


def cards_that_fit(fleet: Fleet, demand: Demand, rows: Ints) -> Mask:
    """Which cards could take their part of `demand`, one at a time: [rows, cards]."""
    slots = fleet.slots_free.take(rows, axis=0)
    ok: Mask = fleet.usable.take(rows, axis=0) & (slots >= 1)
    if demand.profile or len(fleet.profiles) > 1:
        ok &= fleet.profile.take(rows, axis=0) == _profile(fleet, demand)
    if demand.exclusive:
        ok &= slots == fleet.slots_total.take(rows, axis=0)
        return ok
    # At least one thousandth: a share without a claim on compute still needs some to be left.
    ok &= fleet.milli_free.take(rows, axis=0) >= max(demand.milli, 1)
    if demand.memory_mib or demand.memory_milli:
        ok &= fleet.memory_free.take(rows, axis=0) >= fleet.memory_need(demand, rows)
    return ok


def why_not(fleet: Fleet, demand: Demand, row: int) -> Refusal | None:
    """The first reason in a fixed order, the permanent ones first; None where it fits."""
    if fits(fleet, demand, np.array([row]))[0]:
        return None
    return _never(fleet, demand, row) or _not_now(fleet, demand, row)


def _profile(fleet: Fleet, demand: Demand) -> int:
    known = fleet.profiles
    return known.index(demand.profile) if demand.profile in known else len(known)


def _never(fleet: Fleet, demand: Demand, row: int) -> Refusal | None:
    exists = fleet.milli_total[row] > 0
    if demand.cards and not exists.any():
        return Refusal("no GPU", permanent=True)
    model = fleet.models[fleet.model[row]]
    if demand.models and model not in demand.models:
        return Refusal(f"wrong GPU model {model or 'unknown'}", permanent=True)
    if demand.cards and demand.profile != "" and demand.profile not in fleet.profiles:
        return Refusal(f"no MIG profile {demand.profile}", permanent=True)
    kind = exists & (fleet.profile[row] == _profile(fleet, demand))
    if kind.sum() < demand.cards:
        what = f"MIG instances {demand.profile}" if demand.profile else "GPUs"
        return Refusal(f"{int(kind.sum())} {what}, {demand.cards} asked", permanent=True)
    need = fleet.memory_need(demand, np.array([row]))[0]
    if (kind & (need <= fleet.memory_total[row])).sum() < demand.cards:
        return Refusal("GPU memory too small even when empty", permanent=True)
    if demand.milli > WHOLE_MILLI:
        return Refusal("more compute than a GPU has", permanent=True)
    if demand.cpu_milli > fleet.cpu_total[row] or demand.ram_mib > fleet.ram_total[row]:
        return Refusal("CPU or memory too small even when empty", permanent=True)
    return None


def _not_now(fleet: Fleet, demand: Demand, row: int) -> Refusal:
    exists = (fleet.milli_total[row] > 0) & (fleet.profile[row] == _profile(fleet, demand))
    tests: list[tuple[str, Mask]] = [
        ("GPUs unhealthy or cordoned", fleet.usable[row]),
        ("GPU slots exhausted", fleet.slots_free[row] >= 1),
    ]
    if demand.exclusive:
        untouched = fleet.slots_free[row] == fleet.slots_total[row]
        tests.append(("not enough unused GPUs", untouched))
    else:
        need = fleet.memory_need(demand, np.array([row]))[0]
        tests += [
            ("not enough GPU memory left", fleet.memory_free[row] >= need),
            ("not enough GPU compute left", fleet.milli_free[row] >= max(demand.milli, 1)),
        ]
    left = exists
    for why, passed in tests:
        left = left & passed
        if left.sum() < demand.cards:
            return Refusal(why, permanent=False)
    return Refusal("not enough CPU or memory left", permanent=False)
