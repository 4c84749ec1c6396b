# SPDX-License-Identifier: Apache-2.0
"""Measures the extender as kube-scheduler meets it: bodies in, bodies out, on one core.

Left out of the times: HTTP, and the API server's part of bind. A restart is measured with both.
"""

import asyncio
import gc
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from scheduler_extender.adapters.api import Api
from scheduler_extender.adapters.cluster import KubernetesPodsAndNodes
from scheduler_extender.bench.population import Raw, Size, a_pod, node_name, wishes
from scheduler_extender.bench.stub import serve
from scheduler_extender.binding import Binds
from scheduler_extender.core.annotations import demand_of
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.typical import HALF_LIFE_PODS
from scheduler_extender.errors import GiveUp
from scheduler_extender.ports import Binding, PodRead
from scheduler_extender.state import ClusterState
from scheduler_extender.verbs import Verbs

Wish = tuple[dict[str, str], int]  # annotations, CPU in milli
Progress = Callable[[str, float], None]  # what is done, and how much of it, 0 to 1

STAY: Final = 200  # pods that stay before the first of them leaves again


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float

    @staticmethod
    def of(seconds: list[float]) -> "Times":
        p50, p99, most = np.quantile(seconds, [0.5, 0.99, 1.0]) * 1000
        return Times(round(p50, 3), round(p99, 3), round(most, 3))


class _Calls:
    """Seconds of each call: as they passed, and of the processor."""

    def __init__(self) -> None:
        self.passed: list[float] = []
        self.cpu: list[float] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        yield
        self.cpu.append(time.thread_time() - cpu_s)
        self.passed.append(time.perf_counter() - began_s)


@dataclass(frozen=True, slots=True)
class VerbTimes:
    """Calls with so many names. `choose`: filter and prioritise of one pod together; every other
    pod is picked instead, which is both in one call.

    `…_cpu`: processor time alone, which other work on this machine does not lengthen.
    """

    names: int
    calls: int
    filter: Times
    prioritise: Times
    choose: Times
    pick: Times
    bind: Times
    choose_cpu: Times
    pick_cpu: Times
    bind_cpu: Times
    first_sight_ms: float  # the longest choose of a shape not seen before; not in the times above
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    nodes: int
    gpus: int
    pods: int
    restart_s: float
    load_1m: float  # of this machine at the end: with other work on its cores, times are longer
    verbs: tuple[VerbTimes, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class _NoApi:
    """Answers at once."""

    leading = True

    async def bind(self, binding: Binding) -> None:
        pass

    async def read(self, namespace: str, name: str) -> PodRead | None:
        return None


async def measure(
    size: Size, *, names: tuple[int, ...], calls: int, seed: int, progress: Progress
) -> Report:
    state = ClusterState()
    restart_s = await _restart(state, size, seed, progress)
    free = _NoApi()
    binds = Binds(state, binder=free, lease=free, now_s=time.monotonic)
    verbs = Verbs(state, binds)
    chance = random.Random(seed)  # noqa: S311 - a seeded load, so that runs are alike
    deployments = wishes(chance)
    _learn(state, deployments)
    times = [
        await _verbs(state, verbs, size=size, names=count, calls=calls, chance=chance,
                     progress=progress, deployments=deployments)
        for count in names
    ]  # fmt: skip
    return Report(
        size.nodes,
        size.nodes * size.cards,
        len(state.pods),
        round(restart_s, 2),
        round(os.getloadavg()[0], 2),
        tuple(times),
    )


def _learn(state: ClusterState, deployments: list[Wish]) -> None:
    """Expect the shapes that will come, as after a day of them: scores cost most then."""
    pods = (a_pod(0, notes, cpu_milli=cpu) for notes, cpu in deployments)
    shapes = [wish for wish in map(demand_of, pods) if isinstance(wish, Demand)]
    for wish in islice(cycle(shapes), int(HALF_LIFE_PODS)):
        state.arrived(wish)


async def _restart(state: ClusterState, size: Size, seed: int, progress: Progress) -> float:
    """Seconds from the first request to ready, from an API server on this machine."""
    progress("making a cluster up", 0.0)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=serve, args=(size, seed, theirs), daemon=True
    )
    child.start()
    try:
        port = await asyncio.to_thread(_port, ours, child)
        with tempfile.TemporaryDirectory() as folder:
            kubeconfig = Path(folder) / "kubeconfig"
            kubeconfig.write_bytes(_kubeconfig(port))
            async with Api(kubeconfig) as api:
                return await _sync(state, api, size, progress)
    finally:
        child.terminate()
        child.join()


