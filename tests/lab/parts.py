# SPDX-License-Identifier: Apache-2.0
"""What the lab is made of: each component's command line, and where it tells its health."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.lab import network
from tests.lab.access import API
from tests.lab.build import Binaries
from tests.lab.component import Component

REPOSITORY: Final = Path(__file__).parents[2]
PLAYED: Final = Path(__file__).parent / "played.yaml"
ETCD: Final = "http://127.0.0.1:2379"

NODES: Final = ("node-a", "node-b")

HEALTH: Final = {
    "etcd": f"{ETCD}/health",
    "kube-apiserver": f"{API}/readyz",
    "kube-controller-manager": "https://127.0.0.1:10257/healthz",
    "kube-scheduler": "https://127.0.0.1:10259/healthz",
    "kube-proxy": "http://127.0.0.1:10256/healthz",
    "kwok": "http://127.0.0.1:10247/healthz",
}

# Who watches the API server, and waits longer after each failure.
FOLLOWERS: Final = ("kube-controller-manager", "kube-scheduler", "kube-proxy")

# Not in a cluster without routes, clouds and IPAM, and every start saved is a second.
_CONTROLLERS: Final = (
    "*,-nodeipam,-node-route-controller,-cloud-node-lifecycle-controller,-service-lb-controller"
)

# Their own limits (20 a second) cost four seconds of the start, and minutes of 10,000 pods.
_UNHURRIED: Final = ("--kube-api-qps=1000", "--kube-api-burst=2000")


def kubelet(node: str) -> str:
    """The name of a node's kubelet."""
    return f"kubelet-{node}"


def parts(folder: Path, binaries: Binaries) -> Iterator[Component]:
    """All that runs in every lab."""

    def kube(name: str, *flags: str) -> Component:
        return Component(name, (binaries["kube"], name, *flags), folder)

    def as_user(name: str) -> str:
        return f"--kubeconfig={folder / name}.kubeconfig"

    yield kube("etcd", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=error")
    yield kube("kube-apiserver", *_API_SERVER)
    yield kube(
        "kube-controller-manager",
        as_user("kube-controller-manager"),
        "--service-account-private-key-file=lab.key",
        "--root-ca-file=lab.crt",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        f"--controllers={_CONTROLLERS}",
        *_UNHURRIED,
    )
    yield kube("kube-scheduler", as_user("kube-scheduler"), "--leader-elect=false", *_UNHURRIED)
    yield kube("kube-proxy", as_user("kube-proxy"), *_PROXY)
    for number, node in enumerate(NODES):
        yield a_kubelet(node, f"10.244.{number}.0/24", folder)
    listen = ("--listen", f"{network.DNS_IP}:53")
    yield ours(
        "dns", "tests.lab.dns", folder, "--kubeconfig", f"{folder}/admin.kubeconfig", *listen
    )


def a_kubelet(node: str, addresses: str, folder: Path) -> Component:
    """One node, which runs pods on `addresses`, a part of the pod network."""
    return ours(
        kubelet(node),
        "tests.lab.kubelet",
        folder,
        *("--kubeconfig", str(folder / "lab-node.kubeconfig")),
        *("--node", node, "--node-ip", network.NODE_IP, "--pod-cidr", addresses),
        *("--run-dir", str(folder / node), "--cluster-dns", network.DNS_IP),
    )


def a_kwok(folder: Path, binaries: Binaries) -> Component:
    """Plays the nodes that are labelled for it, and the pods bound to them, on no real address."""
    return Component(
        "kwok",
        (
            binaries["kwok"],
            f"--kubeconfig={folder / 'admin.kubeconfig'}",
            "--manage-nodes-with-label-selector=type=kwok",
            "--node-lease-duration-seconds=40",
            f"--config={PLAYED}",
            f"--cidr={network.PLAYED_NETWORK}",
            "--server-address=127.0.0.1:10247",
            "--v=WARN",
        ),
        folder,
    )


def ours(name: str, module: str, folder: Path, *words: str) -> Component:
    """A program of this repository."""
    command = (sys.executable, "-m", module, *words)
    return Component(name, command, folder, {"PYTHONPATH": str(REPOSITORY)})


_API_SERVER: Final = (
    f"--etcd-servers={ETCD}",
    f"--service-cluster-ip-range={network.SERVICE_NETWORK}",
    "--bind-address=127.0.0.1",
    f"--advertise-address={network.NODE_IP}",
    "--endpoint-reconciler-type=none",
    "--tls-cert-file=lab.crt",
    "--tls-private-key-file=lab.key",
    "--token-auth-file=tokens.csv",
    "--authorization-mode=RBAC",
    "--allow-privileged=true",  # as clusters have it: Pod Security says who may
    "--service-account-issuer=https://lab",
    "--service-account-key-file=lab.crt",
    "--service-account-signing-key-file=lab.key",
    # Without it a stop waits as long as anyone watches.
    "--shutdown-watch-termination-grace-period=1s",
)

_PROXY: Final = (
    "--proxy-mode=nftables",
    f"--cluster-cidr={network.POD_NETWORK}",
    f"--hostname-override={NODES[0]}",
    # The kernel's settings of connection tracking are left as they are.
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
)
