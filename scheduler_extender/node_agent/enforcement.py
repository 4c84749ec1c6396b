# SPDX-License-Identifier: Apache-2.0
"""What holds a pod to its share on this node: no more is claimed than can be seen, or was stated.

An operator states `cooperative` (the programs keep their own cap) or `dmem` (something on the node
sets limits of device memory for cgroups); neither can be seen from here. `mps` can: its server's
pipe is there, and the GPUs take no process but it.
"""

import os
import re
from pathlib import Path
from typing import Final

from scheduler_extender.node_agent.gpus import Machine
from scheduler_extender.node_report import Enforcement

USUAL_PIPES: Final = "/tmp/nvidia-mps"  # noqa: S108 - where NVIDIA's own programs have it
CGROUP_V2: Final = Path("/sys/fs/cgroup/cgroup.controllers")
DMEM_DRIVER: Final = 615  # the first that keeps limits of device memory by cgroup


def has_mps_server(pipes: Path) -> bool:
    return (pipes / "control").exists()


def usual_pipes() -> Path:
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or USUAL_PIPES)


def in_force(
    stated: Enforcement | None,
    machine: Machine,
    *,
    mps_server: bool,
    cgroup_v2: bool,
) -> tuple[Enforcement, str]:
    """The level, and why it is less than what was stated; None states nothing."""
    mps = mps_server and machine.one_process
    if stated is None:
        return (Enforcement.MPS if mps else Enforcement.NONE), ""
    if stated is Enforcement.MPS and not mps:
        lacks = "its GPUs take any process" if mps_server else "no MPS server has its pipe there"
        return Enforcement.NONE, f"mps was stated, but {lacks}"
    if stated is Enforcement.DMEM and not (cgroup_v2 and _number(machine.driver) >= DMEM_DRIVER):
        return Enforcement.NONE, (
            f"dmem was stated, but it needs driver {DMEM_DRIVER} or newer and cgroup v2; "
            f"the driver is {machine.driver or 'unknown'}"
        )
    return stated, ""


def _number(driver: str) -> int:
    match = re.match(r"\d+", driver)
    return int(match[0]) if match else 0
