# SPDX-License-Identifier: Apache-2.0
"""Values of the adapters with every field filled in; a test names only what it is about."""

from collections.abc import Mapping
from pathlib import Path

from autoscaler.adapters.local.replicas import LocalService
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.signals import ServiceId


def a_service_id(name: str = "toy") -> ServiceId:
    return ServiceId("local", name)


def a_local_service(
    *command: str,
    name: str = "toy",
    port: int = 8001,
    initial_replicas: int = 0,
    cold_start_timeout_s: float = 60.0,
    slots: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    metrics_path: str | None = None,
    drain_grace_s: float = 10.0,
    stop_grace_s: float = 10.0,
) -> LocalService:
    """Up to ten replicas, none at first."""
    return LocalService(
        service=a_service_id(name),
        policy=ServicePolicy(
            max_replicas=10,
            initial_replicas=initial_replicas,
            cold_start_timeout_s=cold_start_timeout_s,
            slots=slots,
        ),
        port=port,
        command=command or ("true",),
        env=env or {},
        cwd=cwd,
        metrics_path=metrics_path,
        drain_grace_s=drain_grace_s,
        stop_grace_s=stop_grace_s,
    )
