# SPDX-License-Identifier: Apache-2.0
"""Asking a replica itself whether it can serve, sooner than its platform says so.

Platforms probe once in several seconds and tell it round in one more; a request that waits for a
start should wait for the start alone.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from autoscaler.core.found import Found

TIMEOUT_S: Final = 0.3
FAILURES: Final = 3  # so many in a row, and one that had passed is no longer used
_HTTP: Final = re.compile(r"http:(\d{1,5}):(/[\x21-\x7e]*)")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] [23]\d\d\b")


@dataclass(frozen=True, slots=True)
class Probe:
    """How to ask. An empty `path`: whoever takes a connection can serve."""

    port: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What has come of asking one replica again and again."""

    passes: bool = False
    failures: int = 0

    def after(self, passed: bool) -> "Standing":
        """One answer is enough to be used; to lose that takes `FAILURES` in a row."""
        if passed:
            return Standing(passes=True)
        failures = self.failures + 1
        return Standing(self.passes and failures < FAILURES, failures)


def probe_of(words: str, found: Found) -> Probe | None:
    """The probe that a `Backend` names, for one endpoint of it; None: it cannot be asked.

    A newer controller may name one that is not known here: then only the platform can tell.
    """
    if words == "tcp":
        return Probe(found.port)
    match = _HTTP.fullmatch(words)
    if match is None or not 0 < int(match[1]) < 65536:
        return None
    return Probe(int(match[1]), match[2])


async def passes(probe: Probe, host: str) -> bool:
    """Whether the replica at this address says, within `TIMEOUT_S`, that it can serve.

    Over HTTP every status from 200 to 399 says so, as for the platform's own probes.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, probe.port)
            try:
                return not probe.path or await _answers(reader, writer, probe, host)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _answers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probe: Probe, host: str
) -> bool:
    authority = f"[{host}]:{probe.port}" if ":" in host else f"{host}:{probe.port}"
    writer.write(
        f"GET {probe.path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: tidegate\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
    )
    start = b""
    while len(start) < 13 and (data := await reader.read(1024)):
        start += data
    return _STATUS.match(start) is not None
