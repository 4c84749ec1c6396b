# SPDX-License-Identifier: Apache-2.0
"""The activator as a pod: wires it to the Lease, the EndpointSlices and its own health port.

What the pod is, the downward API tells by POD_NAME, POD_NAMESPACE and POD_IP.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from autoscaler.activator.app import Activator, Settings
from autoscaler.activator.health import health_of
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.discovery import KubernetesDiscovery
from autoscaler.adapters.kubernetes.leader import leading_controller
from autoscaler.descriptors import raise_descriptor_limit
from autoscaler.errors import BadInput


@asynccontextmanager
async def serving(
    *,
    linger_s: float,
    grace_s: float,
    health_port: int,
    token: Path,
    lease: str,
    kubeconfig: Path | None,
) -> AsyncIterator[Activator]:
    """The pod's activator, ready to run."""
    settings = Settings(
        linger_s=linger_s,
        grace_s=grace_s,
        # A pod's ports are meant for everybody. Its own address, where it is known, keeps apart
        # pods that share a network.
        bind=os.environ.get("POD_IP") or "0.0.0.0",  # noqa: S104
        pod=_told("POD_NAME"),
        bearer=token,
    )
    namespace = _told("POD_NAMESPACE")
    async with (
        KubeApi.connect(kubeconfig) as api,
        leading_controller(api, namespace=namespace, lease=lease) as controller,
        KubernetesDiscovery(api) as discovery,
    ):
        one = Activator(
            settings,
            controller=controller,
            discovery=discovery,
            descriptors=raise_descriptor_limit(),
        )
        async with health_of(one, settings.bind or "", health_port):
            yield one


def _told(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise BadInput(
            f"{name} is not set; the pod's template has to set it from the downward API (fieldRef)"
        )
    return value
