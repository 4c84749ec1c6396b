# SPDX-License-Identifier: Apache-2.0
"""The lab's programs: found, or built from Go modules into a cache outside the tree.

Only this file knows where they come from. `$TIDEGATE_LAB_BIN` names a folder that has them all.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
CONTROL_PLANE: Final = HERE / "control-plane"

KUBERNETES: Final = "v1.36.3"
HELM: Final = "helm.sh/helm/v4/cmd/helm@v4.3.1"
KWOK: Final = "sigs.k8s.io/kwok/cmd/kwok@v0.8.0"

_SIGN_OF_LIFE_S: Final = 30.0

PROGRAMS: Final = ("kube", "helm", "kwok")

_VERSION: Final = "k8s.io/component-base/version"
_LDFLAGS: Final = (
    f"-s -w -X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 "
    f"-X {_VERSION}.gitMinor={KUBERNETES.split('.')[1]}"
)


class CannotBuild(Exception):
    """This machine cannot build the lab; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where the lab's programs lie. `kube` is one program: its first argument is the component."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


def find() -> Binaries | None:
    """The programs, if somebody has built them already."""
    named = os.environ.get("TIDEGATE_LAB_BIN")
    folder = Path(named) if named else cache()
    return Binaries(folder) if all((folder / name).exists() for name in PROGRAMS) else None


def cache() -> Path:
    """The folder for exactly these versions; another version builds beside it."""
    sources = [CONTROL_PLANE / name for name in ("go.mod", "go.sum", "main.go")]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    digest.update(f"{_LDFLAGS} {HELM} {KWOK}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "tidegate-lab" / f"{KUBERNETES}-{digest.hexdigest()[:16]}"


def build() -> Binaries:
    """Find the programs, or build them: about five minutes. Raises `CannotBuild`."""
    found = find()
    if found is not None:
        return found
    if os.environ.get("TIDEGATE_LAB_BIN"):
        raise CannotBuild(
            f"TIDEGATE_LAB_BIN={os.environ['TIDEGATE_LAB_BIN']} lacks one of "
            f"{', '.join(PROGRAMS)}; name another folder, or unset it to have them built"
        )
    if sys.platform != "linux":
        raise CannotBuild("the lab runs on Linux only")
    go = shutil.which("go")
    if go is None:
        raise CannotBuild("there is no Go to build the control plane with; install Go 1.26")
    folder = cache()
    for name in PROGRAMS:
        if not (folder / name).exists():
            _build_one(go, name, folder)
    return Binaries(folder)


def _build_one(go: str, name: str, folder: Path) -> None:
    """Build one program beside its place and move it there whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        env = {**os.environ, "CGO_ENABLED": "0", "GOBIN": aside, "GOFLAGS": "-buildvcs=false"}
        if name == "kube":
            command = [go, "build", "-trimpath", f"-ldflags={_LDFLAGS}", "-o", f"{aside}/kube", "."]
            where = CONTROL_PLANE
        else:
            module = {"helm": HELM, "kwok": KWOK}[name]
            command = [go, "install", "-trimpath", "-ldflags=-s -w", module]
            where = Path(aside)
        _run(name, command, where, env)
        Path(aside, name).replace(folder / name)


def _run(name: str, command: list[str], where: Path, env: dict[str, str]) -> None:
    """Run a build, with a sign of life: the first one takes minutes and says nothing by itself."""
    began_s = time.monotonic()
    _say(f"lab: building {name}; it takes minutes the first time, and is kept")
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with this function
    with log:
        building = subprocess.Popen(  # noqa: S603  our own modules
            command, cwd=where, env=env, stdout=log, stderr=log
        )
        try:
            while not _ends(building, within_s=_SIGN_OF_LIFE_S):
                _say(f"lab: building {name}, {time.monotonic() - began_s:.0f} s so far")
        finally:
            building.kill()  # unless it has ended
        if building.returncode:
            log.seek(0)
            said = log.read().decode(errors="replace")[-2000:]
            raise CannotBuild(f"building {name} failed ({' '.join(command)}):\n{said}")
    _say(f"lab: built {name} in {time.monotonic() - began_s:.0f} s")


def _ends(building: subprocess.Popen[bytes], *, within_s: float) -> bool:
    try:
        building.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
