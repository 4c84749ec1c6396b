# SPDX-License-Identifier: Apache-2.0
"""How the lab's own programs talk to the API server: dicts as in manifests, by plain REST.

It shares nothing with the product's client, so a fault there cannot hide itself here.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import load_kube_config

from autoscaler.errors import GiveUp, RetryLater

log = structlog.get_logger(__name__)

Object = dict[str, Any]
Key = tuple[str, str]  # namespace ("" for what has none) and name

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

ANSWER_WITHIN_S = 30.0
WATCH_S = 240
LINE_MAX_BYTES = 4 * 1024 * 1024


class Refused(GiveUp):
    """The API server said no; `status` is its HTTP code."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class Gone(Refused):
    """The history asked for is no longer kept: list again."""


KINDS = {404: NotFound, 409: Conflict, 410: Gone}


class Rest:
    """One API server. Get it from `connect`."""

    def __init__(self, host: str, session: aiohttp.ClientSession) -> None:
        self.host = host
        self._session = session

    async def get(self, path: str, **params: str) -> Object:
        return await self._ask("GET", path, params=params)

    async def create(self, path: str, body: Object) -> Object:
        return await self._ask("POST", path, body=body)

    async def replace(self, path: str, body: Object) -> Object:
        return await self._ask("PUT", path, body=body)

    async def delete(self, path: str, options: Object | None = None) -> Object:
        return await self._ask("DELETE", path, body=options)

    async def patch(self, path: str, body: Object, *, kind: str = MERGE, **params: str) -> Object:
        return await self._ask("PATCH", path, body=body, kind=kind, params=params)

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply: the object is then as `body` says, whether it existed or not."""
        return await self.patch(path, body, kind=APPLY, fieldManager="tidegate-lab", force="true")

    async def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Object]]:
        """Events after `resourceVersion`, until the server ends the watch. Raises `Gone`."""
        asked = {"watch": "1", "allowWatchBookmarks": "1", "timeoutSeconds": str(WATCH_S), **params}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=WATCH_S + 30.0)
        async with (
            _told(f"watch {path}"),
            self._session.get(self.host + path, params=asked, timeout=limits) as answer,
        ):
            await _check(answer, f"watch {path}")
            while line := await answer.content.readuntil(b"\n"):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _refusal(event["object"].get("code", 500), event["object"], path)
                yield event["type"], event["object"]

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        kind: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Object:
        async with (
            _told(f"{method} {path}"),
            self._session.request(
                method,
                self.host + path,
                params=params,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": kind},
            ) as answer,
        ):
            await _check(answer, f"{method} {path}")
            found: Object = await answer.json(content_type=None)
            return found


@asynccontextmanager
async def _told(what: str) -> AsyncIterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError) as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        raise RetryLater(f"{what}: {why}; is the API server up?", after_s=0.5) from error


async def _check(answer: aiohttp.ClientResponse, what: str) -> None:
    if answer.status < 400:
        return
    said = await answer.read()
    try:
        status = json.loads(said)
    except ValueError:
        status = {"message": said.decode(errors="replace")[:300]}
    raise _refusal(answer.status, status, what)


def _refusal(code: int, status: Object, what: str) -> GiveUp | RetryLater:
    message = f"{what}: {code} {status.get('message', '')}"
    if code == 429 or code >= 500:
        return RetryLater(message, after_s=0.5)
    return KINDS.get(code, Refused)(message, status=code)


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Rest]:
    """A client with the address, trust and credentials that a kubeconfig gives."""
    config = Configuration()
    load: Any = load_kube_config  # untyped
    await load(config_file=str(kubeconfig), client_configuration=config)
    auth: Any = await config.auth_settings()
    headers = {one["key"]: one["value"] for one in auth.values() if one["value"]}
    trust = RESTClientObject(config).ssl_context
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust, limit=100),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S, sock_connect=5.0),
        read_bufsize=LINE_MAX_BYTES,
    ) as session:
        yield Rest(config.host, session)


class Mirror:
    """A copy of one list of objects, kept by list and watch.

    `on_change(kind, object)` hears ADDED, MODIFIED and DELETED, also what changed while the server
    was away; it must not raise.
    """

    def __init__(
        self,
        rest: Rest,
        path: str,
        *,
        on_change: Callable[[str, Object], None] = lambda _kind, _object: None,
        **params: str,
    ) -> None:
        self.objects: dict[Key, Object] = {}
        self.synced = asyncio.Event()
        self._rest = rest
        self._path = path
        self._params = params
        self._on_change = on_change
        self._version = ""

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except Gone:
                self._version = ""
            except RetryLater as later:
                log.info("watch_interrupted", path=self._path, why=str(later))
                await asyncio.sleep(later.after_s * random.uniform(0.5, 1.5))
            except NotFound:  # the CRD is not there yet
                await asyncio.sleep(0.5)

    async def _list(self) -> None:
        found = await self._rest.get(self._path, **self._params)
        here = {key_of(item): item for item in found["items"]}
        for key, old in list(self.objects.items()):
            if key not in here or _uid(here[key]) != _uid(old):
                self._on_change("DELETED", self.objects.pop(key))
        for key, item in here.items():
            known = self.objects.get(key)
            if known is None or known["metadata"] != item["metadata"]:
                self.objects[key] = item
                self._on_change("MODIFIED" if known else "ADDED", item)
        self._version = found["metadata"]["resourceVersion"]
        self.synced.set()

    async def _watch(self) -> None:
        follow = self._rest.watch(self._path, resourceVersion=self._version, **self._params)
        async for kind, item in follow:
            self._version = item["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            if kind == "DELETED":
                self.objects.pop(key_of(item), None)
            else:
                self.objects[key_of(item)] = item
            self._on_change(kind, item)


def key_of(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])
