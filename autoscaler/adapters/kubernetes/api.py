# SPDX-License-Identifier: Apache-2.0
"""How the Kubernetes API server is asked: raw verbs on paths, JSON as dicts.

Only this file speaks HTTP to the API server. Every request ends: by an answer, by an error of
`errors.py`, or by a time-out. Nothing is turned into the models of the `kubernetes` package, whose
objects are ten times larger and slower than what `orjson` gives.
"""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson
import structlog
from yarl import URL

from autoscaler.adapters.kubernetes.credentials import Credentials, Login
from autoscaler.adapters.kubernetes.errors import RETRY_S, Unreachable, refusal, retry_after_s
from autoscaler.adapters.kubernetes.resources import Place, place_of
from autoscaler.errors import GiveUp, TidegateError

log = structlog.get_logger(__name__)

Raw = dict[str, Any]
Params = Mapping[str, str | int | bool]

# The API server notes the part before the slash as the writer of a field (`managedFields`).
FIELD_MANAGER: Final = "tidegate"
# Compressed lists cost the API server more than a cluster's network gains.
HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": f"{FIELD_MANAGER}/1",
}
RENEW_AGAIN_S: Final = 10.0  # the least time between two readings of the credentials
# A peer that vanished without a word is noticed within half a minute, in the middle of a watch too.
KEEPALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
JSON: Final = "application/json"
# Answers that say: not even begun, try again.
BUSY: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Patch(StrEnum):
    """How a patch is to be understood, as its content type."""

    MERGE = "application/merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"  # JSON is YAML


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much a client asks.

    `silence_s`: a watch that says nothing for so long is cut; bookmarks come every minute or two.
    `patience_s`: the longest wait that a busy API server may ask for before the caller hears of it.
    """

    connect_s: float = 5.0
    request_s: float = 30.0
    silence_s: float = 180.0
    patience_s: float = 5.0
    tries: int = 3
    at_once: int = 32  # requests; watches are not counted
    page_items: int = 500


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. `resource_version` is the same on all pages of one list."""

    items: list[Raw]
    resource_version: str


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    verb: str
    place: Place
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = JSON

    def __str__(self) -> str:
        return f"{self.verb} {self.place.path}"


