# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Kubernetes API server that can be told to misbehave.

It keeps objects, lists them in pages, and plays its history to watches from any version, as the
real one does; the contract tests hold both to the same.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from autoscaler.adapters.kubernetes.resources import Place, place_of

Raw = dict[str, Any]
FIRST_VERSION = 100


@dataclass(slots=True)
class Fault:
    """An answer that replaces the server's own, `times` times, where `on` says so."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    verb: str = ""  # any

    def meets(self, verb: str) -> bool:
        return self.times > 0 and self.verb in {"", verb}


@dataclass(frozen=True, slots=True)
class Change:
    version: int
    kind: str
    place: Place
    line: bytes


class FakeApiServer:
    """Speaks on `url` between `up` and `down`; state outlives a `down`."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str, str], Raw] = {}  # group, plural, namespace, name
        self.changes: list[Change] = []
        self.version = FIRST_VERSION
        self.oldest = 0  # versions below are compacted away
        self.gone_as_event = True
        self.token = ""  # the one that is taken; empty: any
        self.absent: set[str] = set()  # plurals that are not installed
        self.forbidden: set[str] = set()  # plurals that nobody may ask for
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # verb, path, query
        self.url = ""
        self.port = 0
        self.held = asyncio.Event()  # cleared: answers wait
        self.held.set()
        self._changed = asyncio.Condition()
        self._watches: set[web.StreamResponse] = set()
        self._transports: set[asyncio.Transport] = set()
        self._runner: web.AppRunner | None = None

    async def up(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{rest:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"http://127.0.0.1:{self.port}"

    async def down(self) -> None:
        """Go away, breaking off every watch."""
        self.held.set()
        if self._runner is None:
            return
        for site in tuple(self._runner.sites):
            await site.stop()
        async with asyncio.timeout(5):
            while self._watches:
                self.cut_watches()
                await asyncio.sleep(0)
        await self._runner.cleanup()
        self._runner = None

    def kubeconfig(self, folder: Path, *, token: str = "any", namespace: str = "here") -> Path:  # noqa: S107
        """Written as JSON, which is YAML."""
        file = folder / "kubeconfig"
        context = {"cluster": "fake", "user": "me", "namespace": namespace}
        file.write_bytes(
            orjson.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": "me", "user": {"token": token}}],
                    "contexts": [{"name": "fake", "context": context}],
                    "current-context": "fake",
                }
            )
        )
        return file

    # What tests do to it

    def fail(
        self, status: int, *, body: bytes = b"", times: int = 1, verb: str = "", **headers: str
    ) -> None:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.faults.append(Fault(status, body or _status(status), named, times, verb))

    def cut_watches(self) -> None:
        """Break all connections that carry a watch, in the middle of whatever they say."""
        for transport in self._transports:
            transport.abort()

    async def say(self, raw: bytes) -> None:
        """Write bytes to every watch, as they are."""
        for watch in self._watches:
            await watch.write(raw)

    async def until_watched(self, count: int = 1) -> None:
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: len(self._watches) >= count)

    @property
    def watched(self) -> int:
        return len(self._watches)

    def compact(self) -> None:
        """Forget all history: who resumes from before now gets 410 Gone."""
        self.version += 1
        self.oldest = self.version

    async def put(self, path: str, raw: Raw) -> Raw:
        """Write an object as somebody else would, without being asked."""
        place = place_of(path)
        key = (place.group, place.plural, place.namespace, place.name)
        kind = "MODIFIED" if key in self.objects else "ADDED"
        return await self._store(place, raw, kind=kind)

    async def remove(self, path: str) -> None:
        place = place_of(path)
        raw = self.objects.pop((place.group, place.plural, place.namespace, place.name))
        await self._record(place, raw, kind="DELETED")

    async def bookmark(self, path: str) -> None:
        """Tell the watches of a path how far it is, without a change to any object of it."""
        place = place_of(path)
        await self._record(place, {"metadata": {}}, kind="BOOKMARK")

    def asked_for(self, verb: str) -> list[dict[str, str]]:
        """The queries of all requests with a verb."""
        return [query for was, _, query in self.asked if was == verb]

    # What it does

    async def _store(self, place: Place, raw: Raw, *, kind: str) -> Raw:
        meta = {**raw.get("metadata", {}), "name": place.name}
        if place.namespace:
            meta["namespace"] = place.namespace
        meta.setdefault("uid", f"uid-{self.version + 1}")
        return await self._record(place, {**raw, "metadata": meta}, kind=kind)

    async def _record(self, place: Place, raw: Raw, *, kind: str) -> Raw:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        if kind in {"ADDED", "MODIFIED"}:
            self.objects[place.group, place.plural, place.namespace, place.name] = raw
        line = orjson.dumps({"type": kind, "object": raw}) + b"\n"
        async with self._changed:
            self.changes.append(Change(self.version, kind, place, line))
            self._changed.notify_all()
        return raw

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        place, query = place_of(request.path), dict(request.query)
        verb = _verb(request, place)
        self.asked.append((verb, request.path, query))
        await self.held.wait()
        for fault in self.faults:
            if fault.meets(verb):
                fault.times -= 1
                return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _refuse(401)
        if place.plural in self.absent:
            return web.Response(status=404, text="404 page not found")
        if place.plural in self.forbidden:
            return _refuse(403)
        if verb == "watch":
            return await self._watch(request, place, query)
        body = orjson.loads(await request.read() or b"null")
        return await getattr(self, f"_{verb}")(place, query, body)  # type: ignore[no-any-return]

    async def _list(self, place: Place, query: dict[str, str], _body: Raw) -> web.Response:
        found = [raw for key, raw in sorted(self.objects.items()) if _within(key, place)]
        found = [raw for raw in found if _selected(raw, query)]
        begin, _, version = query.get("continue", f"0@{self.version}").partition("@")
        if int(version) < self.oldest:
            return _refuse(410)
        end = int(begin) + int(query.get("limit", 0) or len(found) + 1)
        meta = {"resourceVersion": version}
        if end < len(found):
            meta["continue"] = f"{end}@{version}"
        return _json({"metadata": meta, "items": found[int(begin) : end]})

    async def _get(self, place: Place, _query: dict[str, str], _body: Raw) -> web.Response:
        raw = self.objects.get((place.group, place.plural, place.namespace, place.name))
        return _refuse(404) if raw is None else _json(raw)

    async def _create(self, place: Place, _query: dict[str, str], body: Raw) -> web.Response:
        at = Place(place.path, place.group, place.plural, place.namespace, body["metadata"]["name"])
        if (at.group, at.plural, at.namespace, at.name) in self.objects:
            return _refuse(409)
        return _json(await self._store(at, body, kind="ADDED"), status=201)

    async def _update(self, place: Place, _query: dict[str, str], body: Raw) -> web.Response:
        raw = self.objects.get((place.group, place.plural, place.namespace, place.name))
        if raw is None:
            return _refuse(404)
        expected = body["metadata"].get("resourceVersion")
        if expected and expected != raw["metadata"]["resourceVersion"]:
            return _refuse(409)
        return _json(await self._store(place, body, kind="MODIFIED"))

    async def _patch(self, place: Place, _query: dict[str, str], body: Raw) -> web.Response:
        raw = self.objects.get((place.group, place.plural, place.namespace, place.name))
        if raw is None:
            return _refuse(404)
        return _json(await self._store(place, _merged(raw, body), kind="MODIFIED"))

    async def _delete(self, place: Place, _query: dict[str, str], _body: Raw) -> web.Response:
        if (place.group, place.plural, place.namespace, place.name) not in self.objects:
            return _refuse(404)
        await self.remove(place.path)
        return _json({"kind": "Status", "status": "Success"})

    async def _watch(
        self, request: web.Request, place: Place, query: dict[str, str]
    ) -> web.StreamResponse:
        since = int(query["resourceVersion"])
        if since < self.oldest and not self.gone_as_event:
            return _refuse(410)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since < self.oldest:
            await response.write(
                orjson.dumps({"type": "ERROR", "object": orjson.loads(_status(410))}) + b"\n"
            )
            return response
        transport = request.transport
        async with self._changed:
            self._watches.add(response)
            if isinstance(transport, asyncio.Transport):
                self._transports.add(transport)
            self._changed.notify_all()
        try:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(float(query["timeoutSeconds"])):
                    await self._follow(
                        response, lambda change: _concerns(change, place, query), since
                    )
        finally:
            self._watches.discard(response)
            self._transports -= {transport}
        return response

    async def _follow(
        self, response: web.StreamResponse, concerns: Callable[[Change], bool], since: int
    ) -> None:
        done = 0
        while True:
            for change in self.changes[done:]:
                done += 1
                if change.version > since and concerns(change):
                    await response.write(change.line)
            async with self._changed:
                while len(self.changes) == done:
                    await self._changed.wait()


