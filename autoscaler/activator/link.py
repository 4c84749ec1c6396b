# SPDX-License-Identifier: Apache-2.0
"""The activator's end of the channel: finds the controller, hands on its routes, reports to it.

Never gives up: while no controller can be reached the activator serves with its last routes, and
is told how long it has been alone. When another controller takes over, the one before is left at
once, whatever it still says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

import structlog

from autoscaler.channel import (
    ChannelError,
    Hello,
    Lines,
    Report,
    Routes,
    decode_routes,
    encode_hello,
    encode_report,
)
from autoscaler.tcp import notice_loss

PUSH_S: Final = 0.1  # demand that changed is told this often
RECONNECT_S: Final = 0.05  # the first try after a loss, doubled with each failure ...
RECONNECT_MAX_S: Final = 1.0  # ... up to this
CONNECT_TIMEOUT_S: Final = 1.5
ALONE_S: Final = 3.0  # without a controller for so long, see `Desk._seat`

log = structlog.get_logger("activator")

Address = Path | tuple[str, int]


class Controller(Protocol):
    """Where the controller is at present."""

    @property
    def address(self) -> Address | None:
        """Its Unix socket, or its host and port; None: nobody is known to lead."""

    async def moves(self, address: Address | None) -> None:
        """Return once a controller is known to be somewhere, and not at `address`."""


@dataclass(frozen=True, slots=True)
class FixedController:
    """A controller that is where it is."""

    address: Address

    async def moves(self, address: Address | None) -> None:
        await asyncio.Event().wait()


class Voice(Protocol):
    """What the channel carries, and what depends on it. `push` is set when a report is urgent."""

    push: asyncio.Event

    def hello(self) -> Hello:
        """Who speaks. Raises `OSError` if that cannot be said now."""

    def begin(self) -> None:
        """A conversation begins: nothing has been said or heard in it."""

    async def follow(self, table: Routes) -> None:
        """The controller has spoken."""

    def report(self) -> Report | None:
        """What has to be told now."""

    def set_alone(self, alone: bool) -> None:
        """No controller has been reached for `ALONE_S`; or one has spoken again."""


class Link:
    """Keeps the channel open for as long as `run` runs. `up`: a conversation is going on."""

    def __init__(self, controller: Controller, voice: Voice) -> None:
        self._controller = controller
        self._voice = voice
        self.up = False
        self._followed = False  # the controller of the last conversation has said something
        self._failures_told = False

    async def run(self) -> None:
        """Reach the controller, converse, and again; never returns."""
        wait_s, lost_at_s = RECONNECT_S, monotonic()
        while True:
            address = self._controller.address
            why = await self._try(address)
            if self._followed:
                log.warning("channel closed; serving with the last routes", why=why)
                wait_s, lost_at_s = RECONNECT_S, monotonic()
                self._followed = self._failures_told = False
            elif not self._failures_told:
                self._failures_told = True
                log.warning(
                    "controller out of reach; serving with the last routes",
                    channel=_name(address),
                    why=why,
                )
            if monotonic() - lost_at_s >= ALONE_S:
                self._voice.set_alone(True)
            await self._pause(wait_s, address)
            wait_s = min(RECONNECT_MAX_S, wait_s * 2)

    async def _try(self, address: Address | None) -> str:
        """Converse with whoever is at the address; why that ended, or did not come about."""
        try:
            hello = self._voice.hello()
            reader, writer = await _connect(address)
        except (OSError, TimeoutError) as error:
            return str(error) or "no answer to a connection attempt"
        log.info("channel open", channel=_name(address))
        return await self._converse(reader, writer, hello=hello, address=address)

    async def _pause(self, wait_s: float, address: Address | None) -> None:
        """Wait before the next try, but no longer than until there is somewhere else to try."""
        try:
            async with asyncio.timeout(wait_s):
                await self._controller.moves(address)
        except TimeoutError:
            return

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        hello: Hello,
        address: Address | None,
    ) -> str:
        """Listen and report until the connection ends or the controller moves; why it ended."""
        self._voice.begin()
        self._voice.push.set()
        writer.write(encode_hello(hello))
        self.up = True
        ways = [
            asyncio.create_task(self._report(writer)),
            asyncio.create_task(self._obey(reader)),
            asyncio.create_task(self._moved(address)),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            self.up = False
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()

    async def _moved(self, address: Address | None) -> str:
        await self._controller.moves(address)
        return "another controller leads"

    async def _obey(self, reader: asyncio.StreamReader) -> str:
        lines = Lines()
        try:
            while data := await reader.read(1 << 16):
                received = lines.feed(data)
                if received:  # each replaces the one before
                    await self._voice.follow(decode_routes(received[-1]))
                    self._followed = True
        except ChannelError as error:
            log.error("the controller said something unintelligible", why=str(error))
            return str(error)
        except OSError as error:
            return str(error)
        return "the controller closed it"

    async def _report(self, writer: asyncio.StreamWriter) -> str:
        voice = self._voice
        try:
            while True:
                report = voice.report()
                if report is not None:
                    writer.write(encode_report(report))
                    await writer.drain()
                try:
                    async with asyncio.timeout(PUSH_S):
                        await voice.push.wait()
                except TimeoutError:
                    continue
        except OSError as error:
            return str(error)


async def _connect(address: Address | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address is None:
        raise ConnectionRefusedError("no controller is known to lead")
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if isinstance(address, Path):
            return await asyncio.open_unix_connection(address)
        reader, writer = await asyncio.open_connection(*address)
    notice_loss(writer.get_extra_info("socket"))
    return reader, writer


def _name(address: Address | None) -> str:
    if address is None:
        return "unknown"
    return str(address) if isinstance(address, Path) else "{}:{}".format(*address)
