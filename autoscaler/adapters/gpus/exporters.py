# SPDX-License-Identifier: Apache-2.0
"""Where DCGM exporters answer: addresses from the settings, or the endpoints of their Service.

A Service's own address leads to one exporter by chance, so its endpoints are asked instead.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.discovery import SERVICE_LABEL, Slice, found_in, parse_slice
from autoscaler.adapters.kubernetes.informer import Informer
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES
from autoscaler.adapters.plain_http import At

PATH: Final = "/metrics"


class GpuExporters:
    """Those of the settings, and the ready endpoints of one Service, by its EndpointSlices.

    `run` it beside the ticks.
    """

    def __init__(
        self, api: KubeApi, *, urls: Iterable[str] = (), service: tuple[str, str] | None = None
    ) -> None:
        """`service`: its namespace and name."""
        self._fixed = tuple(map(_place, urls))
        self._service = "/".join(service or ())
        self._slices: Informer[Slice] | None = None
        if service is not None:
            self._slices = Informer(
                api,
                ENDPOINT_SLICES,
                parse=parse_slice,
                namespaces=service[:1],
                label_selector=f"{SERVICE_LABEL}={service[1]}",
            )

    @property
    def named(self) -> bool:
        """Whether the settings name any."""
        return bool(self._fixed) or self._slices is not None

    def places(self) -> tuple[At, ...]:
        """Where exporters answer now; of a Service that cannot be watched, as was heard last."""
        slices = () if self._slices is None else tuple(self._slices.objects.values())
        ports = [name for each in slices for name in each.ports]
        # Exporters have one port; where somebody added another, metrics are on the one so called.
        chosen = next((name for name in ports if "metrics" in name), ports[0] if ports else "")
        found = [one for one in found_in(slices, chosen) if one.ready and not one.terminating]
        return (*self._fixed, *(At(one.host, one.port, PATH) for one in found))

    def trouble(self) -> str:
        """Why no endpoint of the Service is known; empty when one is, or none was named."""
        if self._slices is None or len(self.places()) > len(self._fixed):
            return ""
        return self._slices.trouble or f"no endpoint of the Service {self._service} is ready"

    async def run(self) -> None:
        """Follow the Service until cancelled; without one there is nothing to do."""
        if self._slices is not None:
            await self._slices.run()


def _place(url: str) -> At:
    """Where a URL leads that the settings have found to be one."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return At(parts.hostname or "", parts.port or 80, path or PATH)
