# SPDX-License-Identifier: Apache-2.0
"""What `tidegate admission` can be told. Every problem is told at once."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler_extender.admission.pods import Wiring
from scheduler_extender.errors import BadInput

# As Kubernetes names schedulers and runtime classes: RFC 1123.
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Settings:
    cert_file: Path
    key_file: Path
    host: str = "0.0.0.0"  # noqa: S104 - the API server comes from outside
    port: int = 8443
    wiring: Wiring = field(default_factory=Wiring)

    def validate(self) -> None:
        """Raises `BadInput` with a line for each problem."""
        problems = []
        for option, file in (("--cert-file", self.cert_file), ("--key-file", self.key_file)):
            if not file.is_file():
                problems.append(f"{option} {file}: there is no such file; name one in PEM")
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
