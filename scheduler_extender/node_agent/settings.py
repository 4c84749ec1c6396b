# SPDX-License-Identifier: Apache-2.0
"""What `tidegate node-agent` can be told. Every problem is told at once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler_extender.core.node_report import Enforcement
from scheduler_extender.errors import BadInput
from scheduler_extender.node_agent.enforcement import usual_pipes

AUTO: Final = "auto"
LEAST_EVERY_S: Final = 1.0
_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Settings:
    node: str = ""  # empty: nothing is written, which only `once` may do
    kubeconfig: Path | None = None
    host: str = "0.0.0.0"  # noqa: S104 - Prometheus and the kubelet come from outside
    port: int = 8074
    every_s: float = 10.0  # between two readings
    heartbeat_s: float = 300.0  # between two writes where nothing changed
    enforcement: str = AUTO
    holds: int = 0  # `nvidia.com/gpu` that this agent's own pod was given
    mps_pipes: Path = field(default_factory=usual_pipes)
    once: bool = False
    json: bool = False

    @property
    def stated(self) -> Enforcement | None:
        """None: go by what is seen."""
        return None if self.enforcement == AUTO else Enforcement(self.enforcement)

    def validate(self) -> None:
        """Raises `BadInput` with a line for each problem."""
        problems = []
        if not self.node and not self.once:
            problems.append(
                "--node: empty; name this node as `kubectl get nodes` does, or set NODE_NAME; "
                "with --once it may be left out, and nothing is written"
            )
        if self.node and not _NODE.fullmatch(self.node):
            problems.append(
                f"--node {self.node!r}: lower-case letters, digits, dashes and dots, as "
                "`kubectl get nodes` shows it"
            )
        if self.kubeconfig is not None and not self.kubeconfig.is_file():
            problems.append(
                f"--kubeconfig {self.kubeconfig}: there is no such file; name one, or leave it "
                "out in a pod"
            )
        if not self.every_s >= LEAST_EVERY_S:
            problems.append(
                f"--every-s {self.every_s:g}: seconds, {LEAST_EVERY_S:g} or more; 10 is usual"
            )
        if not self.heartbeat_s >= self.every_s:
            problems.append(
                f"--heartbeat-s {self.heartbeat_s:g}: seconds, no less than --every-s; 300 is usual"
            )
        levels = [AUTO, *Enforcement]
        if self.enforcement not in levels:
            problems.append(
                f"--enforcement {self.enforcement}: one of {', '.join(levels)}; auto claims only "
                "what it sees"
            )
        if self.holds < 0:
            problems.append(
                f"--holds {self.holds}: a number of GPUs, 0 where there is no device plugin"
            )
        if self.json and not self.once:
            problems.append("--json: only with --once, which prints one report and ends")
        if problems:
            raise BadInput(*problems)
