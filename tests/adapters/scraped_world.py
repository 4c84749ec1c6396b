# SPDX-License-Identifier: Apache-2.0
"""A service whose pods are real sockets: the real scraper, demand and loop, and a fake cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from time import monotonic

from autoscaler.adapters.engines.growth import Look
from autoscaler.adapters.engines.scraper import ROUND_S, EngineScraper
from autoscaler.adapters.kubernetes.demand import KubernetesDemand
from autoscaler.adapters.memory import InMemoryStore
from autoscaler.adapters.plain_http import At
from autoscaler.core.decide import Decision
from autoscaler.core.policy import RateRule, Target
from autoscaler.core.routes import Demand
from autoscaler.core.signals import NoReading, Signal
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView
from tests.adapters.kubernetes.waiting import PATIENCE_S, until
from tests.builders import A_SERVICE, a_policy, replicas
from tests.fakes import FakeClock, FakeCluster, FakeRoutes

TICK_S = 1.2  # longer than the scraper's period with its jitter: each tick sees a new look
QUEUE = 2.0  # what one replica may have waiting

Answer = str | Callable[[asyncio.StreamWriter], Awaitable[None]]


def vllm(*, waiting: object = 2, tokens: object = 0, running: object = 1, ended: object = 9) -> str:
    """What a vLLM replica shows; a test may write nonsense instead of a number."""
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {ended}\n'
        f'vllm:generation_tokens_total{{engine="0"}} {tokens}\n'
    )


def of(body: str | bytes, *, status: str = "200 OK", head: str = "") -> bytes:
    """One whole answer."""
    if isinstance(body, str):
        body = body.encode()
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + f"\r\n{head}\r\n").encode() + body


@dataclass
class Pods:
    """Pods on one port, each a path; `answers` says what each does when it is asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    port: int = 0
    host: str = "127.0.0.1"
    asked: int = 0

    async def serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        try:
            while not writes.is_closing():
                request = await reads.readuntil(b"\r\n\r\n")
                self.asked += 1
                answer = self.answers[request.split()[1].decode().lstrip("/")]
                if isinstance(answer, str):
                    writes.write(of(answer))
                else:
                    await answer(writes)
                await writes.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the scraper went away
        finally:
            writes.close()

    def places(self) -> dict[str, At]:
        return {pod: At(self.host, self.port, f"/{pod}") for pod in self.answers}


@dataclass
class World:
    """`tick` lets time pass, waits until every pod was asked again, and has the loop decide."""

    pods: Pods
    scraper: EngineScraper
    demand: KubernetesDemand
    cluster: FakeCluster
    loop: ControlLoop
    clock: FakeClock
    steps: int  # of a tick: one of the scraper's rounds lets no more than a number of pods begin

    async def ticks(self, count: int) -> None:
        for _ in range(count):
            for _ in range(self.steps):
                self.clock.at_s += TICK_S / self.steps
                await self.demand.measure([A_SERVICE])  # new pods become known to the scraper
                await asyncio.sleep(1.2 * ROUND_S)  # so often the scraper looks whose turn it is
            await until(self._asked_again, "every pod's next look")
            await self.loop.tick()

    def _asked_again(self) -> bool:
        return all(
            look.at_s > self.clock.at_s - TICK_S
            if isinstance(look, Look)
            else "not asked yet" not in look.why
            for look in (self.scraper.look(A_SERVICE, pod) for pod in self.pods.answers)
        )

    async def until_all_answer(self) -> None:
        """Let time pass until each pod was asked again: those that failed wait longer for that."""
        end_s = monotonic() + PATIENCE_S
        while any(self.why(pod) for pod in self.pods.answers):
            assert monotonic() < end_s, f"waited in vain: {self.demand.health()}"
            await self.ticks(1)

    def why(self, pod: str) -> str:
        look = self.scraper.look(A_SERVICE, pod)
        return look.why if isinstance(look, NoReading) else ""

    @property
    def scale(self) -> int:
        """The count that the service has now."""
        return self.cluster.views[A_SERVICE].scale

    @property
    def last(self) -> Decision:
        """The newest decision."""
        return self.loop.records[A_SERVICE][-1].decision

    @property
    def counts(self) -> list[int]:
        """All counts that were asked for, in order."""
        return [count for _, count in self.cluster.scaled]


@asynccontextmanager
async def a_world(
    answers: dict[str, Answer], *, targets: dict[Signal, float] | None = None
) -> AsyncIterator[World]:
    """As many replicas as there are pods; counts fall at once, if anything lets them."""
    pods, clock = Pods(answers), FakeClock(100.0)
    server = await asyncio.start_server(pods.serve, pods.host, 0, backlog=1024)
    pods.port = server.sockets[0].getsockname()[1]
    scraper = EngineScraper(clock=clock, random=Random(7))
    demand = KubernetesDemand(
        clock=clock,
        demand_of=lambda service: Demand(str(service)),
        heard_at_s=clock.now_s,
        share_ratio=lambda: 1.0,
        ready_pods=lambda _: pods.places(),
        engines=scraper,
    )
    policy = a_policy(
        targets=tuple(Target(*one) for one in (targets or {Signal.QUEUE: QUEUE}).items()),
        max_replicas=1000,
        signal_window_s=3.0,
        scale_down=RateRule(window_s=0.0),
    )
    view = ServiceView(A_SERVICE, policy, 1, len(answers), replicas(len(answers)))
    cluster = FakeCluster(view)
    loop = ControlLoop(
        cluster=cluster,
        sources=[demand],
        routes=FakeRoutes(),
        store=InMemoryStore(),
        clock=clock,
    )
    running = asyncio.create_task(demand.run())
    try:
        yield World(pods, scraper, demand, cluster, loop, clock, 1 + len(answers) // 100)
        assert not running.done(), "the scraper crashed"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()
