# SPDX-License-Identifier: Apache-2.0
"""A pod's place on the machine: its address, cgroup, folders, and how a program starts in it."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from autoscaler.adapters.local.guard import Guard
from autoscaler.adapters.local.process import ChildProcess, Launch
from tests.lab import images
from tests.lab.kubelet import launch
from tests.lab.kubelet.addresses import Addresses
from tests.lab.kubelet.cgroups import PodCgroups
from tests.lab.kubelet.env import NotYet, Place, environment, expand
from tests.lab.kubelet.probes import RunInside
from tests.lab.kubelet.volumes import Volumes
from tests.lab.rest import NotFound, Object, Refused, Rest

SAID_MAX = 300  # characters of what an exec probe printed
LAUNCH = (sys.executable, "-I", "-S", launch.__file__)
KINDS = {"ConfigMap": "configmaps", "Secret": "secrets"}


@dataclass(frozen=True, slots=True)
class Node:
    """What all pods of a node share."""

    rest: Rest
    name: str
    ip: str
    folder: Path
    addresses: Addresses
    cgroups: PodCgroups
    guard: Guard
    env: Mapping[str, str]  # of every container
    dns: str  # the cluster's name server
    backoff_s: float
    refresh_s: float  # how often volumes are looked at


class Sandbox:
    """One pod's. Call `open` first, `refresh` now and then, `close` when no program is left."""

    def __init__(self, pod: Object, node: Node) -> None:
        meta = pod["metadata"]
        self.ip = ""
        self.logs = node.folder / "pods" / f"{meta['namespace']}_{meta['name']}"
        self._private = self.logs / meta["uid"]
        self._pod = pod
        self._node = node
        self._cgroup = ""
        self._numbers = count()
        self._described: dict[int, Object] = {}  # by process id
        self._volumes: Volumes | None = None

    def open(self) -> None:
        """Take an address and make the folders. Raises `RetryLater`."""
        own_network = not self._pod["spec"].get("hostNetwork")
        wished = self._pod.get("status", {}).get("podIP", "")
        self.ip = self._node.addresses.take(wished=wished) if own_network else self._node.ip
        for folder in (
            self._private / "scratch",
            self._private / "specs",
            self._node.folder / "cache",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        (self._private / "resolv.conf").write_text(self._resolv_conf())
        if own_network:
            self._cgroup = self._node.cgroups.make(self._pod["metadata"]["uid"], self.ip)

    async def refresh(self) -> None:
        """Bring the volumes up to date. Raises `NotYet` or `RetryLater`."""
        if self._volumes is None:
            self._volumes = Volumes(
                self._private / "volumes",
                pod=self._pod,
                place=self._place(),
                find=self._find,
                ask_token=self._ask_token,
            )
        await self._volumes.refresh()

    def kill_rest(self) -> None:
        """Kill what the pod's programs started and left."""
        self._node.cgroups.kill(self._cgroup)

    def close(self) -> None:
        self._node.cgroups.remove(self._cgroup)
        shutil.rmtree(self._private, ignore_errors=True)
        if not self._pod["spec"].get("hostNetwork"):
            self._node.addresses.give_back(self.ip)

    async def start(self, container: Object) -> ChildProcess:
        """Start a container's program. Raises `NotYet`, `RetryLater` or `GiveUp`."""
        described = await self._describe(container)
        log = self.logs / f"{container['name']}.log"
        with suppress(FileNotFoundError):
            log.rename(log.with_suffix(".log.before"))
        command = (*LAUNCH, str(self._write(described)))
        child = ChildProcess(Launch(command=command, log=log), guard=self._node.guard)
        self._described[child.pid] = described
        child.exit.add_done_callback(lambda _: self._described.pop(child.pid, None))
        return child

    def inside(self, pid: int) -> RunInside:
        """What runs a command where the program `pid` runs."""

        async def run(command: list[str]) -> tuple[int, str]:
            described = self._described.get(pid)
            if described is None:
                return 1, "the container has ended"
            spec = self._write({**described, "argv": command, "join": pid})
            try:
                return await _run(spec)
            finally:
                spec.unlink()

        return run

    async def _describe(self, container: Object) -> Object:
        place = self._place()
        env = await environment(container, pod=self._pod, place=place, find=self._find)
        image = images.find(container["image"])
        env = {**(image.env if image else {}), **env}
        try:
            argv = images.argv(
                container["image"],
                command=[expand(word, env) for word in container.get("command", ())],
                args=[expand(word, env) for word in container.get("args", ())],
                ip=self.ip,
                cache=self._node.folder / "cache",
            )
        except images.NoSuchImage as error:
            raise NotYet("ErrImagePull", str(error)) from error
        return {
            "argv": argv,
            "env": env,
            "cwd": container.get("workingDir", "/"),
            "hostname": self._pod["spec"].get("hostname") or self._pod["metadata"]["name"],
            "cgroup": self._cgroup,
            "scratch": str(self._private / "scratch"),
            "mounts": list(self._mounts(container)),
            "join": 0,
        }

    def _mounts(self, container: Object) -> list[tuple[str, str, bool]]:
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", ())}
        mounts = []
        for mount in container.get("volumeMounts", ()):
            source = self._private / "volumes" / mount["name"]
            if part := mount.get("subPath"):
                source = (source / part).resolve()
                if "emptyDir" in volumes[mount["name"]]:
                    source.mkdir(parents=True, exist_ok=True)
            read_only = mount.get("readOnly", False) or "emptyDir" not in volumes[mount["name"]]
            mounts.append((str(source), mount["mountPath"], read_only))
        if self._pod["spec"].get("dnsPolicy") != "Default":
            mounts.append((str(self._private / "resolv.conf"), "/etc/resolv.conf", True))
        return mounts

    def _write(self, described: Object) -> Path:
        path: Path = self._private / "specs" / f"{next(self._numbers)}.json"
        path.touch(mode=0o600)  # it may hold what a Secret says
        path.write_text(json.dumps(described))
        return path

    def _place(self) -> Place:
        own = {"POD_IP": self.ip, "HOSTNAME": self._pod["metadata"]["name"]}
        return Place(self.ip, self._node.ip, {**self._node.env, **own})

    def _resolv_conf(self) -> str:
        namespace = self._pod["metadata"]["namespace"]
        searched = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
        return f"search {searched}\nnameserver {self._node.dns}\noptions ndots:5\n"

    async def _find(self, kind: str, name: str) -> Object | None:
        namespace = self._pod["metadata"]["namespace"]
        try:
            path = f"/api/v1/namespaces/{namespace}/{KINDS[kind]}/{name}"
            return {**await self._node.rest.get(path), "kind": kind}
        except NotFound:
            return None

    async def _ask_token(self, account: str, audience: str, lifetime_s: int) -> Object:
        meta = self._pod["metadata"]
        pod = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec = {"expirationSeconds": lifetime_s, "boundObjectRef": pod}
        if audience:
            spec["audiences"] = [audience]
        path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
        try:
            return await self._node.rest.create(path, {"spec": spec})
        except Refused as error:
            raise NotYet("ContainerCreating", str(error)) from error


async def _run(spec: Path) -> tuple[int, str]:
    child = await asyncio.create_subprocess_exec(
        *(*LAUNCH, str(spec)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said, _ = await child.communicate()
    finally:
        if child.returncode is None:  # the probe's time is over
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return child.returncode or 0, said.decode(errors="replace")[:SAID_MAX]
