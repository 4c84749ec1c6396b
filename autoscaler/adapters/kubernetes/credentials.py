# SPDX-License-Identifier: Apache-2.0
"""Where the API server is and how we prove who we are. Only this file reads kubeconfigs and tokens.

What they mean is left to the `kubernetes` package: exec plugins, OIDC, token files, client
certificates, proxies. Inside a pod the token is read again each minute, as the kubelet renews it;
from a kubeconfig whenever the API server no longer takes what we have.
"""

import os
import ssl
import time
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Final

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from autoscaler.errors import GiveUp

TOKEN_AGE_S: Final = 60.0
POD_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Login:
    """What a request needs besides its path. `authorization` is empty for client certificates.

    `proof`: a digest of the TLS files; the same digest means the same `tls`.
    """

    server: str
    namespace: str
    authorization: str
    tls: ssl.SSLContext
    proof: str
    proxy: str | None
    server_hostname: str | None
    renew_at_s: float


@dataclass(frozen=True, slots=True)
class Credentials:
    """Logs in as a kubeconfig says, or as the pod's service account.

    `kubeconfig` None: $KUBECONFIG, else ~/.kube/config, else the service account.
    """

    kubeconfig: Path | None = None
    context: str | None = None

    async def login(self, last: Login | None = None) -> Login:
        """Read everything anew. Raises `GiveUp` with the file at fault."""
        configuration = Configuration()
        place = str(self.kubeconfig) if self.kubeconfig else _found()
        try:
            if place is None:
                load_incluster_config(configuration)
                namespace = _namespace_of_pod()
            else:
                namespace = await self._from_file(place, configuration)
            return _login(configuration, namespace, in_pod=place is None, last=last)
        except (ConfigException, OSError, ValueError, TypeError, yaml.YAMLError) as error:
            source = f"kubeconfig {place}" if place else "service account of this pod"
            raise GiveUp(
                f"cannot log in to Kubernetes with the {source}: {error!r}; "
                "name a kubeconfig that works, or run in a pod with a service account"
            ) from error

    async def _from_file(self, place: str, configuration: Configuration) -> str:
        if not _exists(place):
            raise FileNotFoundError("there is no such file")
        loader = await load_kube_config(
            config_file=place,
            context=self.context,
            client_configuration=configuration,
            persist_config=False,  # a renewed token is written to the user's file by kubectl alone
        )
        return str(loader.current_context["context"].get("namespace") or "default")


def _found() -> str | None:
    """The kubeconfig that kubectl would use; None if there is none."""
    named = os.environ.get("KUBECONFIG")
    if named:
        return named
    usual = Path.home() / ".kube" / "config"
    return str(usual) if usual.is_file() else None


def _exists(place: str) -> bool:
    """Whether any of the files is there; $KUBECONFIG may name several."""
    return any(Path(part).expanduser().is_file() for part in place.split(os.pathsep))


def _namespace_of_pod() -> str:
    return POD_NAMESPACE_FILE.read_text(encoding="utf-8").strip() or "default"


def _login(
    configuration: Configuration, namespace: str, *, in_pod: bool, last: Login | None
) -> Login:
    proof = _digest(configuration)
    # A new context would cost every kept connection, so it is made only for new files.
    same = last is not None and last.proof == proof
    return Login(
        server=configuration.host.rstrip("/"),
        namespace=namespace,
        authorization=str(configuration.api_key.get("BearerToken", "")).strip(),
        tls=last.tls if last is not None and same else RESTClientObject(configuration).ssl_context,
        proof=proof,
        proxy=configuration.proxy,
        server_hostname=configuration.tls_server_name,
        renew_at_s=time.monotonic() + TOKEN_AGE_S if in_pod else inf,
    )


def _digest(configuration: Configuration) -> str:
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    digest = sha256(f"{configuration.host} {configuration.verify_ssl}".encode())
    for name in files:
        digest.update(b"\0" + (Path(name).read_bytes() if name else b""))
    return digest.hexdigest()
