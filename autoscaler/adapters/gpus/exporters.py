# SPDX-License-Identifier: Apache-2.0
"""Where DCGM exporters answer: addresses from the settings, or the endpoints of their Service.

A Service's own address leads to one exporter by chance, so its endpoints are asked instead.
"""

from typing import Final
from urllib.parse import urlsplit

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.discovery import SERVICE_LABEL, Slice, found_in, parse_slice
from autoscaler.adapters.kubernetes.informer import Informer
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES
from autoscaler.adapters.plain_http import At

PATH: Final = "/metrics"


def place(url: str) -> At:
    """Where a URL leads that the settings have found to be one."""
    parts = urlsplit(url)
    return At(parts.hostname or "", parts.port or 80, parts.path or PATH)


class ServiceExporters:
    """The ready endpoints of one Service, by its EndpointSlices. `run` it beside the ticks."""

    def __init__(self, api: KubeApi, *, namespace: str, service: str) -> None:
        self._slices: Informer[Slice] = Informer(
            api,
            ENDPOINT_SLICES,
            parse=parse_slice,
            namespaces=(namespace,),
            label_selector=f"{SERVICE_LABEL}={service}",
        )

    @property
    def trouble(self) -> str:
        """Why the endpoints are not heard of now; empty when all is well."""
        return self._slices.trouble

    def places(self) -> tuple[At, ...]:
        slices = self._slices.objects.values()
        ports = [name for each in slices for name in each.ports]
        # Exporters have one port; where somebody added another, metrics are on the one so called.
        chosen = next((name for name in ports if "metrics" in name), ports[0] if ports else "")
        return tuple(
            At(found.host, found.port, PATH)
            for found in found_in(slices, chosen)
            if found.ready and not found.terminating
        )

    async def run(self) -> None:
        await self._slices.run()
