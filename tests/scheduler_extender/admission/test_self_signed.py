# SPDX-License-Identifier: Apache-2.0
"""Webhooks that share a certificate of their own, against an API server faked at the socket.

The fake stands in the API server's place on the other side, too: `calls` connects as it does, with
what the configurations trust and nothing else.
"""

import asyncio
import re
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from scheduler_extender.adapters.api import Api
from scheduler_extender.admission import self_signed
from scheduler_extender.admission.pair import CA, CERT, LIFE, RENEW_BEFORE, make_pair, pair_in
from scheduler_extender.admission.process import Sockets, serve
from scheduler_extender.admission.self_signed import HEARD_S, SelfSigned
from scheduler_extender.admission.settings import Settings
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.listening import bound
from tests.adapters.kubernetes.fake_api_server import FakeApiServer

NAME = "tidegate-admission"
HOST = f"{NAME}.here.svc"
SECRET = f"/api/v1/namespaces/here/secrets/{NAME}-tls"
REGISTERED = [f"/apis/admissionregistration.k8s.io/v1/{kind}/{NAME}" for kind in self_signed.KINDS]


@dataclass
class Clocks:
    """A wall clock and one that only goes on, which a test moves."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    s: float = 1000.0

    def later(self, seconds: float = 0.0, **more: float) -> None:
        self.s += seconds
        self.at += timedelta(seconds=seconds, **more)


class Cluster(FakeApiServer):
    """With the objects that the chart makes."""

    async def installed(self) -> None:
        await self.up()
        await self.put(SECRET, {"type": "Opaque"})
        for path in REGISTERED:
            hooks = [{"name": f"{n}.pods", "clientConfig": {"service": {}}} for n in ("a", "b")]
            await self.put(path, {"webhooks": hooks})

    @property
    def secret(self) -> dict[str, str]:
        return self.objects["", "secrets", "here", f"{NAME}-tls"].get("data") or {}

    @property
    def bundles(self) -> list[bytes]:
        """What each of the four webhooks trusts."""
        return [
            b64decode(hook["clientConfig"].get("caBundle") or "")
            for (group, *_), raw in self.objects.items()
            if group == "admissionregistration.k8s.io"
            for hook in raw["webhooks"]
        ]

    async def empty(self) -> None:
        await self.put(SECRET, {"type": "Opaque"})


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.installed()
    yield cluster
    await cluster.down()


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@asynccontextmanager
async def replicas(
    cluster: Cluster, folder: Path, clocks: Clocks, *, count: int = 1
) -> AsyncIterator[list[SelfSigned]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            api = await stack.enter_async_context(Api(cluster.kubeconfig(folder)))
            made.append(
                SelfSigned(
                    api,
                    namespace="here",
                    service=NAME,
                    now=lambda: clocks.at,
                    now_s=lambda: clocks.s,
                )
            )
        yield made


async def calls(cluster: Cluster, replica: SelfSigned) -> str:
    """Why the API server does not take what a replica serves, in any of its webhooks; empty."""
    server = await asyncio.start_server(lambda _, out: out.close(), "127.0.0.1", 0, ssl=replica.tls)
    port = server.sockets[0].getsockname()[1]
    try:
        for bundle in cluster.bundles:
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if bundle:
                trusting.load_verify_locations(cadata=bundle.decode())
            try:
                _, out = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=trusting, server_hostname=HOST
                )
            except ssl.SSLError as error:
                return str(error)
            out.close()
            await out.wait_closed()
    finally:
        server.close()
        await server.wait_closed()
    return ""


async def test_a_first_pair_is_made_trusted_and_served(
    cluster: Cluster, tmp_path: Path, clocks: Clocks
) -> None:
    async with replicas(cluster, tmp_path, clocks) as (one,):
        assert "no certificate is served yet" in str(one.why_unready)
        await one.begin()
        assert not one.why_unready
        assert await calls(cluster, one) == ""
    assert pair_in(cluster.secret) is not None
    assert set(cluster.bundles) == {b64decode(cluster.secret[CA])}


async def test_replicas_that_start_at_once_serve_one_pair(
    cluster: Cluster, tmp_path: Path, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_signed, "RETRY_S", 0.01)
    async with replicas(cluster, tmp_path, clocks, count=4) as every:
        await asyncio.gather(*(one.begin() for one in every))
        for one in every:
            assert await calls(cluster, one) == ""
    assert all(bundle.count(b"BEGIN CERTIFICATE") == 1 for bundle in cluster.bundles)


async def test_a_pair_that_is_good_is_left_alone(
    cluster: Cluster, tmp_path: Path, clocks: Clocks
) -> None:
    async with replicas(cluster, tmp_path, clocks) as (one,):
        await one.begin()
        wrote = len(cluster.asked_for("update"))
        for _ in range(3):
            clocks.later(HEARD_S)
            await one.round()
        assert len(cluster.asked_for("update")) == wrote


@pytest.mark.parametrize("how", ["due", "emptied", "aged"])
async def test_a_new_pair_is_served_only_once_it_is_trusted_and_the_old_one_stays_so(
    cluster: Cluster, tmp_path: Path, clocks: Clocks, how: str
) -> None:
    """At no moment a replica shows what the API server does not take."""
    until_due = LIFE - RENEW_BEFORE + timedelta(days=1)
    if how == "due":
        clocks.at -= until_due
    async with replicas(cluster, tmp_path, clocks, count=2) as (one, two):
        await one.begin()
        await two.begin()
        first = cluster.secret[CERT]
        match how:
            case "due":
                clocks.at += until_due
            case "emptied":
                await cluster.empty()
            case "aged":
                old = make_pair(HOST, now=clocks.at - until_due)
                await cluster.put(SECRET, {"data": old.data})
        await one.round()
        assert cluster.secret[CERT] != first
        assert one._served != pair_in(cluster.secret), "no API server has heard of it yet"
        for replica in (two, one, two):
            assert await calls(cluster, one) == ""
            assert await calls(cluster, two) == ""
            clocks.later(HEARD_S / 2)
            await replica.round()
        clocks.later(HEARD_S)
        await one.round()
        assert await calls(cluster, one) == ""
        assert await calls(cluster, two) == "", "it has not changed over yet"
        await two.round()
        assert await calls(cluster, two) == ""
        assert one._served == two._served == pair_in(cluster.secret)


async def test_a_replica_that_starts_while_others_change_over_is_taken(
    cluster: Cluster, tmp_path: Path, clocks: Clocks
) -> None:
    async with replicas(cluster, tmp_path, clocks, count=2) as (one, late):
        await one.begin()
        await cluster.empty()
        await late.begin()
        assert await calls(cluster, one) == ""
        assert await calls(cluster, late) == ""


async def test_an_authority_that_has_expired_is_trusted_no_more(
    cluster: Cluster, tmp_path: Path, clocks: Clocks
) -> None:
    async with replicas(cluster, tmp_path, clocks) as (one,):
        await one.begin()
        first = b64decode(cluster.secret[CA])
        await cluster.empty()
        await one.round()
        assert all(bundle.count(b"BEGIN CERTIFICATE") == 2 for bundle in cluster.bundles)
        clocks.later(days=LIFE.days + 1)
        await one.round()
        assert not any(first in bundle for bundle in cluster.bundles)


async def test_a_configuration_that_somebody_wrote_anew_is_told_again(
    cluster: Cluster, tmp_path: Path, clocks: Clocks
) -> None:
    async with replicas(cluster, tmp_path, clocks) as (one,):
        await one.begin()
        await cluster.put(REGISTERED[0], {"webhooks": [{"clientConfig": {"url": "kept"}}]})
        await one.round()
        assert await calls(cluster, one) == ""
    (hook,) = cluster.objects["admissionregistration.k8s.io", self_signed.KINDS[0], "", NAME][
        "webhooks"
    ]
    assert hook["clientConfig"]["url"] == "kept"


async def _deleted(cluster: Cluster) -> None:
    await cluster.remove(SECRET)


async def _forbidden(cluster: Cluster) -> None:
    cluster.forbidden.add("secrets")


async def _away(cluster: Cluster) -> None:
    cluster.fail(500)


@pytest.mark.parametrize(
    ("trouble", "error", "words"),
    [
        pytest.param(_deleted, Refused, "`helm upgrade` makes it anew", id="deleted"),
        pytest.param(_forbidden, Refused, "give our ServiceAccount this right", id="forbidden"),
        pytest.param(_away, Unreachable, "500", id="away"),
    ],
)
async def test_what_is_served_goes_on_while_nothing_can_be_asked(
    cluster: Cluster,
    tmp_path: Path,
    clocks: Clocks,
    trouble: Callable[[Cluster], Any],
    error: type[Exception],
    words: str,
) -> None:
    async with replicas(cluster, tmp_path, clocks) as (one,):
        await one.begin()
        await trouble(cluster)
        with pytest.raises(error, match=words):
            await one.round()
        assert not one.why_unready
        assert await calls(cluster, one) == ""


async def test_the_process_is_alive_and_not_ready_until_it_has_a_certificate(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then answers by TLS what it does not answer without."""
    monkeypatch.setattr(self_signed, "RETRY_S", 0.01)
    raw = cluster.objects["", "secrets", "here", f"{NAME}-tls"]
    await cluster.remove(SECRET)
    taken = Sockets(bound("127.0.0.1", 0), bound("127.0.0.1", 0))
    assert taken.pages is not None
    plain = f"http://127.0.0.1:{taken.pages.getsockname()[1]}"
    stop = asyncio.Event()
    async with Api(cluster.kubeconfig(tmp_path)) as api, httpx.AsyncClient() as client:
        own = SelfSigned(api, namespace="here", service=NAME)
        serving = asyncio.create_task(serve(Settings(self_signed=NAME), own, taken, stop))
        try:
            async with asyncio.timeout(20):
                while "helm upgrade" not in (why := await client.get(f"{plain}/readyz")).text:
                    pass
                assert why.status_code == 503
                assert (await client.get(f"{plain}/healthz")).status_code == 200
                assert await _told_end(client, plain) == "NaN"
                await cluster.put(SECRET, raw)
                while (await client.get(f"{plain}/readyz")).status_code != 200:
                    pass
                assert own.ends_at is not None
                assert float(await _told_end(client, plain)) == own.ends_at.timestamp()
                assert (await client.post(f"{plain}/mutate", content=b"{}")).status_code == 404
            trusting = ssl.create_default_context(cadata=cluster.bundles[0].decode())
            port = taken.webhook.getsockname()[1]
            async with httpx.AsyncClient(verify=trusting) as secure:
                answer = await secure.post(
                    f"https://127.0.0.1:{port}/mutate",
                    content=b"{}",
                    headers={"Host": HOST},
                    extensions={"sni_hostname": HOST},
                )
            assert answer.status_code == 400
        finally:
            stop.set()
            async with asyncio.timeout(15):
                await serving


async def _told_end(client: httpx.AsyncClient, url: str) -> str:
    """When the certificate ends, as the metrics have it."""
    text = (await client.get(f"{url}/metrics")).text
    (told,) = re.findall(r"(?m)^tidegate_admission_certificate\w+ (\S+)$", text)
    return str(told)
