# SPDX-License-Identifier: Apache-2.0
"""A certificate that the webhooks make, share and renew themselves, and have the API server trust.

Replicas agree through one Secret; nobody leads. Each does the same round again and again:

1. Read the pair in the Secret. One that is missing, wrong or due is replaced, on the condition that
   nobody else did so meanwhile.
2. Have every webhook of both configurations trust the pair's authority, beside those it trusts.
3. Serve the pair, once it has been trusted for so long that every API server has heard of it. A
   process that starts serves it at once: it is asked only when it is ready.

An authority stays trusted until it expires, and so does whoever still serves what it signed. While
the API server cannot be asked, or the Secret is gone, what is served goes on.
"""

import asyncio
import os
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import structlog

from scheduler_extender.adapters.api import Api, Raw
from scheduler_extender.admission.pair import (
    Pair,
    bundle_with,
    ends_at,
    make_pair,
    pair_in,
    why_new,
)
from scheduler_extender.errors import NotFound, Refused, Unreachable

log = structlog.get_logger(__name__)

EVERY_S: Final = 10.0
RETRY_S: Final = 1.0  # while nothing is served
HEARD_S: Final = 10.0  # what API servers are given to hear whom to trust
TIMEOUT_S: Final = 10.0
KINDS: Final = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
_REGISTERED: Final = "/apis/admissionregistration.k8s.io/v1"

Now = Callable[[], datetime]


class SelfSigned:
    """`service`: the name of the Service and of both configurations; the Secret is `…-tls`.

    `now`: the wall clock, by which certificates live; `now_s`: one that only goes on.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        service: str,
        now: Now = lambda: datetime.now(UTC),
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._api = api
        self._host = f"{service}.{namespace}.svc"
        name = quote(f"{service}-tls", safe="")
        self._secret = f"/api/v1/namespaces/{quote(namespace, safe='')}/secrets/{name}"
        self._registered = [f"{_REGISTERED}/{kind}/{quote(service, safe='')}" for kind in KINDS]
        self._now = now
        self._now_s = now_s
        self._served: Pair | None = None
        self._trusted: tuple[Pair, float] | None = None  # the pair, and since when
        self._trouble = "it has not asked for its certificate yet"

    @property
    def why_unready(self) -> str | None:
        return None if self._served else f"no certificate is served yet: {self._trouble}"

    @property
    def ends_at(self) -> datetime | None:
        return None if self._served is None else ends_at(self._served.cert)

    async def begin(self) -> None:
        """Return once there is something to serve."""
        while self._served is None:
            await self._try()
            if self._served is None:
                await asyncio.sleep(RETRY_S)

    async def keep(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self._try()

    async def round(self) -> None:
        """Raises `Refused`, `Unreachable`."""
        pair = await self._agreed()
        for path in self._registered:
            await self._have_trusted(path, pair.ca)
        if self._trusted is None or self._trusted[0] != pair:
            self._trusted = pair, self._now_s()
        heard = self._now_s() - self._trusted[1] >= HEARD_S
        if pair != self._served and (heard or self._served is None):
            self._serve(pair)

    async def _try(self) -> None:
        try:
            await self.round()
        except (Refused, Unreachable) as trouble:
            if str(trouble) != self._trouble:
                log.warning("the certificate was not looked after; trying again", why=str(trouble))
            self._trouble = str(trouble)
        else:
            self._trouble = ""

    async def _agreed(self) -> Pair:
        """What is in the Secret, or what we put there."""
        try:
            secret = await self._api.ask("GET", self._secret, timeout_s=TIMEOUT_S)
        except NotFound as error:
            raise NotFound(f"{error}; `helm upgrade` makes it anew, empty") from error
        pair = pair_in(secret.get("data"))
        why = why_new(pair, self._host, now=self._now())
        if pair is not None and not why:
            return pair
        made = await asyncio.to_thread(make_pair, self._host, now=self._now())
        secret["data"] = made.data
        # Its resourceVersion guards it: of several that renew, one does.
        await self._api.ask("PUT", self._secret, body=secret, timeout_s=TIMEOUT_S)
        log.info("a new certificate was made", why=why, ends_at=f"{ends_at(made.cert):%FT%TZ}")
        return made

    async def _have_trusted(self, path: str, ca: bytes) -> None:
        found = await self._api.ask("GET", path, timeout_s=TIMEOUT_S)
        added = [self._add(webhook, ca) for webhook in found.get("webhooks") or ()]
        if any(added):
            await self._api.ask("PUT", path, body=found, timeout_s=TIMEOUT_S)
            log.info("the API server is told whom to trust", where=path)

    def _add(self, webhook: Raw, ca: bytes) -> bool:
        """Whether it was not trusted yet."""
        client = webhook["clientConfig"]
        told = b64decode(client.get("caBundle") or "")
        bundle = bundle_with(told, ca, now=self._now())
        client["caBundle"] = b64encode(bundle).decode()
        return bundle != told

    def _serve(self, pair: Pair) -> None:
        """On connections that are new from now."""
        with _as_file(pair.cert + pair.key) as path:
            self.tls.load_cert_chain(path)
        self._served = pair
        log.info("a certificate is in use", ends_at=f"{ends_at(pair.cert):%FT%TZ}")


@contextmanager
def _as_file(text: bytes) -> Iterator[str]:
    """A file of this process alone that is on no disk: Python's TLS takes keys from files only."""
    number = os.memfd_create("pair")
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(text)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
