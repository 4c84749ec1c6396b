# SPDX-License-Identifier: Apache-2.0
"""The activator as it runs: in processes of its own, with a channel to a controller."""

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoscaler.adapters.activators import ActivatorHub
from autoscaler.core.routes import Demand, Endpoint, Route
from tests.activator.peers import PATIENCE_S, Line, Message, Peers, get, ok, post, until

ACTIVATOR = "from autoscaler.app.activator import app; app()"
# A replica in a process of its own: says its port, then answers after the seconds named in the
# path.
REPLICA = """
import asyncio, sys
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            await asyncio.sleep(float(head.split()[1][1:]))
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass
class Rig:
    """A controller's hub in this process and activators in theirs."""

    channel: Path
    hub: ActivatorHub = field(default_factory=ActivatorHub)
    woken: list[str] = field(default_factory=list)
    route: Route = field(default_factory=lambda: Route("m", "127.0.0.1", 0))
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self) -> None:
        self.hub.on_wake = self.woken.append
        await self.hub.start(self.channel)

    async def spawn(self, *args: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", *args, stdout=asyncio.subprocess.PIPE
        )
        self.processes.append(process)
        return process

    async def activator(self, process: str = "0/1", *more: str) -> asyncio.subprocess.Process:
        return await self.spawn(
            ACTIVATOR, "--channel", str(self.channel), "--process", process, *more
        )

    async def replica(self, port: int = 0) -> tuple[asyncio.subprocess.Process, int]:
        process = await self.spawn(REPLICA, str(port))
        assert process.stdout is not None
        return process, int(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))

    def publish(self, *endpoints: Endpoint, **changes: Any) -> None:
        self.route = replace(self.route, endpoints=endpoints, **changes)
        self.hub.publish({"m": self.route})

    async def listening(self, processes: int = 1) -> int:
        """Wait until so many activators listen; the port."""
        await until(
            lambda: sum(bool(each.port) for each in self.hub.ports("m")) == processes,
            "listening",
        )
        await until(lambda: self.hub.held_by("m"), "holding the path")
        return self.hub.ports("m")[0].port

    def demand(self) -> Demand:
        demand = self.hub.demand("m")
        assert isinstance(demand, Demand), demand
        return demand

    async def holds(self, count: int) -> None:
        def so_many() -> bool:
            demand = self.hub.demand("m")
            return isinstance(demand, Demand) and demand.held == count

        await until(so_many, f"holding {count}")

    async def close(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
        await self.hub.stop()


@pytest.fixture
async def rig(channel: Path) -> AsyncIterator[Rig]:
    rig = Rig(channel)
    await rig.start()
    yield rig
    await rig.close()


async def a_free_port() -> int:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def test_a_request_at_zero_wakes_the_controller_and_is_answered(
    rig: Rig, peers: Peers
) -> None:
    await rig.activator()
    rig.publish()
    client = await peers.connect(await rig.listening(), post(b"body"))
    await until(lambda: rig.woken == ["m"], "the wake")
    assert rig.demand().held == 1
    replica = await peers.replica()
    rig.publish(replica.endpoint(2))
    assert (await client.message()).body == b"body"
    await until(lambda: rig.demand().answered_total == 1)
    demand = rig.demand()
    assert (demand.requests_total, demand.held, demand.in_flight) == (1, 0, 0)
    assert 0 < demand.held_seconds_total <= demand.request_seconds_total


async def test_the_data_path_outlives_the_controller_and_finds_the_next_one(
    rig: Rig, peers: Peers, channel: Path
) -> None:
    await rig.activator()
    replica = await peers.replica()
    rig.publish(replica.endpoint())
    port = await rig.listening()
    client = await peers.connect(port, get())
    await client.message()
    await rig.hub.stop()
    for _ in range(20):  # the controller is gone
        client.send(get())
        assert (await client.message()).status == 200
    assert (await (await peers.connect(port, get())).message()).status == 200
    rig.hub = ActivatorHub()
    await rig.hub.start(channel)
    other = await peers.replica(id="r2")
    rig.publish(other.endpoint())
    await until(lambda: isinstance(rig.hub.demand("m"), Demand), "the next report")
    await until(lambda: rig.hub.held_by("m"))
    client.send(get())
    await client.message()
    assert len(other.requests) == 1
    assert rig.demand().requests_total >= 22


async def test_without_a_controller_held_requests_still_end_in_time(rig: Rig, peers: Peers) -> None:
    await rig.activator()
    rig.publish(hold_timeout_s=1.0, state="waking", why="loading")
    client = await peers.connect(await rig.listening(), get())
    await rig.holds(1)
    await rig.hub.stop()
    answer = await client.message()
    assert (answer.status, b"waking (loading)" in answer.body) == (504, True)


async def test_a_replica_killed_with_requests_in_flight_costs_those_alone_one_502_each(
    rig: Rig, peers: Peers
) -> None:
    await rig.activator()
    first, replica_port = await rig.replica()
    rig.publish(Endpoint("r1", "127.0.0.1", replica_port, slots=4))
    port = await rig.listening()
    in_flight = [await peers.connect(port, post(b"", "/60")) for _ in range(4)]
    await until(lambda: rig.demand().in_flight == 4)
    waiting = [await peers.connect(port, post(b"", "/0")) for _ in range(8)]
    await rig.holds(8)
    first.kill()
    await first.wait()
    for client in in_flight:
        assert (await client.message()).status == 502
    # Those that waited are kept, not failed, until the replica is back.
    await rig.replica(replica_port)
    for client in waiting:
        assert (await client.message()).status == 200
    await until(lambda: rig.demand().broken_total == 4 and rig.demand().answered_total == 8)


@pytest.mark.slow
async def test_five_thousand_at_once_at_zero_are_bounded_and_none_is_forgotten(
    rig: Rig, peers: Peers
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"needs 12,000 descriptors, the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    activator = await rig.activator()
    rig.publish(hold_limit=1000)
    port = await rig.listening()
    before = psutil.Process(activator.pid).memory_info().rss
    body = b'{"instances": [[1.0, 2.0, 3.0, 4.0]]}'
    clients = await asyncio.gather(*(peers.connect(port, post(body)) for _ in range(5000)))
    await until(lambda: rig.demand().overflow_total == 4000, "turning 4,000 away")
    assert rig.demand().held == 1000
    grown = psutil.Process(activator.pid).memory_info().rss - before
    assert grown < 200 * 1024 * 1024
    replica = await peers.replica()
    rig.publish(replica.endpoint(64))
    answers = await asyncio.gather(*(client.message() for client in clients))
    refused = [answer for answer in answers if answer.status == 503]
    assert sum(answer.status == 200 for answer in answers) == 1000
    assert len(refused) == 4000
    assert all(answer.get("retry-after") for answer in refused)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_processes_share_a_port_and_a_replica_never_gets_more_than_its_slots(
    rig: Rig, peers: Peers
) -> None:
    at_once = most = 0

    async def one_at_a_time(request: Message, line: Line) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1
        line.send(ok())

    await rig.activator("0/2")
    await rig.activator("1/2")
    rig.publish(port=await a_free_port())
    port = await rig.listening(2)
    clients = [await peers.connect(port, get()) for _ in range(40)]
    await rig.holds(40)
    spread = [process.demand["m"].held for process in rig.hub._processes.values()]
    assert all(spread), f"one process got all: {spread}"
    replica = await peers.replica(one_at_a_time)
    rig.publish(replica.endpoint(1))
    for client in clients:
        assert (await client.message()).status == 200
    assert most == 1


async def test_a_process_without_a_slot_gets_on_when_the_controller_is_gone(
    rig: Rig, peers: Peers
) -> None:
    await rig.activator("0/2")
    await rig.activator("1/2")
    replica = await peers.replica()
    rig.publish(replica.endpoint(1), port=await a_free_port())
    port = await rig.listening(2)
    await rig.hub.stop()
    for _ in range(12):  # so many that both processes get some
        client = await peers.connect(port, get())
        assert (await client.message()).status == 200


async def test_a_replaced_process_takes_over_the_port_and_the_totals(
    rig: Rig, peers: Peers
) -> None:
    first = await rig.activator()
    replica = await peers.replica()
    rig.publish(replica.endpoint(), port=await a_free_port())
    port = await rig.listening()
    client = await peers.connect(port, get())
    await client.message()
    await until(lambda: rig.demand().answered_total == 1)
    first.kill()
    await first.wait()
    await rig.activator()
    await rig.listening()
    client = await peers.connect(port, get())
    await client.message()
    await until(lambda: rig.demand().answered_total == 2)


async def test_a_taken_port_is_reported_and_taken_over_once_free(rig: Rig, peers: Peers) -> None:
    squatter = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = squatter.sockets[0].getsockname()[1]
    await rig.activator()
    rig.publish(port=port)
    await until(lambda: rig.hub.ports("m"), "a word on the port")
    (listening,) = rig.hub.ports("m")
    assert (listening.port, "in use" in listening.problem) == (0, True)
    assert not rig.hub.held_by("m")
    squatter.close()
    await squatter.wait_closed()
    assert await rig.listening() == port


async def test_told_to_stop_it_answers_what_it_has_and_exits_with_0(rig: Rig, peers: Peers) -> None:
    go = asyncio.Event()

    async def slowly(request: Message, line: Line) -> None:
        await go.wait()
        line.send(ok())

    activator = await rig.activator()
    replica = await peers.replica(slowly)
    rig.publish(replica.endpoint(1))
    port = await rig.listening()
    in_flight = await peers.connect(port, get())
    held = await peers.connect(port, get())
    idle = await peers.connect(port, get("/health"))
    await rig.holds(1)
    os.kill(activator.pid, signal.SIGTERM)

    def refuses() -> bool:
        return all(not each.port for each in rig.hub.ports("m"))

    await until(refuses, "closing the port")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await peers.connect(port)
    go.set()
    for client in (in_flight, held, idle):
        answer = await client.message()
        assert (answer.status, answer.get("connection")) == (200, "close")
    assert await asyncio.wait_for(activator.wait(), PATIENCE_S) == 0


async def test_a_request_that_does_not_end_is_cut_off_after_the_grace_period(
    rig: Rig, peers: Peers
) -> None:
    async def forever(request: Message, line: Line) -> None:
        await line.rest()

    activator = await rig.activator("0/1", "--grace-s", "0.3")
    replica = await peers.replica(forever)
    rig.publish(replica.endpoint())
    client = await peers.connect(await rig.listening(), get())
    await until(lambda: rig.demand().in_flight == 1)
    os.kill(activator.pid, signal.SIGTERM)
    assert await asyncio.wait_for(activator.wait(), PATIENCE_S) == 0
    assert await client.rest() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
async def test_a_full_disk_under_the_log_does_not_end_the_process() -> None:
    """Without a controller it says so once a while; the line is lost, the process is not."""
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler.cli", "activator", "--channel", "/nowhere/at/all"),
        stderr=full,
    )
    os.close(full)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 2)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0


async def test_a_malformed_process_number_is_one_clear_line() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "autoscaler.cli", "activator", "--channel", "/x"),
        *("--process", "2/2"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 2
    assert stderr.decode().splitlines() == [
        "tidegate: --process: '2/2' is not permitted; permitted: N/K with 0 <= N < K, "
        "such as 0/2 for the first of two"
    ]
