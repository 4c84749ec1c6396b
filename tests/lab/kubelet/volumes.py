# SPDX-License-Identifier: Apache-2.0
"""A pod's volumes as folders of the machine, in the layout of a kubelet: `key -> ..data/key`.

A changed ConfigMap, Secret or token appears at once as a whole: `..data` is swapped by a rename.
"""

import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.lab.kubelet.env import Find, NotYet, Place, content_of, field_of, resource_of
from tests.lab.rest import Object

Files = dict[str, bytes]
# Asks for a token: service account, audience ("" for the API server's), lifetime in seconds.
AskToken = Callable[[str, str, int], Awaitable[Object]]

RENEW_AT_RATIO = 0.8  # of a token's life


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: datetime


class Volumes:
    """The folders of one pod."""

    def __init__(
        self, folder: Path, *, pod: Object, place: Place, find: Find, ask_token: AskToken
    ) -> None:
        self._folder = folder
        self._pod = pod
        self._place = place
        self._find = find
        self._ask_token = ask_token
        self._tokens: dict[tuple[str, int], _Token] = {}
        self._written: dict[str, Files] = {}

    def path(self, volume: str) -> Path:
        return self._folder / volume

    async def refresh(self) -> None:
        """Write what is missing or has changed. Raises `NotYet` where something is not there."""
        for volume in self._pod["spec"].get("volumes", ()):
            name = volume["name"]
            self.path(name).mkdir(parents=True, exist_ok=True)
            if "emptyDir" in volume:
                self.path(name).chmod(0o777)
                continue
            files = await self._files(volume)
            if self._written.get(name) != files:
                replace_all(self.path(name), files)
                self._written[name] = files

    async def _files(self, volume: Object) -> Files:
        for kind, key in (("configMap", "name"), ("secret", "secretName")):
            if kind in volume:
                return await self._keys(kind, volume[kind], name=volume[kind].get(key, ""))
        if "downwardAPI" in volume:
            return self._downward(volume["downwardAPI"])
        if "projected" in volume:
            files: Files = {}
            for source in volume["projected"].get("sources", ()):
                files |= await self._projected(source)
            return files
        what = next((kind for kind in volume if kind != "name"), "nothing")
        raise NotYet("ContainerCreating", f"volume {volume['name']}: no {what} in the lab")

    async def _projected(self, source: Object) -> Files:
        if token := source.get("serviceAccountToken"):
            return {token["path"]: await self._token(token)}
        if "downwardAPI" in source:
            return self._downward(source["downwardAPI"])
        for kind in ("configMap", "secret"):
            if kind in source:
                return await self._keys(kind, source[kind], name=source[kind].get("name", ""))
        raise NotYet("ContainerCreating", f"projected source {next(iter(source))}: not in the lab")

    async def _keys(self, kind: str, source: Object, *, name: str) -> Files:
        found = await self._find(kind[0].upper() + kind[1:], name)
        if found is None:
            if source.get("optional"):
                return {}
            raise NotYet("ContainerCreating", f'{kind.lower()} "{name}" not found')
        content = content_of(found)
        if not source.get("items"):
            return content
        wanted = {item["path"]: item["key"] for item in source["items"]}
        missing = sorted(set(wanted.values()) - set(content))
        if missing and not source.get("optional"):
            raise NotYet("ContainerCreating", f"{kind} {name} has no key {', '.join(missing)}")
        return {path: content[key] for path, key in wanted.items() if key in content}

    def _downward(self, source: Object) -> Files:
        files = {}
        for item in source.get("items", ()):
            if field := item.get("fieldRef"):
                text = field_of(field["fieldPath"], pod=self._pod, place=self._place)
            else:
                reference = item["resourceFieldRef"]
                containers = {c["name"]: c for c in self._pod["spec"]["containers"]}
                text = resource_of(reference, containers[reference["containerName"]])
            files[item["path"]] = text.encode()
        return files

    async def _token(self, source: Object) -> bytes:
        asked = source.get("audience", ""), int(source.get("expirationSeconds", 3600))
        now = datetime.now(UTC)
        held = self._tokens.get(asked)
        if held is None or now >= held.renew_at:
            account = self._pod["spec"].get("serviceAccountName", "default")
            status = (await self._ask_token(account, *asked))["status"]
            ends = datetime.fromisoformat(status["expirationTimestamp"])
            held = _Token(status["token"], now + (ends - now) * RENEW_AT_RATIO)
            self._tokens[asked] = held
        return held.text.encode()


def replace_all(folder: Path, files: Files) -> None:
    """Make `files` (path -> content) the content of a volume, all at one moment."""
    mark = folder / "..data"
    old = os.readlink(mark) if mark.is_symlink() else ""
    fresh = folder / f"..{secrets.token_hex(6)}"
    fresh.mkdir()
    for path, content in files.items():
        at = fresh / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content)
    swap = folder / "..data_tmp"
    swap.symlink_to(fresh.name)
    swap.rename(mark)
    wanted = {path.split("/", 1)[0] for path in files}
    for name in wanted:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    if old:
        shutil.rmtree(folder / old)
