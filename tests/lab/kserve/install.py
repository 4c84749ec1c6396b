# SPDX-License-Identifier: Apache-2.0
"""Puts KServe into a running lab: its own CRDs, its ConfigMap, and the stand-in.

The CRDs are not part of this project: they are the files of KServe's `config/crd/full` in one
archive, `$TIDEGATE_KSERVE_CRDS`, else `shared/data/kserve/crds.tar.xz` beside the repository.
"""

import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.lab.lab import REPOSITORY, Lab

READY_LINE = "kserve_stands_in"


def crds() -> Path:
    named = os.environ.get("TIDEGATE_KSERVE_CRDS")
    return Path(named or REPOSITORY.parent / "shared" / "data" / "kserve" / "crds.tar.xz")


def why_impossible() -> str | None:
    """What is missing; None: nothing."""
    if crds().exists():
        return None
    return f"KServe's CRDs are not at {crds()}; set TIDEGATE_KSERVE_CRDS to where they are"


def install(lab: Lab, *, config: Mapping[str, str]) -> None:
    """Returns once InferenceServices are looked after. `config` is the ConfigMap's data."""
    unpacked = lab.folder / "kserve-crds"
    with tarfile.open(crds()) as packed:
        packed.extractall(unpacked, filter="data")
    plainly = ("--server-side", "--validate=false", "--recursive")
    lab.kubectl("apply", *plainly, "-f", str(unpacked))
    name = {"name": "inferenceservice-config", "namespace": "kserve"}
    lab.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": dict(config)},
    )
    command = (sys.executable, "-m", "tests.lab.kserve", "--kubeconfig", str(lab.kubeconfig))
    stand_in = lab.run("kserve", *command, env={"PYTHONPATH": str(REPOSITORY)})
    lab.wait_for(lambda: READY_LINE in stand_in.tail(50), what="KServe", within_s=60)
