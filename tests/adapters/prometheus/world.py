# SPDX-License-Identifier: Apache-2.0
"""Services, their pods and a source over them; a test names only what it is about."""

from collections.abc import Collection, Iterator, Mapping

from autoscaler.adapters.prometheus import PrometheusClient, PrometheusSignalSource
from autoscaler.adapters.prometheus.source import Client
from autoscaler.core.signals import NoReading, Quantity, Query, Reading, ServiceId
from autoscaler.prometheus_settings import PrometheusSettings
from tests.fakes import FakeClock, WallClock

Line = tuple[str, Mapping[str, str], float]


def vllm(
    service: ServiceId,
    pod: str,
    *,
    running: float = 0.0,
    waiting: float = 0.0,
    served: float = 0.0,
    tokens: float = 0.0,
) -> Iterator[Line]:
    """What a pod with vLLM says, as far as signals are made of it."""
    labels = {"namespace": service.namespace, "pod": pod, "model_name": "m"}
    yield "vllm:num_requests_running", labels, running
    yield "vllm:num_requests_waiting", labels, waiting
    yield "vllm:request_success_total", {**labels, "finished_reason": "stop"}, served
    yield "vllm:generation_tokens_total", labels, tokens


class World:
    """Some services with their ready pods, and what one source says of them."""

    def __init__(
        self,
        url: str,
        pods: Mapping[ServiceId, Collection[str]],
        *queries: Query,
        client: Client | None = None,
        clock: FakeClock | WallClock | None = None,
        **settings: float,
    ) -> None:
        self.pods = dict(pods)
        self.first = next(iter(self.pods))
        self.queries = queries
        self.settings = PrometheusSettings(
            url,
            **{"refresh_s": 0.2, "timeout_s": 5.0, "window_s": 10.0, **settings},  # type: ignore[arg-type]
        )
        self.client = client or PrometheusClient(self.settings)
        self.source = PrometheusSignalSource(
            self.settings,
            clock=clock or WallClock(),
            pods=lambda service: self.pods.get(service, ()),
            queries=lambda _: self.queries,
            client=self.client,
        )

    async def measures(self) -> Mapping[Quantity, Reading | NoReading]:
        """What is known of the first service."""
        return (await self.source.measure([self.first]))[self.first]

    async def seen(self, quantity: Quantity) -> Reading | NoReading:
        return (await self.measures())[quantity]

    async def value(self, quantity: Quantity) -> float | None:
        """None: no reading."""
        seen = await self.seen(quantity)
        return seen.value if isinstance(seen, Reading) else None

    async def why(self, quantity: Quantity) -> str:
        """Why there is no reading; empty: there is one."""
        seen = await self.seen(quantity)
        return seen.why if isinstance(seen, NoReading) else ""
