# SPDX-License-Identifier: Apache-2.0
"""The webhook's certificate, read again when its files change. Connections that are open stay."""

import asyncio
import ssl
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from scheduler_extender.admission.pair import ends_at
from scheduler_extender.errors import BadInput

log = structlog.get_logger(__name__)

LOOK_S: Final = 5.0  # the kubelet itself takes a minute to bring a new Secret


class Served(Protocol):
    """A certificate for as long as the webhook runs. `tls` takes each new one."""

    tls: ssl.SSLContext

    @property
    def why_unready(self) -> str | None:
        """Why the webhook cannot be asked yet; None: it can."""

    @property
    def ends_at(self) -> datetime | None:
        """When what is served is good no more; None: there is nothing, or it cannot be read."""

    async def begin(self) -> None:
        """Return once there is something to serve."""

    async def keep(self) -> None:
        """For ever."""


class Certificate:
    """In files. `tls` serves the newest pair that fits; `BadInput` if the first does not."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._files = (cert_file, key_file)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._loaded = self._read()
            self.tls.load_cert_chain(*self._files, password="")
        except (OSError, ssl.SSLError) as error:
            raise BadInput(
                f"--cert-file {cert_file}, --key-file {key_file}: {error}; name a certificate in "
                "PEM and the key that belongs to it, without a password"
            ) from error

    @property
    def why_unready(self) -> None:
        return None

    @property
    def ends_at(self) -> datetime | None:
        try:
            return ends_at(self._loaded[0])
        except ValueError:  # OpenSSL takes forms of PEM that nothing else reads
            return None

    async def begin(self) -> None:
        return None

    async def keep(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.renew()

    def renew(self) -> None:
        """Take the files as they are now, if they changed and fit together."""
        try:
            found = self._read()
            if found == self._loaded:
                return
            # Into the one in use only what is known to fit: it keeps half of what fails.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files, password="")
            self.tls.load_cert_chain(*self._files, password="")
        except (OSError, ssl.SSLError) as error:
            log.warning("the new certificate is not taken; the old one goes on", why=str(error))
            return
        self._loaded = found
        log.info("a new certificate is in use", file=str(self._files[0]))

    def _read(self) -> tuple[bytes, ...]:
        return tuple(file.read_bytes() for file in self._files)
