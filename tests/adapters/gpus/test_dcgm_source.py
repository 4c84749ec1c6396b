# SPDX-License-Identifier: Apache-2.0
"""Exporters that are asked over real sockets: what is told of services, and every way they fail."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from autoscaler.adapters.gpus.dcgm_source import PAGE_MAX_BYTES, STALE_S, DcgmSignalSource
from autoscaler.adapters.memory import InMemoryStore
from autoscaler.adapters.plain_http import At
from autoscaler.core.policy import Target
from autoscaler.core.signals import NoReading, Reading, ServiceId, Signal
from autoscaler.loop import ControlLoop
from autoscaler.ports import ServiceView
from tests.adapters.kubernetes.waiting import until
from tests.builders import a_policy, replicas
from tests.fakes import FakeClock, FakeCluster, FakeRoutes

IRIS = ServiceId("prod", "iris")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


def row(pod: str, percent: float | str, *, uuid: str = "", namespace: str = "prod") -> str:
    labels = f'UUID="{uuid or f"GPU-{pod}"}",pod="{pod}",namespace="{namespace}"'
    return f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} {percent}\n"


@dataclass
class Exporters:
    """Exporters on one port, each a path that answers as the test says."""

    pages: dict[str, str | bytes | None] = field(default_factory=dict)  # None: it hangs up
    port: int = 0
    asked: int = 0
    connections: int = 0

    async def serve(self, reads: asyncio.StreamReader, writes: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await reads.readuntil(b"\r\n\r\n")
                self.asked += 1
                page = self.pages.get(request.split()[1].decode().lstrip("/"))
                if page is None:
                    return
                body = page.encode() if isinstance(page, str) else b""
                writes.write(page if isinstance(page, bytes) else OK % (len(body), body))
                await writes.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writes.close()

    def places(self) -> list[At]:
        return [At("127.0.0.1", self.port, f"/{name}") for name in self.pages]


@dataclass
class Asked:
    """A source that runs, its exporters, the ready pods, and a clock that stands still."""

    source: DcgmSignalSource
    exporters: Exporters
    clock: FakeClock
    pods: list[str]

    async def told(self) -> Reading | NoReading:
        """After every exporter was asked once more."""
        before = self.source.health().asked
        wanted = before + 2 * len(self.exporters.pages)  # one may have been under way
        await until(lambda: self.source.health().asked >= wanted, "more scrapes")
        return await self.now()

    async def now(self) -> Reading | NoReading:
        measures = (await self.source.measure([IRIS]))[IRIS]
        seen = measures[Signal.GPU_UTILIZATION]
        assert list(measures) == [Signal.GPU_UTILIZATION]
        return seen

    async def value(self) -> float:
        seen = await self.told()
        assert isinstance(seen, Reading), seen
        return seen.value

    async def why(self) -> str:
        seen = await self.told()
        assert isinstance(seen, NoReading), seen
        return seen.why


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    exporters, clock, pods = Exporters(), FakeClock(1000.0), ["iris-1", "iris-2"]
    server = await asyncio.start_server(exporters.serve, "127.0.0.1", 0)
    exporters.port = server.sockets[0].getsockname()[1]
    source = DcgmSignalSource(
        exporters.places, ready_pods=lambda service: pods, clock=clock, period_s=0.01
    )
    running = asyncio.create_task(source.run())
    yield Asked(source, exporters, clock, pods)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    server.close()


async def test_a_service_is_told_the_sum_of_what_its_pods_use(asked: Asked) -> None:
    """A pod with two cards counts with their mean; other pods' cards do not count."""
    asked.exporters.pages = {
        "a": row("iris-1", 40) + row("iris-1", 80, uuid="GPU-b") + row("rose-1", 100),
        "b": row("iris-2", 30) + row("iris-1", 100, namespace="test", uuid="GPU-c"),
    }
    seen = await asked.told()
    assert isinstance(seen, Reading)
    assert seen.value == pytest.approx(0.9)
    assert (seen.share_ratio, seen.source) == (1.0, "dcgm")
    assert asked.source.health().why is None


async def test_a_reading_is_as_old_as_dcgm_s_own_look_may_be(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40)}
    seen = await asked.told()
    assert isinstance(seen, Reading)
    assert seen.at_s == 970.0


async def test_pods_that_no_exporter_names_lower_the_share_and_not_the_sum(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 70)}
    seen = await asked.told()
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (0.7, 0.5)


async def test_a_card_that_does_not_tell_is_not_as_idle_as_the_pod_s_other_one(
    asked: Asked,
) -> None:
    """DCGM's mark for a number that it does not have may hide a busy card."""
    silent = row("iris-1", 2**63 - 16, uuid="GPU-b")
    asked.exporters.pages = {"a": row("iris-1", 10) + silent + row("iris-2", 30)}
    seen = await asked.told()
    assert isinstance(seen, Reading)
    assert seen.value == pytest.approx(0.4)
    assert seen.share_ratio == 0.75


async def test_an_exporter_that_is_down_leaves_what_it_said_for_a_while(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40), "b": row("iris-2", 20)}
    assert await asked.value() == pytest.approx(0.6)
    asked.exporters.pages["b"] = None
    seen = await asked.told()
    assert isinstance(seen, Reading)
    assert seen.share_ratio == 1.0
    health = asked.source.health()
    assert health.why is not None
    assert "1 of 2 exporters fail" in health.why
    assert health.failed > 0


