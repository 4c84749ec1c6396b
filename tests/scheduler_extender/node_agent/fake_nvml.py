# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 - the names are the library's
"""The stand-in for `pynvml` with what the node agent asks beside: reserves, modes, links."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

from tests.adapters.gpus.fake_nvml import NOT_SUPPORTED, Error, told
from tests.adapters.gpus.fake_nvml import FakeCard as Card
from tests.adapters.gpus.fake_nvml import FakeNvml as Nvml

GIB = 2**30
MIB = 2**20


@dataclass(eq=False)
class FakeCard(Card):
    """`nvlinks`: where each leads: another card, or None for a switch."""

    used: Any = 0
    total: int = 80 * GIB
    reserved: Any = 512 * MIB
    old_driver: bool = False
    compute_mode: Any = pynvml.NVML_COMPUTEMODE_DEFAULT
    remapped: Any = NOT_SUPPORTED
    bus: int = 0
    nvlinks: "list[FakeCard | None]" = field(default_factory=list)


@dataclass
class FakeNvml(Nvml):
    """`ways`: the topology level between two GPUs, by their UUIDs."""

    driver: str = "580.95.05"
    ways: dict[frozenset[str], int] = field(default_factory=dict)
    topologies_asked: int = 0
    counted: int = 0  # how often it was asked for the number of GPUs, as each reading does

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        self.counted += 1
        return super().nvmlDeviceGetCount()

    def nvmlDeviceGetMemoryInfo(self, card: Any, version: int | None = None) -> Any:
        if version is not None and card.old_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        used, total = card.tell(card.used), card.tell(card.total)
        if version is None:
            return SimpleNamespace(used=used, total=total)
        return SimpleNamespace(used=used, total=total, reserved=card.tell(card.reserved))

    def nvmlDeviceGetComputeMode(self, card: FakeCard) -> Any:
        return card.tell(card.compute_mode)

    def nvmlDeviceGetRemappedRows(self, card: FakeCard) -> Any:
        return card.tell(card.remapped)

    def nvmlDeviceGetPciInfo(self, card: FakeCard) -> Any:
        return SimpleNamespace(domain=0, bus=card.tell(card.bus), device=0)

    def nvmlDeviceGetNvLinkState(self, card: FakeCard, link: int) -> int:
        card.tell(None)
        if link >= len(card.nvlinks):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, card: FakeCard, link: int) -> int:
        there = card.nvlinks[link]
        return int(
            pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
            if there is None
            else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
        )

    def nvmlDeviceGetNvLinkRemotePciInfo(self, card: FakeCard, link: int) -> Any:
        there = card.nvlinks[link]
        return SimpleNamespace(domain=0, bus=99 if there is None else there.bus, device=0)

    def nvmlDeviceGetTopologyCommonAncestor(self, one: FakeCard, other: FakeCard) -> int:
        self.topologies_asked += 1
        level = self.ways.get(frozenset({one.uuid, other.uuid}))
        told(NOT_SUPPORTED if level is None else None)
        assert level is not None
        return level


def an_instance(uuid: str, *, profile: str = "1g.10gb", total: int = 10 * GIB) -> FakeCard:
    name = f"NVIDIA H100 80GB HBM3 MIG {profile}"
    unasked = Error(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return FakeCard(
        uuid, name=name, total=total, reserved=16 * MIB, compute_mode=unasked, uncorrected=unasked
    )
