# SPDX-License-Identifier: Apache-2.0
"""What `tidegate extender` can be told. Every problem is told at once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler_extender.errors import BadInput
from scheduler_extender.reservations.plan import IDLE_S

LEAST_AUDIT_S: Final = 5.0
LEAST_IDLE_S: Final = 1.0
MOST_PLACEHOLDERS: Final = 100
_LABEL: Final = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True)
class PlaceholderSettings:
    """Of placeholder pods; see docs/extender.md."""

    enabled: bool = False
    most: int = 4  # at the same time: nodes that are asked for
    # Labels of the nodes that have GPUs, fresh ones too.
    node_selector: tuple[tuple[str, str], ...] = (("nvidia.com/gpu.present", "true"),)
    image: str = "registry.k8s.io/pause:3.10"
    priority_class: str = "tidegate-placeholder"

    def problems(self) -> list[str]:
        found = []
        if not 1 <= self.most <= MOST_PLACEHOLDERS:
            found.append(
                f"--most-placeholders {self.most}: a number from 1 to {MOST_PLACEHOLDERS}; leave "
                "out --placeholders to have none"
            )
        if not self.image:
            found.append("--placeholder-image: empty; name an image that does nothing")
        if not self.priority_class:
            found.append("--placeholder-priority: empty; name a PriorityClass that evicts nobody")
        return found


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8073
    kubeconfig: Path | None = None
    lease: str = "tidegate-extender"
    namespace: str = ""  # of the Lease; empty: the pod's, or the kubeconfig context's
    audit_s: float = 60.0  # seconds between two audits of all cards
    pages: tuple[str, int] | None = None  # where health and metrics are told too, and no verb
    preempt: bool = True  # evict pods of lower priority where GPUs alone are scarce
    reservation_pod: Path | None = None  # what reserves a card of a mixed node; None: nothing does
    reservation_idle_s: float = IDLE_S  # how long a reservation stays that nobody uses
    placeholders: PlaceholderSettings = PlaceholderSettings()
    scheduler: str = "tidegate-scheduler"  # `schedulerName` of the pods that placeholders are for

    def validate(self) -> None:
        """Raises `BadInput` with a line for each problem."""
        problems = []
        if not self.audit_s >= LEAST_AUDIT_S:
            problems.append(
                f"--audit-s {self.audit_s:g}: seconds, {LEAST_AUDIT_S:g} or more; 60 is usual"
            )
        if self.kubeconfig is not None and not self.kubeconfig.is_file():
            problems.append(
                f"--kubeconfig {self.kubeconfig}: there is no such file; name one, or leave it "
                "out in a pod"
            )
        if not self.lease:
            problems.append("--lease: empty; name the Lease that the extenders share")
        if not self.reservation_idle_s >= LEAST_IDLE_S:
            problems.append(
                f"--reservation-idle-s {self.reservation_idle_s:g}: seconds, {LEAST_IDLE_S:g} or "
                "more; 60 is usual"
            )
        if self.reservation_pod is not None and not self.reservation_pod.is_file():
            problems.append(
                f"--reservation-pod {self.reservation_pod}: there is no such file; name one of a "
                "Pod as YAML, or leave it out where no node is mixed"
            )
        if self.pages is not None and self.port and self.pages[1] == self.port:
            problems.append(
                f"--pages: port {self.port} is that of --listen; verbs are told from pages by the "
                "port, so choose another"
            )
        if not self.scheduler:
            problems.append(
                "--scheduler-name: empty; name the profile of the kube-scheduler that asks us, as "
                "spec.schedulerName of pods has it"
            )
        problems += self.placeholders.problems()
        if problems:
            raise BadInput(*problems)


def labels(text: str, *, option: str) -> tuple[tuple[str, str], ...]:
    """From `nvidia.com/gpu.present=true,pool=gpu`. Raises `BadInput`."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if not all(_LABEL.fullmatch(key) and equals and _VALUE.fullmatch(value)
               for key, equals, value in pairs):  # fmt: skip
        raise BadInput(
            f"{option} {text}: LABEL=VALUE, several with commas, such as "
            "nvidia.com/gpu.present=true; labels that every node with GPUs has"
        )
    return tuple((key, value) for key, _, value in pairs)


def listen_address(text: str, *, option: str = "--listen") -> tuple[str, int]:
    """Host and port from `127.0.0.1:8073` or `[::1]:8073`. Raises `BadInput`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(
            f"{option} {text}: HOST:PORT such as 127.0.0.1:8073; port 0 takes a free one"
        )
    return host, int(port)