async def test_what_is_older_than_a_minute_is_no_reading(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40)}
    assert await asked.value() == 0.4
    asked.exporters.pages["a"] = None
    await asked.told()
    asked.clock.at_s += STALE_S
    assert isinstance(await asked.now(), Reading)
    asked.clock.at_s += 1.0
    seen = await asked.now()
    assert isinstance(seen, NoReading)
    assert "exporters fail" in seen.why
    asked.exporters.pages["a"] = row("iris-1", 50)
    assert await asked.value() == 0.5
    assert asked.source.health().why is None


async def test_labels_that_are_gone_are_no_reading_and_say_the_remedy(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40)}
    assert await asked.value() == 0.4
    asked.exporters.pages = {"a": 'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-iris-1",pod=""} 0\n'}
    assert "DCGM_EXPORTER_KUBERNETES=true" in await asked.why()


async def test_an_exporter_that_is_gone_leaves_no_ghost(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40), "b": row("iris-2", 20)}
    assert await asked.value() == pytest.approx(0.6)
    del asked.exporters.pages["b"]
    await until(lambda: len(asked.source.devices()) == 1, "the exporter is forgotten")
    seen = await asked.told()
    assert isinstance(seen, Reading)
    assert (seen.value, seen.share_ratio) == (0.4, 0.5)


async def test_a_card_that_two_exporters_tell_of_counts_once(asked: Asked) -> None:
    asked.pods[:] = ["iris-1"]
    asked.exporters.pages = {"a": row("iris-1", 40), "b": row("iris-1", 40)}
    assert await asked.value() == 0.4


async def test_a_service_without_a_ready_pod_is_not_told_to_be_idle(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40)}
    asked.pods.clear()
    assert "no pod is ready" in await asked.why()


def test_a_source_that_stands_by_knows_of_no_trouble() -> None:
    """Else the metrics of each controller that does not lead would say that it is down."""
    source = DcgmSignalSource(
        tuple,
        ready_pods=lambda service: (),
        clock=FakeClock(),
        trouble=lambda: "no endpoint is ready",
    )
    health = source.health()
    assert (health.why, health.asked) == (None, 0)


async def test_without_an_exporter_the_source_says_so(asked: Asked) -> None:
    seen = await asked.now()
    assert isinstance(seen, NoReading)
    assert "no exporter is known" in seen.why
    health = asked.source.health()
    assert (health.why, health.age_s) == ("no exporter is known", None)


async def test_one_connection_serves_all_scrapes(asked: Asked) -> None:
    asked.exporters.pages = {"a": row("iris-1", 40)}
    await asked.told()
    await asked.told()
    assert asked.exporters.asked >= 4
    assert asked.exporters.connections == 1


@pytest.mark.parametrize(
    ("page", "why"),
    [
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "answered 503", id="5xx"),
        pytest.param("<html>please log in</html>", "HTML", id="a login page"),
        pytest.param("", "no GPU in it", id="an exporter that has just begun"),
        pytest.param("vllm:num_requests_running 0\n", "no GPU in it", id="another's metrics"),
        pytest.param(row("iris-1", 40)[:-1], "cut off", id="a page that is cut off"),
        pytest.param(row("iris-1", "NaN"), "how busy", id="NaN"),
        pytest.param(row("iris-1", "+Inf"), "how busy", id="infinite"),
        pytest.param(row("iris-1", -1), "how busy", id="negative"),
        pytest.param(row("iris-1", 2**64 - 1), "how busy", id="no value"),
        pytest.param(
            OK[:17] + b"Connection: close\r\n\r\n" + b"DCGM_FI_X 1\n" * (PAGE_MAX_BYTES // 12 + 1),
            "more than",
            id="a body that does not end",
        ),
        pytest.param(
            OK[:17] + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
            "gzip broke off",
            id="packed, and cut off",
        ),
    ],
)
async def test_a_page_that_cannot_be_believed_moves_nothing(
    asked: Asked, page: str | bytes, why: str
) -> None:
    asked.pods[:] = ["iris-1"]
    asked.exporters.pages = {"a": page}
    assert why in await asked.why()
    asked.exporters.pages["a"] = row("iris-1", 90)
    assert await asked.value() == 0.9


async def test_no_count_falls_on_exporters_that_fail_and_it_does_once_they_say_that_it_may(
    asked: Asked,
) -> None:
    """Two replicas that are 90 % busy, for a target of 50 %; then ten minutes of silence."""
    policy = a_policy(targets=(Target(Signal.GPU_UTILIZATION, 0.5),))
    cluster = FakeCluster(ServiceView(IRIS, policy, 1, 2, replicas(2)))
    loop = ControlLoop(
        cluster=cluster,
        sources=[asked.source],
        routes=FakeRoutes(),
        store=InMemoryStore(),
        clock=asked.clock,
    )

    async def minutes(count: int, *, silent: bool = False) -> None:
        await asked.told()
        for _ in range(count * 12):
            if not silent:
                await asked.told()
            await loop.tick()
            asked.clock.at_s += 5.0

    asked.exporters.pages = {"a": row("iris-1", 90), "b": row("iris-2", 90)}
    await minutes(1)
    assert cluster.scaled == [(IRIS, 4)]
    asked.pods[:] = ["iris-1", "iris-2", "iris-3", "iris-4"]
    cluster.views[IRIS] = replace(cluster.views[IRIS], replicas=replicas(4))
    asked.exporters.pages = {"a": None, "b": "<html>"}
    await minutes(10, silent=True)
    assert cluster.scaled == [(IRIS, 4)]
    assert "2 of 2 exporters fail" in loop.records[IRIS][-1].decision.because[0]
    asked.exporters.pages = {"a": "".join(row(pod, 10) for pod in asked.pods), "b": row("x", 1)}
    await minutes(10)
    assert cluster.scaled[-1] == (IRIS, 1)
