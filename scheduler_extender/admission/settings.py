# SPDX-License-Identifier: Apache-2.0
"""What `tidegate admission` can be told. Every problem is told at once."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler_extender.admission.pods import Wiring
from scheduler_extender.errors import BadInput

# As Kubernetes names schedulers and runtime classes: RFC 1123.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Settings:
    """With `self_signed` there are no files, and else both."""

    cert_file: Path | None = None
    key_file: Path | None = None
    self_signed: str = ""  # the name of the Service and of both webhook configurations
    namespace: str = ""  # of the Service; empty: the pod's, or the kubeconfig context's
    kubeconfig: Path | None = None
    host: str = "0.0.0.0"  # noqa: S104 - the API server comes from outside
    port: int = 8443
    pages: tuple[str, int] | None = None  # where health and metrics are told without TLS
    wiring: Wiring = field(default_factory=Wiring)

    def validate(self) -> None:
        """Raises `BadInput` with a line for each problem."""
        problems = list(self._problems_of_certificate())
        if self.kubeconfig is not None and not self.kubeconfig.is_file():
            problems.append(
                f"--kubeconfig {self.kubeconfig}: there is no such file; name one, or leave it "
                "out in a pod"
            )
        wiring = self.wiring
        if not _NAME.fullmatch(wiring.scheduler):
            problems.append(
                f"--scheduler-name {wiring.scheduler!r}: lower-case letters, digits, dashes and "
                "dots, as spec.schedulerName has it"
            )
        if wiring.runtime_class and not _NAME.fullmatch(wiring.runtime_class):
            problems.append(
                f"--runtime-class {wiring.runtime_class!r}: the name of a RuntimeClass such as "
                "nvidia; leave it out where the runtime needs none"
            )
        if problems:
            raise BadInput(*problems)

    def _problems_of_certificate(self) -> Iterator[str]:
        files = (("--cert-file", self.cert_file), ("--key-file", self.key_file))
        if self.self_signed:
            if not _NAME.fullmatch(self.self_signed):
                yield (
                    f"--self-signed {self.self_signed!r}: the name of the webhook's Service, such "
                    "as tidegate-admission"
                )
            for option, file in files:
                if file is not None:
                    yield f"{option} {file}: not with --self-signed; give one or the other"
            return
        for option, file in files:
            if file is None:
                yield f"{option}: missing; name a file in PEM, or have --self-signed make both"
            elif not file.is_file():
                yield f"{option} {file}: there is no such file; name one in PEM"
