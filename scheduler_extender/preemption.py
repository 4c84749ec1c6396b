# SPDX-License-Identifier: Apache-2.0
"""Which pods would have to go from a node for another to fit its GPUs. Reads only.

kube-scheduler names victims without knowing GPUs. A node stays a candidate only where evictions
make room on its cards: those it named, and, where they are too few, others of lower priority. Who
holds no GPUs is never added.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits
from scheduler_extender.core.gpus import Fleet
from scheduler_extender.state import ClusterState
from scheduler_extender.wire import Victims

_ROOM: Final = 2**40  # more CPU and memory than any pod asks: those are kube-scheduler's to judge


def victims_for(
    state: ClusterState, demand: Demand, named: Mapping[str, Victims], *, priority: int
) -> dict[str, Victims]:
    """The nodes where it works, each with all its victims."""
    fleet = state.fleet.copy()
    found = {}
    for node, victims in named.items():
        uids = _enough(state, fleet, demand, node=node, named=victims.uids, priority=priority)
        if uids:  # kube-scheduler takes a node without victims for an error
            found[node] = Victims(uids, victims.disruptions)
    return found


def _enough(
    state: ClusterState,
    fleet: Fleet,
    demand: Demand,
    *,
    node: str,
    named: tuple[str, ...],
    priority: int,
) -> tuple[str, ...]:
    """Mutates `fleet` in the node's row. Nothing where no eviction helps."""
    row = fleet.row_of.get(node)
    if row is None:
        return named if not demand.cards else ()
    fleet.cpu_free[row] = fleet.ram_free[row] = _ROOM
    here = np.array([row])
    for uid in named:
        _evict(state, fleet, uid)
    if fits(fleet, demand, here)[0]:
        return named
    added: list[str] = []
    for uid in _lower(state, node, named, priority):
        _evict(state, fleet, uid)
        added.append(uid)
        if fits(fleet, demand, here)[0]:
            return (*named, *_needed(state, fleet, demand, added))
    return ()


def _needed(state: ClusterState, fleet: Fleet, demand: Demand, added: list[str]) -> list[str]:
    """Spare whom it is not necessary to evict, the most important first. Mutates `fleet`."""
    needed = list(added)
    for uid in reversed(added):
        entry = state.ledger.entry(uid)
        if entry is None or entry.grant is None:
            continue
        fleet.take(entry.grant)
        if fits(fleet, demand, np.array([fleet.row_of[entry.grant.node]]))[0]:
            needed.remove(uid)
        else:
            fleet.give_back(entry.grant)
    return needed


def _lower(state: ClusterState, node: str, named: tuple[str, ...], priority: int) -> list[str]:
    """Pods with GPUs of the node that may be evicted, the least important first."""
    pods = [
        pod
        for pod in state.on(node)
        if pod.granted is not None and pod.priority < priority and pod.uid not in named
    ]
    return [pod.uid for pod in sorted(pods, key=lambda pod: (pod.priority, pod.uid))]


def _evict(state: ClusterState, fleet: Fleet, uid: str) -> None:
    entry = state.ledger.entry(uid)
    if entry is not None and entry.grant is not None:
        fleet.give_back(entry.grant)
