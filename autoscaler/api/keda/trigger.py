# SPDX-License-Identifier: Apache-2.0
"""What the metadata of a ScaledObject's trigger may say. A wrong key or value never half-applies.

KEDA hands over all of a trigger's metadata as texts, its own keys among them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from autoscaler import contract
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.signals import Query, ServiceId, Signal
from autoscaler.errors import BadInput
from autoscaler.text import Unreadable, bad_value, nearest, shortened, unknown_key

WISH: Final = "wish"  # how many replicas Tidegate would have
Asked = Literal["wish"] | Signal | Query

KEYS: Final = ("service", "signal", "target")
# Of KEDA's own triggers `external` and `external-push`.
THEIRS: Final = frozenset(
    ("scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile", "caCert", "tlsClientCert",
     "tlsClientKey")
)  # fmt: skip
SIGNALS: Final = ", ".join((WISH, *Signal, "prometheus(QUERY)"))
SERVICE: Final = "NAME or NAMESPACE/NAME"
AMOUNT: Final = "an amount from 0.001 to 1e9 such as 8 or 0.5; of kv and gpu-utilization also 80%"
# The HPA counts in thousandths, and what it counts in is an int64.
LEAST: Final = 0.001
MOST: Final = 1e9

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger: whose signal, and how much of it a replica should carry.

    `target` None: the service's own.
    """

    service: ServiceId
    signal: Asked
    target: float | None

    @property
    def metric(self) -> str:
        """The metric's name; part of a path in the Kubernetes API, so without `/` and brackets."""
        if isinstance(self.signal, Query):
            return "tidegate-prometheus"
        return f"tidegate-{self.signal.replace('/', '-per-')}"

    def per_replica(self, policy: ServicePolicy) -> float:
        """The target that holds. Raises `BadInput` where there is none, or no such query."""
        if isinstance(self.signal, Query) and self.signal not in policy.queries:
            there = ", ".join(map(str, policy.queries)) or "none"
            raise BadInput(
                f"signal: nobody asks {self.signal} for {self.service}; permitted: the queries in "
                f"its tidegate.dev/targets ({there})"
            )
        if self.target is not None:
            return self.target
        if self.signal == WISH:
            return 1.0
        for own in policy.targets:
            if own.signal == self.signal:
                return own.per_replica
        raise BadInput(
            f"target: {self.service} has no target for {self.signal} of its own; name one in the "
            f"trigger's metadata, or in tidegate.dev/targets of the service"
        )


def read(metadata: Mapping[str, str], *, namespace: str, name: str) -> Trigger:
    """The trigger of the ScaledObject `namespace`/`name`. Raises `BadInput`, a line a problem."""
    problems = [
        unknown_key(shortened(key), key, KEYS)
        for key in metadata
        if key not in KEYS and key not in THEIRS
    ]
    service = _service(metadata.get("service", name), namespace, problems)
    signal = _signal(metadata.get("signal", WISH), problems)
    target = metadata.get("target")
    amount = None if target is None else _amount(target, signal, problems)
    if problems:
        raise BadInput(*problems)
    return Trigger(service, signal, amount)


def _service(text: str, namespace: str, problems: list[str]) -> ServiceId:
    before, slash, after = text.strip().partition("/")
    service = ServiceId(before, after) if slash else ServiceId(namespace, before)
    if not _NAME.fullmatch(service.name) or not _NAME.fullmatch(service.namespace):
        problems.append(bad_value("service", text, SERVICE))
    return service


def _signal(text: str, problems: list[str]) -> Asked:
    text = text.strip()
    if text == WISH:
        return WISH
    try:
        (target,) = contract.targets(f"{text}=1")
    except (Unreadable, ValueError):
        why = nearest(text, (WISH, *Signal)).removeprefix(", ")
        problems.append(bad_value("signal", text, SIGNALS, why))
        return WISH
    return target.signal


def _amount(text: str, signal: Asked, problems: list[str]) -> float | None:
    text = text.strip()
    try:
        if signal == WISH:
            amount = float(text)
        else:
            (target,) = contract.targets(f"{signal}={text}")
            amount = target.per_replica
    except (Unreadable, ValueError) as why:
        detail = str(why) if isinstance(why, Unreadable) else ""
        problems.append(bad_value("target", text, AMOUNT, detail))
        return None
    if not LEAST <= amount <= MOST:
        problems.append(bad_value("target", text, AMOUNT))
        return None
    return amount
