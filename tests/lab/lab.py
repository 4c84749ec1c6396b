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
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from tests.lab import access, asking, network, parts, processes
from tests.lab.access import API, write_kubeconfig
from tests.lab.build import Binaries
from tests.lab.component import GUARD, Component, tail
from tests.lab.parts import ETCD, FOLLOWERS, HEALTH, NODES, REPOSITORY

__all__ = ["CRDS", "NODES", "REPOSITORY", "Lab", "LabError", "kserve_crds"]

CRDS: Final = "TIDEGATE_KSERVE_CRDS"

_HELM_FOLDERS: Final = ("CACHE", "CONFIG", "DATA")


class LabError(Exception):
    """The lab did not do as it was told; the message says why."""


class Lab:
    """Start it once in a process; every test then takes a namespace of its own."""

    def __init__(self, binaries: Binaries) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-lab-"))
        self.binaries = binaries
        self.start_s = 0.0
        self._components: dict[str, Component] = {}
        self._namespaces = 0
        self._disturbed = False

    # Life

    def start(self) -> None:
        """Enter a new network and bring everything up there. Raises `LabError`, `OSError`."""
        try:
            self._start_all()
        except LabError as error:
            raise LabError(f"{error}\n{self.logs()}") from error

    def _start_all(self) -> None:
        began_s = time.monotonic()
        network.enter()
        access.write(self.folder)
        self._write_kubectl()
        for component in parts.parts(self.folder, self.binaries):
            self._components[component.name] = component
        kubelets = [parts.kubelet(node) for node in NODES]
        self._start("etcd", "kube-apiserver")
        self._wait_healthy("kube-apiserver")
        self._start("kube-controller-manager", "kube-scheduler", *kubelets, "dns")
        # kube-proxy sleeps through its first seconds if its Node is not there when it starts.
        self.wait_for(self._has_nodes, what="the nodes")
        self._start("kube-proxy")
        self._wait_healthy(*HEALTH)
        self.wait_for(lambda: self._has_account("default"), what="a service account")
        self.start_s = time.monotonic() - began_s

    def close(self, *, keep: bool = False) -> None:
        """End every process; `keep` leaves the folder with the logs."""
        for component in reversed(self._components.values()):
            # What has a health port keeps nothing that is of use any more.
            component.stop(kill=component.name in HEALTH)
        GUARD.close()
        shutil.rmtree(self.folder / "etcd" if keep else self.folder, ignore_errors=True)

    def run(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> Component:
        """Start one more process of the lab, to be ended with it."""
        return self._add(Component(name, command, self.folder, env or {}))

    def component(self, name: str) -> Component:
        return self._components[name]

    def find(self, name: str) -> Component | None:
        """None: it was never started here."""
        return self._components.get(name)

    def stop_component(self, name: str, *, kill: bool = False) -> None:
        self._components[name].stop(kill=kill)
        self._disturbed |= name in ("etcd", "kube-apiserver")

    def start_component(self, name: str) -> None:
        """Start what was stopped; it works again when this returns. Raises `LabError`."""
        self._start(name)
        self._wait_healthy(name)

    def restart(self, name: str, *, kill: bool = False) -> None:
        """Stop it and start it again. Raises `LabError`."""
        self.stop_component(name, kill=kill)
        self.start_component(name)

    def settle(self) -> None:
        """After an outage: have everybody look again at once, not after a back-off of up to 30 s.

        Every fresh namespace does it, so no test waits for what another one disturbed.
        """
        if self._disturbed:
            names = [name for name in FOLLOWERS if self._components[name].runs]
            for name in names:
                self._components[name].stop(kill=True)
            self._start(*names)
            self._wait_healthy(*names)
            self._disturbed = False

    def kill_pod(self, name: str) -> None:
        """SIGKILL every process of a pod, as a machine that runs out of memory would."""
        for pid in processes.of_pod(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def compact(self) -> int:
        """Drop etcd's history up to now; returns the revision.

        The API server still has what it saw itself: restart it too, and whoever resumes a watch
        from before is told 410.
        """
        found = asking.post(f"{ETCD}/v3/kv/range", {"key": "AA=="})
        revision = int(found["header"]["revision"])
        body = {"revision": str(revision), "physical": True}
        asking.post(f"{ETCD}/v3/kv/compaction", body)
        return revision

    def logs(self, lines: int = 25) -> str:
        """The last words of every component."""
        said = {one.log: one.tail(lines) for one in self._components.values()}
        return "\n".join(f"----- {log}\n{text}" for log, text in said.items() if text)

    def pod_logs(self, *, since: float, lines: int = 25) -> str:
        """The last words of the containers that spoke since then (`time.time()`)."""
        spoke = [p for p in self.folder.glob("*/pods/*/*.log") if p.stat().st_mtime >= since]
        return "\n".join(f"----- {path}\n{tail(path, lines)}" for path in spoke)

    # Use

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def env(self) -> dict[str, str]:
        """For programs that are to talk to this cluster."""
        return {
            **os.environ,
            "PATH": f"{self.binaries.folder}:{self.folder / 'bin'}:{network.PATH}",
            "KUBECONFIG": str(self.kubeconfig),
            # What another lab had is not what this one has.
            "KUBECACHEDIR": str(self.folder / "kubectl"),
            **{f"HELM_{what}_HOME": str(self.folder / "helm") for what in _HELM_FOLDERS},
        }

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
        self.settle()
        self._namespaces += 1
        name = f"{prefix}-{self._namespaces}"
        self.kubectl("create", "namespace", name)
        self.wait_for(lambda: self._has_account(name), what=f"namespace {name}")
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def wait_for(self, done: Callable[[], object], *, what: str, within_s: float = 30.0) -> Any:
        """Ask until the answer is true. Raises `LabError`.

        Raises it at once if a component has ended meanwhile that nobody stopped.
        """
        ends_s = time.monotonic() + within_s
        while not (answer := done()):
            for name, component in self._components.items():
                if component.ended is not None:
                    why = f"{name} ended by itself, status {component.ended}"
                    raise LabError(f"while waiting for {what}: {why}\n{component.tail()}")
            if time.monotonic() > ends_s:
                raise LabError(f"waited {within_s:g} s for {what}; logs are in {self.folder}")
            time.sleep(0.05)
        return answer

    def wait_api(self, within_s: float = 30.0) -> None:
        self._wait_healthy("kube-apiserver", within_s=within_s)

    def kubeconfig_for(self, account: str, *, namespace: str) -> Path:
        """A kubeconfig with the rights of a service account."""
        token = self.kubectl("create", "token", account, "-n", namespace).strip()
        path = self.folder / f"{namespace}-{account}.kubeconfig"
        return write_kubeconfig(path, token, namespace=namespace)

    def kwok(self) -> None:
        """Have kwok play the nodes labelled `type=kwok`, and the pods that are bound to them."""
        if "kwok" not in self._components or not self._components["kwok"].runs:
            self._add(parts.a_kwok(self.folder, self.binaries))
        self._wait_healthy("kwok")

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
        words = ("--kubeconfig", str(self.kubeconfig))
        component = self._add(parts.ours("kserve", "tests.lab.kserve", self.folder, *words))
        # The API server is busy for a while with so many new kinds.
        self.wait_for(lambda: "kserve_stands_in" in component.tail(50), what="KServe", within_s=60)

    # How it is made

    def _add(self, component: Component) -> Component:
        self._components[component.name] = component
        component.start()
        return component

    def _start(self, *names: str) -> None:
        for name in names:
            self._components[name].start()

    def _wait_healthy(self, *names: str, within_s: float = 30.0) -> None:
        for name in names:
            if name in HEALTH and name in self._components:
                self.wait_for(partial(asking.answers, HEALTH[name]), what=name, within_s=within_s)

    def _has_nodes(self) -> bool:
        found = asking.fetch(f"{API}/api/v1/nodes")["items"]
        return {node["metadata"]["name"] for node in found} >= set(NODES)

    def _has_account(self, namespace: str) -> bool:
        return asking.answers(f"{API}/api/v1/namespaces/{namespace}/serviceaccounts/default")

    def _write_kubectl(self) -> None:
        """`kubectl` as a command for those who work in the lab by hand."""
        command = self.folder / "bin" / "kubectl"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{self.binaries["kube"]}" kubectl "$@"\n')
        command.chmod(0o755)

    def _call(self, *command: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(  # noqa: S603  the lab's own programs
            command, input=stdin, env=self.env, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr


def kserve_crds() -> Path | None:
    """Where the archive of KServe's CRDs lies; None: not on this machine."""
    named = os.environ.get(CRDS)
    beside = REPOSITORY.parent / "shared" / "data" / "kserve" / "crds.tar.xz"
    archive = Path(named) if named else beside
    return archive if archive.is_file() else None
