# SPDX-License-Identifier: Apache-2.0
"""The order of a measurement: for each workload, rounds of direct, then each proxy in turn.

In each turn two phases: throughput, with all connections at full speed, and latency, with few
connections that wait for each answer. All proxies of a workload run from its first round to its
last, so the turns differ in nothing but where the client connects.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict

from autoscaler.bench.children import Child, child, listening_child
from autoscaler.bench.cores import Cores
from autoscaler.bench.phases import DIRECT, Phase, Plan, Seen, Turn
from autoscaler.bench.proxies import Proxy, Running
from autoscaler.bench.workloads import Workload

_SPARE_S = 60.0


async def measure(
    workload: Workload,
    proxies: Sequence[Proxy],
    *,
    plan: Plan,
    cores: Cores,
    began: Callable[[str], None],
    ended: Callable[[], None],
) -> list[list[Turn]]:
    """All rounds of one workload, each a list of turns.

    `began` is told of each turn before it, `ended` is called after it.
    """
    async with AsyncExitStack() as running:
        backend, backend_port = await running.enter_async_context(
            listening_child(
                "the backend",
                [sys.executable, "-m", "autoscaler.bench.backend", workload.name],
                core=cores.backend,
            )
        )
        client = await running.enter_async_context(
            child(
                "the client",
                [sys.executable, "-m", "autoscaler.bench.client"],
                core=cores.client,
            )
        )
        ends = {"client": client.pid, "backend": backend.pid}
        turns: dict[str, Running | None] = {DIRECT: None}
        for proxy in proxies:
            turns[proxy.name] = await running.enter_async_context(
                proxy.start(backend_port, cores.proxy)
            )
        rounds = []
        for number in range(plan.rounds):
            done = []
            for name, proxy_running in turns.items():
                began(f"{workload.name}, round {number + 1} of {plan.rounds}: {name}")
                port = proxy_running.port if proxy_running else backend_port
                cpu_of = {**ends, **({"proxy": proxy_running.pid} if proxy_running else {})}
                done.append(
                    await _turn(client, name, workload, plan, cores=cores, port=port, cpu_of=cpu_of)
                )
                ended()
            rounds.append(done)
        return rounds


async def _turn(
    client: Child,
    name: str,
    workload: Workload,
    plan: Plan,
    *,
    cores: Cores,
    port: int,
    cpu_of: dict[str, int],
) -> Turn:
    seen = []
    for for_latency in (False, True):
        phase = Phase(
            workload=workload.name,
            port=port,
            connections=workload.latency_connections if for_latency else plan.connections,
            warm_s=plan.warm_s,
            duration_s=plan.duration_s,
            for_latency=for_latency,
            cpu_of=cpu_of,
            cores=tuple(sorted({cores.proxy, cores.backend, cores.client})),
        )
        longest_s = plan.warm_s + plan.duration_s + _SPARE_S
        answer = await client.ask(json.dumps(asdict(phase)), within_s=longest_s)
        seen.append(Seen(**json.loads(answer)))
    return Turn(name, throughput=seen[0], latency=seen[1])
