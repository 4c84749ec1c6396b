# SPDX-License-Identifier: Apache-2.0
"""Reads a page of NVIDIA's DCGM exporter into devices. Pure; only this file knows its names.

DCGM writes a huge number where it has none: which one depends on the field's type, from 2^31 - 16
up to 2^64 - 1. Such a value, a negative or a NaN is absent (rule D1).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from autoscaler.adapters.engines.exposition import Sample
from autoscaler.adapters.gpus.devices import Device

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Field:
    """One number of DCGM's: the most that it can be, and how many of its units make one of ours."""

    name: str
    most: float
    per: float = 1.0


UTILIZATION: Final = _Field("DCGM_FI_DEV_GPU_UTIL", most=100.0, per=100.0)
# Counted over an interval that is itself measured, so a busy GPU may come out a little above 1.
ENGINE_ACTIVE: Final = _Field("DCGM_FI_PROF_GR_ENGINE_ACTIVE", most=1.05)
MEMORY_USED: Final = _Field("DCGM_FI_DEV_FB_USED", most=1e8, per=1 / MIB)
MEMORY_FREE: Final = _Field("DCGM_FI_DEV_FB_FREE", most=1e8, per=1 / MIB)
MEMORY_RESERVED: Final = _Field("DCGM_FI_DEV_FB_RESERVED", most=1e8, per=1 / MIB)
MEMORY_TOTAL: Final = _Field("DCGM_FI_DEV_FB_TOTAL", most=1e8, per=1 / MIB)
POWER: Final = _Field("DCGM_FI_DEV_POWER_USAGE", most=1e5)
TEMPERATURE: Final = _Field("DCGM_FI_DEV_GPU_TEMP", most=1e3)

_FIELDS: Final = {
    field.name: field
    for field in (
        *(UTILIZATION, ENGINE_ACTIVE, POWER, TEMPERATURE),
        *(MEMORY_USED, MEMORY_FREE, MEMORY_RESERVED, MEMORY_TOTAL),
    )
}
# All of DCGM's: a page that tells nothing of what is read here still names its GPUs.
ASKED_FOR: Final = re.compile(r"DCGM_FI_[A-Z0-9_]+")

# Prometheus renames what the exporter wrote where its own labels have the same names; older
# exporters had names of their own. An empty text is no name.
_POD: Final = ("exported_pod", "pod_name", "pod")
_NAMESPACE: Final = ("exported_namespace", "pod_namespace", "namespace")
_NODE: Final = ("Hostname", "hostname")

Part = tuple[str, str | None]  # the GPU, and which MIG instance of it
Holder = tuple[str | None, str] | None  # namespace and pod; None: no pod has it


@dataclass(slots=True)
class _Rows:
    """What the rows of one device say, for one pod or for none."""

    profile: str | None
    node: str | None
    values: dict[str, float]

    def take(self, name: str, value: float) -> None:
        """Rows that repeat one another, for several containers of a pod, tell the same number.

        Where they do not, they were read one after the other: the larger keeps more replicas.
        """
        self.values[name] = max(value, self.values.get(name, value))


def devices(samples: Iterable[Sample]) -> tuple[Device, ...]:
    """Every device that the samples name, in their order; once for each pod that has it."""
    parts: dict[Part, dict[Holder, _Rows]] = {}
    for sample in samples:
        uuid = sample.labels.get("UUID") or sample.labels.get("uuid")
        if not uuid or not sample.name.startswith("DCGM_FI_"):
            continue
        labels = sample.labels
        part = (uuid, labels.get("GPU_I_ID") or None)
        rows = parts.setdefault(part, {}).setdefault(
            _holder(labels),
            _Rows(labels.get("GPU_I_PROFILE") or None, _first(labels, _NODE), {}),
        )
        field = _FIELDS.get(sample.name)
        if field is not None and 0 <= sample.value <= field.most:  # never true of NaN
            rows.take(field.name, sample.value / field.per)
    return tuple(
        _device(part, holder, rows)
        for part, holders in parts.items()
        for holder, rows in _held(holders).items()
    )


def _held(holders: Mapping[Holder, _Rows]) -> Mapping[Holder, _Rows]:
    """Rows that name no pod speak for each pod that other rows of the same device name."""
    unnamed = holders.get(None)
    if unnamed is None or len(holders) == 1:
        return holders
    named: dict[Holder, _Rows] = {one: rows for one, rows in holders.items() if one is not None}
    for rows in named.values():
        rows.values = unnamed.values | rows.values
    return named


def _holder(labels: Mapping[str, str]) -> Holder:
    pod = _first(labels, _POD)
    return None if pod is None else (_first(labels, _NAMESPACE), pod)


def _first(labels: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((labels[name] for name in names if labels.get(name)), None)


def _device(part: Part, holder: Holder, rows: _Rows) -> Device:
    values, (namespace, pod) = rows.values, holder or (None, None)
    engine_active = values.get(ENGINE_ACTIVE.name)
    used = values.get(MEMORY_USED.name)
    total = _memory_total(values)
    return Device(
        uuid=part[0],
        mig_profile=rows.profile,
        mig_id=part[1],
        node=rows.node,
        namespace=namespace,
        pod=pod,
        utilization_ratio=values.get(UTILIZATION.name),
        engine_active_ratio=None if engine_active is None else min(engine_active, 1.0),
        memory_used_bytes=None if used is None else round(used),
        memory_total_bytes=None if total is None else round(total),
        power_w=values.get(POWER.name),
        temperature_c=values.get(TEMPERATURE.name),
    )


def _memory_total(values: Mapping[str, float]) -> float | None:
    """As told, else the sum of its parts; exporters do not tell the total unless asked to."""
    total = values.get(MEMORY_TOTAL.name)
    used, free = values.get(MEMORY_USED.name), values.get(MEMORY_FREE.name)
    if total is not None or used is None or free is None:
        return total
    return used + free + values.get(MEMORY_RESERVED.name, 0.0)
