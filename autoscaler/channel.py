# SPDX-License-Identifier: Apache-2.0
"""What the controller and an activator say to each other: one JSON object a line.

Pure: bytes in, values out; who connects to whom is the adapters' and the activator's business.

    controller -> activator   {"version": 7, "activators": 2, "routes": [Route...]}
    activator  -> controller  {"hello": {"process": 0, "of": 2, "pid": 4711, "token": "..."}}
                              {"version": 7, "demand": [Demand...], "listening": [Listening...],
                               "waking": ["name"...], "waits_s": {"name": 0.3}, "leaving": false}

Routes go level-triggered: always the whole table, each replacing the last; `version` counts them,
and a report says which one the activator follows. A report names only the services whose demand
changed since the last; all of them at least once a second. `waking` names services whose first
request has just begun to wait: that report is sent at once. `leaving`: told to stop; it serves what
still comes, and is to be sent nothing more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import orjson

from autoscaler.core.routes import Backend, Demand, Endpoint, Route

# A table of a thousand services with a hundred endpoints each takes about 10 MB.
MAX_LINE_BYTES: Final = 32 * 1024 * 1024


class ChannelError(Exception):
    """The other side said something that is not of this language; the connection is of no use."""


@dataclass(frozen=True, slots=True)
class Routes:
    """All that one activator is to serve; it replaces everything said before.

    `activators`: how many there are, itself included, to share what no slots were dealt for.
    """

    version: int
    routes: tuple[Route, ...]
    activators: int = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """Which activator process this is: number `process` (from 0) `of` so many.

    `token` is drawn once in a process's life, so that a process that comes back over a new
    connection is told from one that took its place. `pod`: the pod it runs in, and `bearer` the
    token by which the platform vouches for that; both empty on one machine.
    """

    process: int
    of: int
    pid: int
    token: str
    pod: str = ""
    bearer: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where an activator listens for a service: the real port, or 0 and why not."""

    service: str
    port: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What an activator knows. `waits_s`: service -> for how long its oldest held has waited.

    `leaving`: it has been told to stop and goes as soon as all is answered.
    """

    version: int
    demand: tuple[Demand, ...] = ()
    listening: tuple[Listening, ...] = ()
    waking: tuple[str, ...] = ()
    waits_s: Mapping[str, float] = field(default_factory=dict)
    leaving: bool = False


class Lines:
    """Cuts a stream of bytes into lines. A line longer than `limit_bytes` is an error."""

    def __init__(self, *, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take in `data`; returns the lines it completed. Raises `ChannelError`."""
        *ends, rest = data.split(b"\n")
        lines = []
        for end in ends:
            self._keep(end)
            lines.append(b"".join(self._parts))
            self._parts.clear()
            self._size_bytes = 0
        self._keep(rest)
        return lines

    def _keep(self, part: bytes) -> None:
        self._size_bytes += len(part)
        if self._size_bytes > self.limit_bytes:
            raise ChannelError(f"a line is longer than {self.limit_bytes} bytes")
        if part:
            self._parts.append(part)


def encode_routes(version: int, routes: Iterable[Route], *, activators: int = 1) -> bytes:
    return _line({"version": version, "activators": activators, "routes": list(routes)})


def encode_hello(hello: Hello) -> bytes:
    return _line({"hello": hello})


def encode_report(report: Report) -> bytes:
    return _line(report)


def decode_routes(line: bytes) -> Routes:
    """What the controller said. Raises `ChannelError`."""
    message = _object(line)
    try:
        return Routes(
            version=int(message["version"]),
            routes=tuple(_route(r) for r in message["routes"]),
            activators=max(1, int(message.get("activators", 1))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ChannelError(f"not a route table: {error!r}") from error


def decode_report(line: bytes) -> Hello | Report:
    """What an activator said. Raises `ChannelError`."""
    message = _object(line)
    try:
        if "hello" in message:
            return Hello(**message["hello"])
        return Report(
            version=int(message["version"]),
            demand=tuple(_demand(d) for d in message["demand"]),
            listening=tuple(Listening(**each) for each in message["listening"]),
            waking=tuple(str(service) for service in message["waking"]),
            waits_s={str(s): float(wait_s) for s, wait_s in message["waits_s"].items()},
            leaving=bool(message.get("leaving", False)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ChannelError(f"not a report: {error!r}") from error


def _line(message: object) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


def _object(line: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ChannelError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ChannelError(f"not a JSON object but {type(message).__name__}")
    return message


_DEMAND: Final = frozenset(each.name for each in fields(Demand))


def _demand(said: dict[str, Any]) -> Demand:
    """An activator may be older or newer: what it does not say is 0, what is not known is left."""
    return Demand(**{name: value for name, value in said.items() if name in _DEMAND})


def _route(fields: dict[str, Any]) -> Route:
    endpoints = tuple(Endpoint(**endpoint) for endpoint in fields.pop("endpoints", ()))
    hosts = tuple(str(host) for host in fields.pop("hosts", ()))
    backend = fields.pop("backend", None)
    return Route(
        **fields,
        endpoints=endpoints,
        hosts=hosts,
        backend=None if backend is None else Backend(**backend),
    )
