# SPDX-License-Identifier: Apache-2.0
"""The config file of `tidegate run --platform kubernetes`: TOML -> `ClusterSettings`.

How each service is scaled stands in its own annotations; the keys here are what the controller
itself needs. Unknown keys are errors.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from autoscaler.config_table import FileKey, Table, between_s
from autoscaler.errors import BadInput
from autoscaler.prometheus_settings import (
    PROMETHEUS_KEYS,
    SECTION,
    PrometheusSettings,
    take_prometheus,
)
from autoscaler.settings import LISTEN, Address, address
from autoscaler.text import DURATION, Unreadable, unknown_key

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
METRICS_URL = "http://HOST:PORT/PATH such as http://10.0.0.7:9400/metrics"
KIND = "PLURAL.VERSION.GROUP such as rollouts.v1alpha1.argoproj.io"


EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  a pod has an address of its own, with policies around it


@dataclass(frozen=True, slots=True)
class ScaleKind:
    """One more kind of object that has a scale subresource."""

    plural: str
    version: str
    group: str


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    api: Address = Address(EVERYWHERE, 8070)  # status and metrics are asked from other pods
    channel: Address = Address(EVERYWHERE, 8071)  # where activators connect from other pods
    tick_s: float = 1.0
    dcgm: tuple[str, ...] = ()  # URLs of the metrics of DCGM exporters
    dcgm_service: tuple[str, str] | None = None  # namespace and name of the Service before them
    namespaces: tuple[str, ...] = ()  # empty: the whole cluster
    scale_kinds: tuple[ScaleKind, ...] = ()
    prometheus: PrometheusSettings | None = None
    keda: Address | None = None  # where the leader serves the external scaler


CLUSTER_KEYS: Final[tuple[FileKey, ...]] = (
    FileKey("controller", "api", LISTEN, "where the status API and /metrics are served",
            "0.0.0.0:8070"),
    FileKey("controller", "channel", LISTEN, "where activators connect to the leading controller",
            "0.0.0.0:8071"),
    FileKey("controller", "tick", DURATION + ", from 100ms to 1m",
            "time between two looks at all services; demand at zero is acted on at once", "1s"),
    FileKey("gpus", "dcgm-service", "NAMESPACE/NAME, or empty for none",
            "the Service of NVIDIA's DCGM exporters; each of its endpoints is asked how busy the "
            "GPUs of a node are, for targets on gpu-utilization", "none"),
    FileKey("gpus", "dcgm", f"a list of {METRICS_URL}",
            "DCGM exporters that no Service leads to", "[]"),
    FileKey("kubernetes", "namespaces", "a list of namespaces; empty for all",
            "where to look for services", "[]"),
    FileKey("kubernetes", "scale-kinds", f"a list of {KIND}",
            "kinds that have a scale subresource, beside Deployments, StatefulSets, "
            "LeaderWorkerSets and what KServe makes", "[]"),
    *PROMETHEUS_KEYS,
    FileKey("keda", "listen", LISTEN, "where the leading controller serves KEDA's external scaler, "
            "by gRPC; the chart says 0.0.0.0:8073", "off"),
)  # fmt: skip


def load(path: Path | None) -> ClusterSettings:
    """Read the file; without one the defaults hold. Raises `BadInput` with a line a problem."""
    if path is None:
        return ClusterSettings()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as trouble:
        raise BadInput(f"{path}: {trouble.strerror}; name a config file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as trouble:
        raise BadInput(f"{path}: not TOML: {trouble}") from None
    return parse(document, base=path.parent, where=f"{path}: ")


def parse(document: Mapping[str, Any], *, base: Path = Path(), where: str = "") -> ClusterSettings:
    """Settings from a parsed document; relative paths are relative to `base`. Raises `BadInput`."""
    sections = list(dict.fromkeys(key.section for key in CLUSTER_KEYS))
    problems = [
        unknown_key(f"{where}[{name}]", name, sections) for name in document if name not in sections
    ]
    default = ClusterSettings()
    tables = {name: Table(document, name, where, problems) for name in sections}
    found: dict[str, Any] = {"prometheus": take_prometheus(tables.pop(SECTION), base)}
    for key in CLUSTER_KEYS:
        if key.section not in tables:
            continue
        field, read = _READ[key.name]
        fallback = getattr(default, field)
        found[field] = tables[key.section].take(key.name, fallback, read, key.permitted)
    for name, table in tables.items():
        table.refuse_rest([key.name for key in CLUSTER_KEYS if key.section == name])
    if problems:
        raise BadInput(*problems)
    return ClusterSettings(**found)


def _namespaces(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Unreadable
    for name in value:
        if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
            raise Unreadable(f"{name!r} is no name of a namespace")
    return tuple(dict.fromkeys(value))


def _urls(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Unreadable
    for url in value:
        try:
            parts = urlsplit(url if isinstance(url, str) else "")
            named = parts.scheme == "http" and parts.hostname and parts.port != 0
        except ValueError:  # a port that is none
            named = None
        if not named or not url.isascii() or not url.isprintable() or " " in url:
            raise Unreadable(f"{url!r} is not {METRICS_URL}")
    return tuple(dict.fromkeys(value))


def _service(value: object) -> tuple[str, str] | None:
    if value == "":
        return None
    namespace, _, name = str(value).partition("/")
    if not _NAMESPACE.fullmatch(namespace) or not _NAMESPACE.fullmatch(name):
        raise Unreadable
    return namespace, name


def _kinds(value: object) -> tuple[ScaleKind, ...]:
    if not isinstance(value, list):
        raise Unreadable
    kinds = []
    for text in value:
        match = re.fullmatch(r"([a-z0-9-]+)\.(v[0-9][a-z0-9]*)\.([a-z0-9.-]+)", str(text))
        if match is None:
            raise Unreadable(f"{text!r} is not {KIND}")
        kinds.append(ScaleKind(*match.groups()))
    return tuple(kinds)


_READ: Final[Mapping[str, tuple[str, Any]]] = {
    "api": ("api", address),
    "channel": ("channel", address),
    "tick": ("tick_s", between_s(0.1, 60.0)),
    "dcgm": ("dcgm", _urls),
    "dcgm-service": ("dcgm_service", _service),
    "namespaces": ("namespaces", _namespaces),
    "scale-kinds": ("scale_kinds", _kinds),
    "listen": ("keda", address),
}