class KubeApi:
    """A client of one API server; an async context manager.

    `requests` counts what was sent, by verb and resource as RBAC names them, retries included.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        limits: Limits | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self.requests: Counter[tuple[str, str]] = Counter()
        self._credentials = credentials
        self._now_s = now_s
        self._login: Login | None = None
        self._logging_in = asyncio.Lock()
        self._renew_from_s = -inf
        self._slots = asyncio.Semaphore(self.limits.at_once)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def connect(cls, kubeconfig: Path | None = None, *, context: str | None = None) -> Self:
        """For `async with`, which reads the credentials; no request is made yet."""
        return cls(Credentials(kubeconfig, context))

    async def __aenter__(self) -> Self:
        self._login = await self._credentials.login()
        self._session = aiohttp.ClientSession(
            # Bounded by `at_once`; watches stay open for minutes and must not use that up.
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
            headers=HEADERS,
            trust_env=True,
            read_bufsize=2**20,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def namespace(self) -> str:
        """The pod's own namespace, or the kubeconfig context's."""
        return self._now().namespace

    @property
    def server(self) -> str:
        return self._now().server

    async def get(self, path: str, params: Params | None = None) -> Raw:
        """One object, or a list in one piece, or what is no resource, as `/version`."""
        place = place_of(path)
        verb = "get" if place.name or not place.resource else "list"
        return await self._ask(_Call("GET", verb, place, _text(params)))

    async def create(self, path: str, body: Mapping[str, Any], params: Params | None = None) -> Raw:
        return await self._ask(
            _Call("POST", "create", place_of(path), _text(params), orjson.dumps(body))
        )

    async def replace(
        self, path: str, body: Mapping[str, Any], params: Params | None = None
    ) -> Raw:
        """Put an object in place of what is there; its `resourceVersion`, if any, must match."""
        return await self._ask(
            _Call("PUT", "update", place_of(path), _text(params), orjson.dumps(body))
        )

    async def patch(
        self,
        path: str,
        body: Mapping[str, Any] | list[Any],
        *,
        kind: Patch = Patch.MERGE,
        params: Params | None = None,
    ) -> Raw:
        """Change a part. `Patch.APPLY` is applied as `tidegate` unless `params` says otherwise."""
        apply = {"fieldManager": FIELD_MANAGER} if kind is Patch.APPLY else {}
        all_params = {**apply, **_text(params)}
        return await self._ask(
            _Call("PATCH", "patch", place_of(path), all_params, orjson.dumps(body), kind)
        )

    async def delete(
        self, path: str, *, params: Params | None = None, body: Mapping[str, Any] | None = None
    ) -> Raw:
        data = None if body is None else orjson.dumps(body)
        return await self._ask(_Call("DELETE", "delete", place_of(path), _text(params), data))

    async def pages(self, path: str, params: Params | None = None) -> AsyncGenerator[Page, None]:
        """A list, a page at a time; `Gone` if it took so long that its rest is no longer kept."""
        place, asked = place_of(path), {"limit": str(self.limits.page_items), **_text(params)}
        while True:
            page = await self._ask(_Call("GET", "list", place, asked))
            meta = page.get("metadata") or {}
            yield Page(page.get("items") or [], meta.get("resourceVersion", ""))
            if not meta.get("continue"):
                return
            asked = {**asked, "continue": meta["continue"]}

    async def watch(self, path: str, params: Params | None = None) -> AsyncGenerator[bytes, None]:
        """Raw lines, one event each, until the server ends it; `Unreachable` if it breaks off.

        An empty line comes first, once the server took the watch up. A part of a line before a
        break is never handed over.
        """
        call = _Call("GET", "watch", place_of(path), {**_text(params), "watch": "true"})
        limits = self.limits
        times = aiohttp.ClientTimeout(sock_connect=limits.connect_s, sock_read=limits.silence_s)
        async with self._answer(call, times) as response:
            yield b""
            async for line in _lines(response.content):
                yield line

    async def _ask(self, call: _Call) -> Raw:
        limits = self.limits
        times = aiohttp.ClientTimeout(total=limits.request_s, sock_connect=limits.connect_s)
        async with self._slots, self._answer(call, times) as response:
            body = await response.read()
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Unreachable(
                f"cannot {call}: the answer is not JSON ({error}); look at what stands between us "
                f"and {self.server}",
                after_s=RETRY_S,
            ) from error
        if not isinstance(answer, dict):
            raise GiveUp(f"cannot {call}: the answer is no object; is {self.server} an API server?")
        return answer

    @asynccontextmanager
    async def _answer(
        self, call: _Call, times: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer. New credentials and a busy server's wait are dealt with here."""
        renewed = False
        with self._reaching(call):
            for left in range(self.limits.tries - 1, -1, -1):
                login = await self._current_login()
                response = await self._send(call, login, times)
                if response.status < HTTPStatus.BAD_REQUEST:
                    async with response:
                        yield response
                    return
                trouble, wait_s = await self._trouble(call, response)
                if response.status == HTTPStatus.UNAUTHORIZED and not renewed:
                    await self._renew(login)
                    renewed, wait_s = True, 0.0
                if wait_s is None or wait_s > self.limits.patience_s or not left:
                    raise trouble
                await asyncio.sleep(wait_s)

    async def _send(
        self, call: _Call, login: Login, times: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise GiveUp(f"cannot {call}: this client was not entered; use `async with`")
        self.requests[call.verb, call.place.what] += 1
        headers = {"Authorization": login.authorization} if login.authorization else {}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        return await self._session.request(
            call.method,
            URL(f"{login.server}{call.place.path}", encoded=True).with_query(call.params),
            data=call.body,
            headers=headers,
            timeout=times,
            ssl=login.tls,
            proxy=login.proxy,
            server_hostname=login.server_hostname,
            allow_redirects=False,
        )

    async def _trouble(
        self, call: _Call, response: aiohttp.ClientResponse
    ) -> tuple[TidegateError, float | None]:
        """The error for a refusal, and how long to wait before another try; None: do not try."""
        async with response:
            body = await response.read()
        after_s = retry_after_s(response.headers.get("Retry-After"))
        error = refusal(
            call.place, verb=call.verb, status=response.status, body=body, after_s=after_s
        )
        return error, after_s if response.status in BUSY else None

    async def _current_login(self) -> Login:
        login = self._now()
        if self._now_s() < login.renew_at_s:
            return login
        try:
            await self._renew(login)
        except GiveUp as trouble:  # what we have may well be good for longer
            log.warning("credentials not renewed; going on with those at hand", why=str(trouble))
            self._login = replace(login, renew_at_s=self._now_s() + RENEW_AGAIN_S)
        return self._now()

    async def _renew(self, refused: Login) -> None:
        """Read the credentials again, once for all requests that found them stale.

        Where they stay wrong, an exec plugin must not be run for each request.
        """
        async with self._logging_in:
            if self._login is refused and self._now_s() >= self._renew_from_s:
                self._renew_from_s = self._now_s() + RENEW_AGAIN_S
                self._login = await self._credentials.login(refused)

    def _now(self) -> Login:
        if self._login is None:
            raise GiveUp("not logged in to Kubernetes: this client was not entered")
        return self._login

    @contextmanager
    def _reaching(self, call: _Call) -> Iterator[None]:
        """What goes wrong on the way becomes `Unreachable`."""
        try:
            yield
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unreachable(
                f"cannot {call}: {_reason(error)}; check that {self.server} can be reached",
                after_s=RETRY_S,
            ) from error


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for what `getaddrinfo` found, which notices when its peer is gone."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        option = getattr(socket, name, None)  # not every system has every one
        if option is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long; aiohttp's own reading by line gives up at its buffer's size."""
    begun: list[bytes] = []
    async for chunk in content.iter_any():
        *whole, rest = chunk.split(b"\n")
        if whole and begun:
            whole[0] = b"".join((*begun, whole[0]))
            begun = []
        for line in whole:
            if line:
                yield line
        if rest:
            begun.append(rest)
    if begun:
        raise aiohttp.ClientPayloadError("the watch ended within a line")


def _reason(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))


def _text(params: Params | None) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in (params or {}).items()
    }