async def _sync(state: ClusterState, api: Api, size: Size, progress: Progress) -> float:
    began_s = time.perf_counter()
    following = asyncio.create_task(KubernetesPodsAndNodes(api).follow(state))
    while not state.synced and not following.done():
        await asyncio.sleep(0.01)
        progress("restart", min(len(state.pods) / size.pods, 1.0))
    gc.collect()
    gc.freeze()
    took_s = time.perf_counter() - began_s
    following.cancel()
    await asyncio.wait([following])
    if not state.synced:
        raise GiveUp("the made-up cluster was not listed; is there enough memory?")
    return took_s


async def _verbs(
    state: ClusterState,
    verbs: Verbs,
    *,
    size: Size,
    names: int,
    calls: int,
    chance: random.Random,
    deployments: list[Wish],
    progress: Progress,
) -> VerbTimes:
    everyone = [node_name(index) for index in range(size.nodes)]
    filters, rankings, picks, bindings = _Calls(), _Calls(), _Calls(), _Calls()
    bound: list[str] = []
    body = b""
    warm_up = len(deployments)  # each shape once: its first sight is told apart
    for number in range(-warm_up, calls):
        notes, cpu = deployments[number] if number < 0 else chance.choice(deployments)
        pod = a_pod(10**6 * names + number + warm_up, notes, cpu_milli=cpu)
        # In any order: kube-scheduler's own filters run side by side.
        body = _candidates(pod, chance.sample(everyone, names))
        if number > 0 and number % 2:
            with picks.timed():
                found = verbs.pick(body)
            node = next(iter(orjson.loads(found)["NodeNames"]), None)
        else:
            node = _chosen(verbs, pod, body, filters=filters, rankings=rankings)
        if node is not None:
            await _bind(verbs, pod, node, bindings)
            bound.append(pod["metadata"]["uid"])
        if len(bound) > STAY:
            state.pod_gone(bound.pop(0))
        if number % 20 == 0:
            progress(f"{names} names", (number + warm_up) / (calls + warm_up))
    for uid in bound:
        state.pod_gone(uid)
    both = [a + b for a, b in zip(filters.passed, rankings.passed, strict=True)]
    both_cpu = [a + b for a, b in zip(filters.cpu, rankings.cpu, strict=True)]
    return VerbTimes(
        names=names,
        calls=calls,
        filter=Times.of(filters.passed[warm_up:]),
        prioritise=Times.of(rankings.passed[warm_up:]),
        choose=Times.of(both[warm_up:]),
        pick=Times.of(picks.passed),
        bind=Times.of(bindings.passed),
        choose_cpu=Times.of(both_cpu[warm_up:]),
        pick_cpu=Times.of(picks.cpu),
        bind_cpu=Times.of(bindings.cpu),
        first_sight_ms=round(max(both[:warm_up]) * 1000, 3),
        body_bytes=len(body),
    )


def _chosen(
    verbs: Verbs, pod: Raw, body: bytes, *, filters: _Calls, rankings: _Calls
) -> str | None:
    """The node that kube-scheduler would take after filter and prioritise."""
    with filters.timed():
        found = verbs.filter(body)
    again = _candidates(pod, orjson.loads(found)["NodeNames"])
    with rankings.timed():
        scores = verbs.prioritise(again)
    best = max(orjson.loads(scores), key=lambda one: one["Score"], default=None)
    return None if best is None else str(best["Host"])


async def _bind(verbs: Verbs, pod: Raw, node: str, bindings: _Calls) -> None:
    meta = pod["metadata"]
    body = orjson.dumps(
        {
            "PodName": meta["name"],
            "PodNamespace": meta["namespace"],
            "PodUID": meta["uid"],
            "Node": node,
        }
    )
    with bindings.timed():
        answer = await verbs.bind(body)
    if answer != b'{"Error":""}':
        raise GiveUp(f"a pod that was said to fit {node} was not bound: {answer.decode()}")


def _candidates(pod: Raw, names: list[str]) -> bytes:
    return orjson.dumps({"Pod": pod, "Nodes": None, "NodeNames": names})


def _port(ours: Any, child: Any) -> int:
    while not ours.poll(0.2):
        if not child.is_alive():
            raise GiveUp("the made-up API server ended early; is there enough memory?")
    return int(ours.recv())


def _kubeconfig(port: int) -> bytes:
    """As JSON, which is YAML."""
    return orjson.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "it", "user": {}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "current-context": "it",
        }
    )