def _verb(request: web.Request, place: Place) -> str:
    if request.method == "GET":
        if request.query.get("watch") == "true":
            return "watch"
        return "get" if place.name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]


def _within(key: tuple[str, str, str, str], place: Place) -> bool:
    group, plural, namespace, _ = key
    return (group, plural) == (place.group, place.plural) and place.namespace in {"", namespace}


def _concerns(change: Change, place: Place, query: dict[str, str]) -> bool:
    at = change.place
    if not _within((at.group, at.plural, at.namespace, at.name), place):
        return False
    return change.kind == "BOOKMARK" or _selected(orjson.loads(change.line)["object"], query)


def _selected(raw: Raw, query: dict[str, str]) -> bool:
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    labels = raw["metadata"].get("labels", {})
    terms = [term for term in query.get("labelSelector", "").split(",") if term]
    return name in {"", raw["metadata"]["name"]} and all(_meets(labels, term) for term in terms)


def _meets(labels: Raw, term: str) -> bool:
    """`NAME`, `NAME=VALUE` or `NAME!=VALUE`; who lacks the label meets the last."""
    name, sign, value = term.partition("=")
    if name.endswith("!"):
        return bool(labels.get(name.removesuffix("!")) != value)
    return name in labels and (not sign or bool(labels[name] == value))


def _merged(old: Any, patch: Any) -> Any:
    """As RFC 7386 says."""
    if not isinstance(patch, dict):
        return patch
    old = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        else:
            old[key] = _merged(old.get(key), value)
    return old


def _json(raw: Raw, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(raw), content_type="application/json")


def _refuse(status: int) -> web.Response:
    return web.Response(status=status, body=_status(status), content_type="application/json")


def _status(code: int) -> bytes:
    return orjson.dumps(
        {"kind": "Status", "status": "Failure", "code": code, "message": f"the fake says {code}"}
    )
