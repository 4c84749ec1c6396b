# SPDX-License-Identifier: Apache-2.0
"""A control plane with one node, for the tests of the lab's own programs.

The test's thread moves into a network namespace of its own, so what a test connects to is the
cluster's; whatever it starts is there too.
"""

import ctypes
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NODE_IP = "10.244.255.1"
URL = "https://127.0.0.1:6443"
TOKEN = "admintoken"  # noqa: S105  of a server that only this namespace reaches

KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "lab", "cluster": {"server": URL, "insecure-skip-tls-verify": True}}],
    "users": [{"name": "admin", "user": {"token": TOKEN}}],
    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
    "current-context": "lab",
}


def kube() -> str:
    """The control plane's program; skips where it, root or Linux is missing."""
    given = os.environ.get("TIDEGATE_LAB_BIN", "")
    program = Path(given) / "kube" if Path(given).is_dir() else Path(given)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("the lab needs Linux and root")
    if not given or not program.exists():
        pytest.skip("no control plane: TIDEGATE_LAB_BIN names none")
    if missing := [name for name in ("nft", "ip", "openssl") if shutil.which(name) is None]:
        pytest.skip(f"the lab needs {', '.join(missing)}")
    return str(program)


def kserve_crds() -> Path:
    """The archive of KServe's CRDs; skips where there is none."""
    given = os.environ.get("TIDEGATE_KSERVE_CRDS")
    path = Path(given) if given else REPOSITORY.parent / "shared/data/kserve/crds.tar.xz"
    if not path.exists():
        pytest.skip("no KServe CRDs: neither TIDEGATE_KSERVE_CRDS nor ../shared/data/kserve")
    return path


@dataclass(slots=True)
class SmallLab:
    """The running lab. Every component's log is `folder/NAME.log`."""

    folder: Path
    program: str
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def start(self, name: str, *command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(  # noqa: S603  the lab's own programs
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        return self.running[name]

    def start_kube(self, name: str, *flags: str) -> None:
        self.start(name, self.program, name, *flags)

    def start_python(self, name: str, module: str, *flags: str) -> "subprocess.Popen[bytes]":
        config = ("--kubeconfig", str(self.kubeconfig))
        return self.start(name, sys.executable, "-m", module, *config, *flags)

    def stop(self, name: str, sent: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        process.send_signal(sent)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_api(self) -> None:
        """Returns once the API server is ready."""
        self.start_kube(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--bind-address=127.0.0.1",
            f"--advertise-address={NODE_IP}",
            "--endpoint-reconciler-type=none",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://lab",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            "--cert-dir=certs",
        )
        until(self._api_ready, within_s=60)

    def start_kubelet(self, node: str, *flags: str, cidr: str) -> "subprocess.Popen[bytes]":
        folder = str(self.folder / node)
        where = ("--node", node, "--node-ip", NODE_IP, "--pod-cidr", cidr, "--run-dir", folder)
        return self.start_python(node, "tests.lab.kubelet", *where, *flags)

    def kubectl(self, *words: str, stdin: str = "") -> str:
        done = subprocess.run(  # noqa: S603  the lab's own program
            [self.program, "kubectl", "--kubeconfig", str(self.kubeconfig), *words],
            input=stdin.encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.decode()}")
        return done.stdout.decode()

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """The object; {} where there is none."""
        said = self.kubectl("get", kind, name, "-o", "yaml", "--ignore-not-found")
        return yaml.safe_load(said) or {}

    def log_of(self, pod: str, container: str = "c", *, node: str = "node0") -> str:
        path = self.folder / node / "pods" / f"default_{pod}" / f"{container}.log"
        return path.read_text() if path.exists() else ""

    def _api_ready(self) -> bool:
        trust = ssl._create_unverified_context()  # noqa: S323  its certificate is its own
        asked = http.client.HTTPSConnection("127.0.0.1", 6443, context=trust, timeout=5)
        try:
            asked.request("GET", "/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
            return asked.getresponse().status == 200
        except OSError:
            return False
        finally:
            asked.close()


def until(condition: Callable[[], T], *, within_s: float = 20.0) -> T:
    """What `condition` gives once that is true; fails after the deadline with the last of it."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {condition} gave {found!r}"
        time.sleep(0.05)
    return found


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace of the lab's."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        pytest.skip("the lab needs a network namespace, and may not make one")
    try:
        for line in (
            "link set lo up",
            f"addr add {NODE_IP}/32 dev lo",
            f"route add local 10.244.0.0/16 dev lo src {NODE_IP}",
            f"route add local 10.96.0.0/16 dev lo src {NODE_IP}",
        ):
            subprocess.run(["ip", *line.split()], check=True)  # noqa: S603, S607
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


def write_secrets(folder: Path) -> None:
    for command in ("genrsa -out sa.key 2048", "rsa -in sa.key -pubout -out sa.pub"):
        subprocess.run(  # noqa: S603
            ["openssl", *command.split()],  # noqa: S607
            cwd=folder,
            check=True,
            capture_output=True,
        )
    (folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    (folder / "kubeconfig").write_text(yaml.safe_dump(KUBECONFIG))


@contextmanager
def small_lab(folder: Path) -> Iterator[SmallLab]:
    """etcd, API server, controller manager, scheduler, kube-proxy, a node and DNS."""
    lab = SmallLab(folder, kube())
    write_secrets(folder)
    own = ("--kubeconfig=kubeconfig",)
    with own_network():
        try:
            lab.start_kube("etcd", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=error")
            lab.start_api()
            lab.start_kubelet("node0", "--backoff-s=1", "--refresh-s=1", cidr="10.244.0.0/24")
            lab.start_kube(
                "kube-controller-manager",
                *own,
                "--leader-elect=false",
                "--service-account-private-key-file=sa.key",
                "--root-ca-file=certs/apiserver.crt",
            )
            lab.start_kube("kube-scheduler", *own, "--leader-elect=false")
            until(lambda: lab.get("node", "node0"))
            lab.start_kube(
                "kube-proxy",
                *own,
                "--proxy-mode=nftables",
                "--cluster-cidr=10.244.0.0/16",
                "--hostname-override=node0",
                "--conntrack-max-per-core=0",
                "--conntrack-tcp-timeout-established=0s",
                "--conntrack-tcp-timeout-close-wait=0s",
            )
            lab.start_python("dns", "tests.lab.dns", "--listen", f"{NODE_IP}:53")
            until(lambda: lab.get("serviceaccount", "default"))
            yield lab
        finally:
            for name in reversed(list(lab.running)):
                whole = name.startswith(("kube-", "etcd"))  # these have nothing to put in order
                lab.stop(name, signal.SIGKILL if whole else signal.SIGTERM)
