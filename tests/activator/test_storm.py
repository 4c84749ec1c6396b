# SPDX-License-Identifier: Apache-2.0
"""Everything at once, by seeded chance: clients leave, replicas die, endpoints change.

Each request carries its own number and a replica answers with it: an answer that is lost, doubled
or given to another is seen. In the end nothing is held, nothing in flight, and the counters add
up.
"""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.activator.peers import Front, Line, Message, Peers, Replica, ok, post, until


class Storm:
    """One run: a few replicas of ill will, many clients of all kinds."""

    def __init__(self, front: Front, peers: Peers, seed: int) -> None:
        self.front = front
        self.peers = peers
        self.chance = random.Random(seed)
        self.replicas: list[Replica] = []
        self.done_by_replicas: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.failures: list[Any] = []
        self.over = asyncio.Event()

    async def answer(self, request: Message, line: Line) -> bool:
        number = request.get("x-number") or ""
        self.done_by_replicas[number] += 1
        await asyncio.sleep(self.chance.random() * 0.01)
        kind = self.chance.random()
        body = number.encode() + b":" + request.body
        if kind < 0.03:
            return False  # dies before it answers
        if kind < 0.06:
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + body)
            return False  # dies in the middle of its answer
        if kind < 0.2:
            line.send(ok(body, headers="Connection: close\r\n"))
            return False
        if kind < 0.5:
            line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 1000):
                part = body[at : at + 1000]
                line.send(b"%x\r\n%b\r\n" % (len(part), part))
                if self.chance.random() < 0.2:
                    await asyncio.sleep(0)
            line.send(b"0\r\n\r\n")
            return True
        line.send(ok(body))
        return self.chance.random() > 0.1  # some close their idle connection without a word

    async def change_endpoints(self) -> None:
        """Endpoints come, drain, vanish, refuse connections; in the end all are there again."""
        while not self.over.is_set():
            listed = []
            for replica in self.replicas:
                if self.chance.random() < 0.7:
                    slots = self.chance.choice([1, 3, None])
                    listed.append(replica.endpoint(slots, draining=self.chance.random() < 0.1))
            if self.chance.random() < 0.3:
                victim = self.chance.choice(self.replicas)
                await victim.stop()
                await asyncio.sleep(0.01)
                await victim.start()
            self.front.follow(*listed)
            await asyncio.sleep(self.chance.random() * 0.05)
        self.front.follow(*(replica.endpoint(4) for replica in self.replicas))

    async def client(self, number: int) -> None:
        line = await self.peers.client(self.front)
        for turn in range(6):
            name = f"{number}.{turn}"
            body = b"z" * self.chance.choice([0, 10, 3000, 150_000])
            line.send(post(body, headers=f"X-Number: {name}\r\n"))
            if self.chance.random() < 0.05:
                await asyncio.sleep(self.chance.random() * 0.02)
                line.close() if self.chance.random() < 0.5 else line.reset()
                self.statuses["left"] += 1
                return
            try:
                answer = await line.message()
            except (asyncio.IncompleteReadError, ConnectionError):
                self.statuses["cut"] += 1
                return
            self.statuses[str(answer.status)] += 1
            if answer.status == 200:
                assert answer.body == name.encode() + b":" + body, name
            else:
                assert answer.status in (502, 503), answer
            if answer.get("connection") == "close":
                return

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.replicas = [await self.peers.replica(self.answer, id=f"r{i}") for i in range(3)]
        self.front.follow(hold_limit=60, hold_timeout_s=60.0)
        changing = asyncio.create_task(self.change_endpoints())
        clients = [asyncio.create_task(self.client(number)) for number in range(80)]
        await asyncio.sleep(0.5)
        self.over.set()
        await changing
        await asyncio.gather(*clients)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_every_request_ends_once(
    front: Front, peers: Peers, seed: int
) -> None:
    storm = Storm(front, peers, seed)
    await storm.run()
    holding = front.desk.holding
    await until(lambda: not holding.held and not holding.in_flight, "all ended")
    assert storm.failures == []
    ended = (
        holding.answered + holding.broken + holding.refused + holding.expired + holding.cancelled
    )
    assert holding.arrived == ended
    assert holding.expired == 0
    assert storm.statuses["200"] > 50, storm.statuses
    twice = {name for name, count in storm.done_by_replicas.items() if count > 1}
    assert not twice, f"worked on twice: {twice}"
