# SPDX-License-Identifier: Apache-2.0
"""One probe of a container, and the thresholds that make results of answers. As a kubelet does it.

Only HTTP, TCP and exec; a gRPC probe fails and says so.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from tests.lab.rest import Object

# Runs a command in the container; the exit code and what it printed.
RunInside = Callable[[list[str]], Awaitable[tuple[int, str]]]


@dataclass(frozen=True, slots=True)
class Answer:
    ok: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The container that is asked."""

    ip: str
    container: Object
    inside: RunInside


@dataclass(slots=True)
class Threshold:
    """Turns answers into a result: it changes after as many equal answers as the probe says."""

    probe: Object
    result: bool | None  # None: nothing known yet
    _last: bool | None = None
    _run: int = 0

    def count(self, ok: bool) -> bool:
        """Whether this answer made or kept a result; `result` holds it."""
        self._run = self._run + 1 if ok == self._last else 1
        self._last = ok
        needed = self.probe.get("successThreshold", 1) if ok else self.probe["failureThreshold"]
        if self._run < needed:
            return False
        self.result = ok
        return True


async def ask(probe: Object, target: Target) -> Answer:
    """Ask once, within the probe's timeout."""
    limit_s = probe.get("timeoutSeconds", 1)
    try:
        async with asyncio.timeout(limit_s):
            return await _ask(probe, target)
    except TimeoutError:
        return Answer(False, f"no answer within {limit_s} s")
    except (OSError, aiohttp.ClientError) as error:
        return Answer(False, f"{type(error).__name__}: {error}")


async def _ask(probe: Object, target: Target) -> Answer:
    if http := probe.get("httpGet"):
        return await _http(http, target)
    if tcp := probe.get("tcpSocket"):
        port = port_of(tcp["port"], target.container)
        _, writer = await asyncio.open_connection(tcp.get("host") or target.ip, port)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return Answer(True)
    if command := probe.get("exec"):
        code, said = await target.inside(command["command"])
        return Answer(code == 0, f"exit code {code}: {said}")
    return Answer(False, "only httpGet, tcpSocket and exec probes are run in the lab")


async def _http(http: Object, target: Target) -> Answer:
    host = http.get("host") or target.ip
    port = port_of(http["port"], target.container)
    url = (
        f"{http.get('scheme', 'HTTP').lower()}://{host}:{port}/{http.get('path', '/').lstrip('/')}"
    )
    headers = {h["name"]: h["value"] for h in http.get("httpHeaders", ())}
    headers = {"User-Agent": "kube-probe/lab", "Connection": "close", **headers}
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(url, headers=headers) as answer,
    ):
        return Answer(200 <= answer.status < 400, f"HTTP status {answer.status}")


def port_of(port: int | str, container: Object) -> int:
    """A port's number; named ones are the container's."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    named = {p.get("name"): p["containerPort"] for p in container.get("ports", ())}
    if port not in named:
        raise OSError(f"the container has no port named {port!r}")
    return int(named[port])
