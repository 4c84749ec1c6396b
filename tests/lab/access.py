# SPDX-License-Identifier: Apache-2.0
"""Who may do what in the lab: one certificate, a bearer token for each user, and kubeconfigs.

The secrets are no secrets: nobody outside the lab's network can reach what they open.
"""

import subprocess
from pathlib import Path
from typing import Final

import yaml

from tests.lab.network import NODE_IP

API: Final = "https://127.0.0.1:6443"
ADMIN: Final = "lab-admin"

# user -> (token, groups): each component has the rights that RBAC gives its name.
USERS: Final = {
    "admin": (ADMIN, "system:masters"),
    "system:kube-controller-manager": ("lab-controller-manager", ""),
    "system:kube-scheduler": ("lab-scheduler", ""),
    "system:kube-proxy": ("lab-proxy", ""),
    "lab-node": ("lab-node", "system:masters"),  # the process kubelet, which also asks for tokens
}

_NAMES: Final = f"IP:127.0.0.1,IP:{NODE_IP},IP:10.96.0.1,DNS:kubernetes.default.svc"


def write(folder: Path) -> None:
    """The API server's key pair, its users and their kubeconfigs: `NAME.kubeconfig`."""
    _write_key_pair(folder)
    rows = [f'{token},{user},{user},"{groups}"' for user, (token, groups) in USERS.items()]
    (folder / "tokens.csv").write_text("\n".join(rows) + "\n")
    for user, (token, _) in USERS.items():
        name = user.removeprefix("system:")
        write_kubeconfig(folder / f"{name}.kubeconfig", token)


def write_kubeconfig(path: Path, token: str, *, namespace: str = "default") -> Path:
    """A kubeconfig, beside the certificate, for whoever has `token`."""
    cluster = {"server": API, "certificate-authority": str(path.parent / "lab.crt")}
    context = {"cluster": "lab", "user": "user", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": context}],
        "current-context": "lab",
    }
    path.write_text(yaml.safe_dump(config))
    return path


def _write_key_pair(folder: Path) -> None:
    """One pair for all: it serves the API and signs the service accounts' tokens."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
    uses = ("-addext", "keyUsage=critical,digitalSignature,keyCertSign")
    names = ("-subj", "/CN=lab", "-addext", f"subjectAltName={_NAMES}")
    files = ("-keyout", str(folder / "lab.key"), "-out", str(folder / "lab.crt"))
    subprocess.run(  # noqa: S603  the words above
        ["openssl", "req", "-x509", *curve, *names, *uses, *files],  # noqa: S607  `why_impossible`
        check=True,
        capture_output=True,
    )
