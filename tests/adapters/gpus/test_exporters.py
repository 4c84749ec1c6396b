# SPDX-License-Identifier: Apache-2.0
"""Where exporters are: as the settings say, and as the EndpointSlices of their Service do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from autoscaler.adapters.gpus.exporters import GpuExporters
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.resources import ENDPOINT_SLICES
from autoscaler.adapters.plain_http import At
from tests.adapters.kubernetes.fake_api_server import FakeApiServer
from tests.adapters.kubernetes.waiting import until

SERVICE = ("gpu-operator", "nvidia-dcgm-exporter")
SLICE = ENDPOINT_SLICES.path("gpu-operator", "nvidia-dcgm-exporter-x7k2p")


def a_slice(*ready: str, unready: tuple[str, ...] = (), **ports: int) -> dict[str, Any]:
    conditions = dict.fromkeys(ready, True) | dict.fromkeys(unready, False)
    return {
        "metadata": {
            "name": "nvidia-dcgm-exporter-x7k2p",
            "namespace": "gpu-operator",
            "labels": {"kubernetes.io/service-name": "nvidia-dcgm-exporter"},
        },
        "addressType": "IPv4",
        "ports": [{"name": name.replace("_", "-"), "port": port} for name, port in ports.items()],
        "endpoints": [
            {"addresses": [address], "conditions": {"ready": is_ready}}
            for address, is_ready in conditions.items()
        ],
    }


@asynccontextmanager
async def following(exporters: GpuExporters) -> AsyncIterator[GpuExporters]:
    running = asyncio.create_task(exporters.run())
    yield exporters
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_ready_endpoints_of_the_service_are_followed(
    server: FakeApiServer, api: KubeApi
) -> None:
    await server.put(SLICE, a_slice("10.0.0.1", unready=("10.0.0.2",), gpu_metrics=9400))
    async with following(GpuExporters(api, service=SERVICE)) as exporters:
        await until(lambda: exporters.places() == (At("10.0.0.1", 9400, "/metrics"),), "finding it")
        assert exporters.trouble() == ""
        await server.put(SLICE, a_slice("10.0.0.1", "10.0.0.2", gpu_metrics=9400))
        await until(lambda: len(exporters.places()) == 2, "finding the other")
    (query,) = server.asked_for("list")
    assert query["labelSelector"] == "kubernetes.io/service-name=nvidia-dcgm-exporter"
    assert {path for _, path, _ in server.asked} == {ENDPOINT_SLICES.path("gpu-operator")}


async def test_of_several_ports_the_one_for_metrics_is_asked(
    server: FakeApiServer, api: KubeApi
) -> None:
    await server.put(SLICE, a_slice("10.0.0.1", debug=6060, metrics=9400))
    async with following(GpuExporters(api, service=SERVICE)) as exporters:
        await until(lambda: exporters.places() == (At("10.0.0.1", 9400, "/metrics"),), "finding it")


async def test_exporters_that_were_found_stay_while_the_api_server_is_away(
    server: FakeApiServer, api: KubeApi
) -> None:
    await server.put(SLICE, a_slice("10.0.0.1", metrics=9400))
    async with following(GpuExporters(api, service=SERVICE)) as exporters:
        await until(exporters.places, "finding it")
        await server.down()
        assert len(exporters.places()) == 1


async def test_a_service_that_leads_nowhere_is_named(server: FakeApiServer, api: KubeApi) -> None:
    async with following(GpuExporters(api, service=SERVICE)) as exporters:
        await server.until_watched()
        assert "gpu-operator/nvidia-dcgm-exporter is ready" in exporters.trouble()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://10.0.0.7:9400/metrics", At("10.0.0.7", 9400, "/metrics")),
        ("http://n7", At("n7", 80, "/metrics")),
        ("http://[fd00::7]:9400/gpu?a=b", At("fd00::7", 9400, "/gpu?a=b")),
    ],
)
async def test_urls_of_the_settings_are_asked_as_they_are(
    api: KubeApi, url: str, place: At
) -> None:
    exporters = GpuExporters(api, urls=[url])
    assert (exporters.named, exporters.places(), exporters.trouble()) == (True, (place,), "")


async def test_without_any_there_is_nothing_to_follow(api: KubeApi) -> None:
    exporters = GpuExporters(api)
    assert (exporters.named, exporters.places(), exporters.trouble()) == (False, (), "")
    await exporters.run()
