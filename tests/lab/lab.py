# SPDX-License-Identifier: Apache-2.0
"""A whole Kubernetes on this machine, without containers: real control plane, local processes.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kube-proxy are the real ones;
pods run as processes on pod addresses (`kubelet/`). Everything lives in a network of its own and
ends with the process that made it.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tests.lab import network
from tests.lab.build import Binaries
from tests.lab.component import Component

REPOSITORY: Final = Path(__file__).parents[2]
API: Final = "https://127.0.0.1:6443"
ETCD: Final = "http://127.0.0.1:2379"
ADMIN: Final = "lab-admin"  # bearer tokens of a cluster that nobody outside can reach
CRDS: Final = "TIDEGATE_KSERVE_CRDS"
NODES: Final = ("node-a", "node-b")
STAGES: Final = Path(__file__).parent / "kwok-stages.yaml"

# user -> (token, groups): each component has the rights that RBAC gives its name.
USERS: Final = {
    "admin": (ADMIN, "system:masters"),
    "system:kube-controller-manager": ("lab-controller-manager", ""),
    "system:kube-scheduler": ("lab-scheduler", ""),
    "system:kube-proxy": ("lab-proxy", ""),
    "lab-node": ("lab-node", "system:masters"),  # the process kubelet, which also asks for tokens
}

# Not in a cluster without routes, clouds and IPAM, and every start saved is a second.
CONTROLLERS: Final = (
    "*,-nodeipam,-node-route-controller,-cloud-node-lifecycle-controller,-service-lb-controller"
)

# Their own limits (20 a second) cost four seconds of the start, and minutes of 10,000 pods.
UNHURRIED: Final = ("--kube-api-qps=1000", "--kube-api-burst=2000")


class LabError(Exception):
    """The lab did not do as it was told; the message has the tail of the log that says why."""


class Lab:
    """Start it once in a process; every test then takes a namespace of its own."""

    def __init__(self, binaries: Binaries) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-lab-"))
        self.binaries = binaries
        self.start_s = 0.0
        self._components: dict[str, Component] = {}
        self._namespaces = 0

    # Life

    def start(self) -> None:
        """Enter a new network and bring everything up there. Raises `LabError`, `OSError`."""
        began_s = time.monotonic()
        network.enter()
        self._write_keys()
        for component in self._control_plane():
            self._components[component.name] = component
        for name in ("etcd", "kube-apiserver"):
            self._components[name].start()
        self.wait_api()
        for name in ("kube-controller-manager", "kube-scheduler", *map(_kubelet, NODES), "dns"):
            self._components[name].start()
        # kube-proxy sleeps through its first seconds if its Node is not there when it starts.
        self.wait_for(lambda: self._nodes() >= len(NODES), what="the nodes")
        self._components["kube-proxy"].start()
        self.wait_for(self._serves, what="the service account of namespace default")
        self.start_s = time.monotonic() - began_s

    def close(self, *, keep: bool = False) -> None:
        """End every process; `keep` leaves the folder with the logs."""
        for component in reversed(self._components.values()):
            component.stop()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Component:
        """Start one more process of the lab, to be ended with it."""
        component = Component(name, command, self.folder, env or {})
        self._components[name] = component
        component.start()
        return component

    def component(self, name: str) -> Component:
        return self._components[name]

    def stop_component(self, name: str, *, kill: bool = False) -> None:
        self._components[name].stop(kill=kill)

    def start_component(self, name: str) -> None:
        self._components[name].start()
        if name in ("etcd", "kube-apiserver"):
            self.wait_api()

    def compact(self) -> int:
        """Drop etcd's history up to now; returns the revision."""
        revision = int(_post(f"{ETCD}/v3/kv/range", {"key": "AA=="})["header"]["revision"])
        _post(f"{ETCD}/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def logs(self, lines: int = 25) -> str:
        """The last words of every component."""
        return "\n".join(
            f"----- {component.log}\n{component.tail(lines)}"
            for component in self._components.values()
        )

    # Use

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def env(self) -> dict[str, str]:
        """For programs that are to talk to this cluster."""
        path = f"{self.binaries.folder}:{self.folder / 'bin'}:{os.environ.get('PATH', '')}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl as the administrator; returns what it printed. Raises `LabError`."""
        return self._call(self.binaries["kube"], "kubectl", *words, stdin=stdin, check=check)

    def helm(self, *words: str, check: bool = True) -> str:
        """Run the real Helm. Raises `LabError`."""
        return self._call(self.binaries["helm"], *words, check=check)

    def get(self, *words: str) -> dict[str, Any]:
        """An object, or a list of them, as kubectl gives it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def apply(self, *manifests: Mapping[str, Any] | str, namespace: str | None = None) -> None:
        """Apply objects, or YAML text, server-side."""
        texts = [m if isinstance(m, str) else yaml.safe_dump(dict(m)) for m in manifests]
        where = ("-n", namespace) if namespace else ()
        self.kubectl("apply", "--server-side", *where, "-f", "-", stdin="\n---\n".join(texts))

    @contextlib.contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """A fresh Kubernetes namespace, taken away afterwards."""
        self._namespaces += 1
        name = f"{prefix}-{self._namespaces}"
        self.kubectl("create", "namespace", name)
        self.wait_for(lambda: self._has_account(name), what=f"namespace {name}")
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def wait_for(self, done: Callable[[], object], *, what: str, within_s: float = 30.0) -> Any:
        """Ask until the answer is true. Raises `LabError` with every log's tail."""
        ends_s = time.monotonic() + within_s
        while not (answer := done()):
            if time.monotonic() > ends_s:
                raise LabError(f"waited {within_s:g} s for {what}\n{self.logs()}")
            time.sleep(0.05)
        return answer

    def wait_api(self, within_s: float = 30.0) -> None:
        self.wait_for(self._api_ready, what="the API server", within_s=within_s)

    def kwok(self) -> None:
        """Have kwok play the nodes labelled `type=kwok`, and the pods that are bound to them."""
        self.run(
            "kwok",
            self.binaries["kwok"],
            f"--kubeconfig={self.kubeconfig}",
            f"--config={STAGES}",
            "--manage-nodes-with-label-selector=type=kwok",
            "--node-lease-duration-seconds=40",
            "--server-address=127.0.0.1:10247",
        )

    def kserve(self) -> None:
        """Install KServe's own CRDs and the stand-in for its controller; it works then.

        Raises `LabError`.
        """
        if "kserve" in self._components:
            return
        archive = kserve_crds()
        if archive is None:
            raise LabError(f"KServe's CRDs are not here; name their archive with {CRDS}")
        folder = self.folder / "crds"
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        self.kubectl("apply", "--server-side", "-R", "-f", str(folder))
        component = self._ours("kserve", "tests.lab.kserve", "--kubeconfig", str(self.kubeconfig))
        self._components["kserve"] = component
        component.start()
        # The API server is busy for a while with so many new kinds.
        self.wait_for(lambda: "kserve_stands_in" in component.tail(50), what="KServe", within_s=60)

    # How it is made

    def _call(self, *command: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(  # noqa: S603  the lab's own programs
            command, input=stdin, env=self.env, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def _write_keys(self) -> None:
        key, public = self.folder / "sa.key", self.folder / "sa.pub"
        for command in (
            ("genrsa", "-out", str(key), "2048"),
            ("rsa", "-in", str(key), "-pubout", "-out", str(public)),
        ):
            subprocess.run(  # noqa: S603
                ["openssl", *command],  # noqa: S607  found by `why_impossible`
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        rows = [f'{token},{user},{user},"{groups}"' for user, (token, groups) in USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        for user, (token, _) in USERS.items():
            name = "admin" if user == "admin" else user.removeprefix("system:")
            self.write_kubeconfig(self.folder / f"{name}.kubeconfig", token)
        links = self.folder / "bin"
        links.mkdir()
        kubectl = links / "kubectl"
        kubectl.write_text(f'#!/bin/sh\nexec "{self.binaries["kube"]}" kubectl "$@"\n')
        kubectl.chmod(0o755)

    def write_kubeconfig(self, path: Path, token: str, *, namespace: str = "default") -> Path:
        """A kubeconfig for whoever has `token`."""
        cluster = {
            "server": API,
            "certificate-authority": str(self.folder / "certs" / "apiserver.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "lab",
                    "context": {"cluster": "lab", "user": "user", "namespace": namespace},
                }
            ],
            "current-context": "lab",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def kubeconfig_for(self, account: str, *, namespace: str) -> Path:
        """A kubeconfig with the rights of a service account."""
        token = self.kubectl("create", "token", account, "-n", namespace).strip()
        path = self.folder / f"{namespace}-{account}.kubeconfig"
        return self.write_kubeconfig(path, token, namespace=namespace)

    def _control_plane(self) -> Iterator[Component]:
        def kube(name: str, *flags: str) -> Component:
            return Component(name, (self.binaries["kube"], name, *flags), self.folder)

        def as_user(name: str) -> str:
            return f"--kubeconfig={self.folder / name}.kubeconfig"

        yield kube("etcd", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=error")
        yield kube(
            "kube-apiserver",
            f"--etcd-servers={ETCD}",
            f"--service-cluster-ip-range={network.SERVICE_NETWORK}",
            "--bind-address=127.0.0.1",
            f"--advertise-address={network.NODE_IP}",
            "--endpoint-reconciler-type=none",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://lab",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            "--cert-dir=certs",
            # Without it a stop waits as long as anyone watches.
            "--shutdown-watch-termination-grace-period=1s",
        )
        yield kube(
            "kube-controller-manager",
            as_user("kube-controller-manager"),
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=certs/apiserver.crt",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            f"--controllers={CONTROLLERS}",
            *UNHURRIED,
        )
        yield kube("kube-scheduler", as_user("kube-scheduler"), "--leader-elect=false", *UNHURRIED)
        yield kube(
            "kube-proxy",
            as_user("kube-proxy"),
            "--proxy-mode=nftables",
            f"--cluster-cidr={network.POD_NETWORK}",
            f"--hostname-override={NODES[0]}",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        )
        for number, node in enumerate(NODES):
            yield self._ours(
                _kubelet(node),
                "tests.lab.kubelet",
                *("--kubeconfig", str(self.folder / "lab-node.kubeconfig")),
                *("--node", node, "--node-ip", network.NODE_IP),
                *("--pod-cidr", f"10.244.{number}.0/24"),
                *("--run-dir", str(self.folder / node)),
                *("--cluster-dns", network.DNS_IP),
            )
        yield self._ours(
            "dns",
            "tests.lab.dns",
            *("--kubeconfig", str(self.kubeconfig), "--listen", f"{network.DNS_IP}:53"),
        )

    def _ours(self, name: str, module: str, *words: str) -> Component:
        command = (sys.executable, "-m", module, *words)
        return Component(name, command, self.folder, {"PYTHONPATH": str(REPOSITORY)})

    # What is asked of it while it starts

    def _api_ready(self) -> bool:
        return self._components["kube-apiserver"].runs and _answers(f"{API}/readyz")

    def _nodes(self) -> int:
        return len(self.kubectl("get", "nodes", "-o", "name", check=False).split())

    def _has_account(self, namespace: str) -> bool:
        words = ("get", "serviceaccount", "default", "-n", namespace, "-o", "name")
        return "serviceaccount/default" in self.kubectl(*words, check=False)

    def _serves(self) -> bool:
        return self._has_account("default")


def kserve_crds() -> Path | None:
    """Where the archive of KServe's CRDs lies; None: not on this machine."""
    named = os.environ.get(CRDS)
    beside = REPOSITORY.parent / "shared" / "data" / "kserve" / "crds.tar.xz"
    archive = Path(named) if named else beside
    return archive if archive.is_file() else None


def _kubelet(node: str) -> str:
    return f"kubelet-{node}"


def _answers(url: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:  # URLError and HTTPError are OSErrors
        return False


def _post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, data=json.dumps(body).encode())  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        said: dict[str, Any] = json.load(answer)
        return said
