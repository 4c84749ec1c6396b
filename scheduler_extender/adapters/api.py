# SPDX-License-Identifier: Apache-2.0
"""Requests to the API server: raw JSON, and errors that say whether anything may have happened.

Only this file speaks HTTP to it. `Refused`: it answered that it changed nothing. `Unreachable`: it
did not answer, or with a fault of its own, and may have done what was asked.
"""

import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yarl import URL

from scheduler_extender.errors import GiveUp, Gone, NotFound, Refused, Unreachable

Raw = dict[str, Any]
TOKEN_AGE_S: Final = 60.0  # the kubelet renews a pod's token; it is read again so often
SILENCE_S: Final = 180.0  # bookmarks come every minute or two
JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"  # merges lists by their keys
HEADERS: Final = {"Accept": JSON, "Accept-Encoding": "identity"}
NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class _Login:
    server: str
    namespace: str
    authorization: str
    tls: ssl.SSLContext
    read_at_s: float
    in_pod: bool


@dataclass(frozen=True, slots=True)
class _Sent:
    body: bytes
    kind: str  # Content-Type


class Api:
    """An async context manager. `kubeconfig` None: $KUBECONFIG, ~/.kube/config, else the pod's."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._login: _Login | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._login = await self._read_login()
        # `trust_env` would ask the environment, and a .netrc, in two threads for every request.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=HEADERS,
            proxy=_proxy(self._login.server),
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
        return self._login.namespace if self._login else "default"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Raw | None = None,
        kind: str = "",
        timeout_s: float = 30.0,
    ) -> Raw:
        """`kind`: of the body, else MERGE for a patch. Raises `Refused`, `Gone`, `Unreachable`."""
        times = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 5.0))
        sent = None
        if body is not None:
            sent = _Sent(orjson.dumps(body), kind or (MERGE if method == "PATCH" else JSON))
        async with self._answer(method, path, params, sent, times) as response:
            text = await response.read()
        try:
            answer = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise Unreachable(f"{method} {path}: the answer is not JSON", after_s=1.0) from error
        if not isinstance(answer, dict):
            raise Unreachable(f"{method} {path}: the answer is no object", after_s=1.0)
        return answer

    async def lines(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """A watch, a whole line at a time, until the server ends it."""
        times = aiohttp.ClientTimeout(sock_connect=5.0, sock_read=SILENCE_S)
        async with self._answer("GET", path, params, None, times) as response:
            begun = b""
            async for chunk in response.content.iter_any():
                *whole, begun = (begun + chunk).split(b"\n")
                for line in whole:
                    if line:
                        yield line

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        sent: _Sent | None,
        times: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{method} {path}"
        try:
            login = await self._current()
            async with self._send(login, method, path, params, sent, times) as response:
                if response.status < HTTPStatus.BAD_REQUEST:
                    yield response
                    return
                if response.status == HTTPStatus.UNAUTHORIZED:
                    self._login = await self._read_login()
                raise _refusal(what, response.status, await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            why = str(error) or "no answer in time"
            raise Unreachable(f"{what}: {why}; is the API server up?", after_s=1.0) from error

    def _send(
        self,
        login: _Login,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        sent: _Sent | None,
        times: aiohttp.ClientTimeout,
    ) -> Any:
        if self._session is None:
            raise GiveUp("this client was not entered; use `async with`")
        headers = {"Content-Type": sent.kind} if sent is not None else {}
        if login.authorization:
            headers["Authorization"] = login.authorization
        return self._session.request(
            method,
            URL(f"{login.server}{path}", encoded=True).with_query(dict(params or {})),
            data=None if sent is None else sent.body,
            headers=headers,
            timeout=times,
            ssl=login.tls,
            allow_redirects=False,
        )

    async def _current(self) -> _Login:
        login = self._login
        if login is None or (login.in_pod and time.monotonic() - login.read_at_s > TOKEN_AGE_S):
            login = self._login = await self._read_login()
        return login

    async def _read_login(self) -> _Login:
        """What a kubeconfig or a pod's service account means is left to `kubernetes`."""
        configuration = Configuration()
        place = str(self._kubeconfig or os.environ.get("KUBECONFIG") or _usual() or "")
        try:
            if place:
                loader = await load_kube_config(
                    config_file=place, client_configuration=configuration, persist_config=False
                )
                namespace = loader.current_context["context"].get("namespace") or "default"
            else:
                load_incluster_config(configuration)
                namespace = NAMESPACE_FILE.read_text(encoding="utf-8").strip()
            old = self._login
            tls = old.tls if old else RESTClientObject(configuration).ssl_context
        except (ConfigException, OSError, ValueError, TypeError) as error:
            raise GiveUp(
                f"cannot log in to Kubernetes with {place or 'the service account of this pod'}: "
                f"{error}; name a kubeconfig that works with --kubeconfig, or run in a pod"
            ) from error
        token = str(configuration.api_key.get("BearerToken", "")).strip()
        server = configuration.host.rstrip("/")
        return _Login(server, namespace, token, tls, time.monotonic(), in_pod=not place)


def _proxy(server: str) -> str | None:
    """What HTTPS_PROXY and NO_PROXY say for it."""
    url = URL(server)
    return None if proxy_bypass(url.authority) else getproxies().get(url.scheme)


def pods_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods"


def pod_path(namespace: str, name: str) -> str:
    return f"{pods_path(namespace)}/{quote(name, safe='')}"


def _usual() -> Path | None:
    usual = Path.home() / ".kube" / "config"
    return usual if usual.is_file() else None


def _refusal(what: str, status: int, body: bytes) -> Refused | Unreachable:
    try:
        words = orjson.loads(body).get("message", "")
    except (orjson.JSONDecodeError, AttributeError):
        words = body[:300].decode(errors="replace")
    said = f"{what}: {words or 'no words'} ({status})"
    if status == HTTPStatus.GONE:
        return Gone(said)
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(said)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unreachable(said, after_s=1.0)
    if status == HTTPStatus.FORBIDDEN:
        said += "; give our ServiceAccount this right"
    return Refused(said)
