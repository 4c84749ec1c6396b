# SPDX-License-Identifier: Apache-2.0
"""Runs the real Helm on our chart; only this file knows how."""

import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab import build

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tidegate"
NAMESPACE = "gate"

Manifest = dict[str, Any]


class Refused(Exception):
    """Helm did not render; its words."""


def find_helm() -> Path | None:
    """The lab's Helm, else one on the PATH, else none."""
    built = build.find()
    path = built["helm"] if built else shutil.which("helm")
    return Path(path) if path else None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects of one rendering."""

    objects: tuple[Manifest, ...]

    def of(self, kind: str) -> list[Manifest]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str) -> Manifest:
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    def pods(self) -> dict[str, Manifest]:
        """Pod templates by the name of their Deployment or DaemonSet."""
        owners = self.of("Deployment") + self.of("DaemonSet")
        return {one["metadata"]["name"]: one["spec"]["template"] for one in owners}

    def config(self) -> dict[str, Any]:
        """The controller's config file, parsed."""
        text = self.one("ConfigMap", "tidegate-controller")["data"]["tidegate.toml"]
        return tomllib.loads(text)

    def containers(self) -> Iterator[Manifest]:
        for pod in self.pods().values():
            yield from pod["spec"].get("initContainers", [])
            yield from pod["spec"]["containers"]


@dataclass(frozen=True, slots=True)
class Helm:
    binary: Path

    def run(self, *words: str) -> str:
        done = subprocess.run(  # noqa: S603  our own words
            [str(self.binary), *words], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise Refused(done.stdout + done.stderr)
        return done.stdout

    def render(
        self, values: Mapping[str, Any] | None = None, *, chart: Path = CHART, apis: str = ""
    ) -> Rendered:
        """Render in `NAMESPACE`. `values` are top-level keys; `apis`: served beside the usual."""
        words = ["template", "tide", str(chart), "--namespace", NAMESPACE, *set_values(values)]
        if apis:
            words += ["--api-versions", apis]
        return Rendered(tuple(filter(None, yaml.safe_load_all(self.run(*words)))))


def set_values(values: Mapping[str, Any] | None) -> list[str]:
    """Helm's flags for these values, types kept."""
    return [f"--set-json={key}={json.dumps(value)}" for key, value in (values or {}).items()]
