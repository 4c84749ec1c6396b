# SPDX-License-Identifier: Apache-2.0
"""The config file of `tidegate run`: TOML -> `Settings`, or every problem with its remedy.

Unknown keys are errors. A service's policy keys are the contract's (`contract.py`); the keys here
are what one machine needs on top: how a replica is started and where clients connect.
"""

import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoscaler import contract
from autoscaler.config_table import FileKey, Table, between_s, seconds
from autoscaler.core.policy import InPath, ServicePolicy
from autoscaler.errors import BadInput
from autoscaler.prometheus_settings import (
    PROMETHEUS_KEYS,
    SECTION,
    PrometheusSettings,
    take_prometheus,
)
from autoscaler.text import DURATION, Unreadable, bad_value, unknown_key

NAME = "letters, digits and dashes, beginning with a letter, at most 63"
LISTEN = "HOST:PORT such as 127.0.0.1:8081"
WORKER_SLOTS = 4  # what the bundled worker serves at once where nobody says another number


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """`[controller]`."""

    api: Address = Address("127.0.0.1", 8070)  # status, decisions, metrics
    tick_s: float = 1.0  # seconds between two looks at everything; demand at zero does not wait
    state_dir: Path = Path(
        ".tidegate"
    )  # learned lead times, logs of replicas, the activator's socket


@dataclass(frozen=True, slots=True)
class ActivatorSettings:
    """`[activator]`."""

    processes: int = 1  # processes that share the services' ports
    drain_s: float = 30.0  # how long requests may finish when the activator is told to stop


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """`[services.NAME]`: how one service's replicas are run, and the policy they are scaled by."""

    name: str
    listen: Address
    command: tuple[str, ...]
    policy: ServicePolicy
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ready_path: str = "/v2/health/ready"
    metrics_path: str | None = None
    drain_grace_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    controller: ControllerSettings
    activator: ActivatorSettings
    services: tuple[ServiceSettings, ...]
    prometheus: PrometheusSettings | None = None
    keda: Address | None = None  # where the external scaler is served


FILE_KEYS: tuple[FileKey, ...] = (
    FileKey("controller", "api", LISTEN, "where the status API and /metrics are served",
            "127.0.0.1:8070"),
    FileKey("controller", "tick", DURATION + ", from 100ms to 1m",
            "time between two looks at all services; demand at zero is acted on at once", "1s"),
    FileKey("controller", "state-dir", "a folder", "what is learned, and the replicas' logs",
            ".tidegate"),
    FileKey("activator", "processes", "a whole number from 1 to 64",
            "processes that share the services' ports", "1"),
    FileKey("activator", "drain", DURATION, "how long requests may finish on stop", "30s"),
    *PROMETHEUS_KEYS,
    FileKey("keda", "listen", LISTEN, "where KEDA's external scaler is served, by gRPC", "off"),
    FileKey("services.NAME", "listen", LISTEN, "where clients of the service connect", "required"),
    FileKey("services.NAME", "models", "a table NAME = PATH",
            "serve these models with the bundled worker", "this or command"),
    FileKey("services.NAME", "command", "a list of words; {host} and {port} are filled in",
            "start any other server as a replica", "this or models"),
    FileKey("services.NAME", "env", "a table NAME = TEXT", "added to each replica's environment",
            "empty"),
    FileKey("services.NAME", "cwd", "a folder", "where replicas run", "where the controller runs"),
    FileKey("services.NAME", "ready-path", "a path that begins with /",
            "answers 200 once a replica can serve", "/v2/health/ready"),
    FileKey("services.NAME", "metrics-path", "a path that begins with /, or empty for none",
            "where a replica shows its metrics", "/metrics with models, else none"),
    FileKey("services.NAME", "drain-grace", DURATION,
            "how long a replica may finish before it is told to stop; 10s later it is killed",
            "30s"),
)  # fmt: skip

_SECTIONS = ("controller", "activator", SECTION, "keda", "services")


def load(path: Path) -> Settings:
    """Read the file. Raises `BadInput`: a line for each problem, with key, value and remedy."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as trouble:
        raise BadInput(
            f"{path}: {trouble.strerror}; name a config file with --config, "
            f"or try `tidegate demo` which writes its own"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as trouble:
        raise BadInput(f"{path}: not TOML: {trouble}") from None
    except RecursionError:
        raise BadInput(f"{path}: not TOML of ours: lists or tables nested far too deep") from None
    return parse(document, base=path.parent, where=f"{path}: ")


def parse(document: Mapping[str, Any], *, base: Path, where: str = "") -> Settings:
    """Settings from a parsed document; relative paths are relative to `base`."""
    problems: list[str] = []
    problems += [
        unknown_key(f"{where}[{name}]", name, _SECTIONS)
        for name in document
        if name not in _SECTIONS
    ]
    controller = _controller(Table(document, "controller", where, problems), base)
    activator = _activator(Table(document, "activator", where, problems))
    prometheus = take_prometheus(Table(document, SECTION, where, problems), base)
    keda = _keda(Table(document, "keda", where, problems))
    tables = document.get("services", {})
    if not isinstance(tables, dict) or not tables:
        problems.append(f"{where}[services.NAME]: there is none; add one table for each service")
        tables = {}
    services = [
        _service(Table(tables, name, f"{where}services.", problems), name, base) for name in tables
    ]
    complete = tuple(service for service in services if service is not None)
    _check_addresses(controller, keda, complete, where=where, problems=problems)
    _check_windows(controller, complete, where, problems)
    if problems:
        raise BadInput(*problems)
    return Settings(controller, activator, complete, prometheus, keda)


def _permitted(section: str, name: str) -> str:
    return next(k.permitted for k in FILE_KEYS if (k.section, k.name) == (section, name))


def _names(section: str) -> list[str]:
    return [key.name for key in FILE_KEYS if key.section == section]


def _controller(table: Table, base: Path) -> ControllerSettings:
    default = ControllerSettings()

    def take(name: str, fallback: Any, read: Any) -> Any:
        return table.take(name, fallback, read, _permitted("controller", name))

    settings = ControllerSettings(
        api=take("api", default.api, address),
        tick_s=take("tick", default.tick_s, between_s(0.1, 60.0)),
        state_dir=base / take("state-dir", default.state_dir, _path),
    )
    table.refuse_rest(_names("controller"))
    return settings


def _activator(table: Table) -> ActivatorSettings:
    default = ActivatorSettings()

    def take(name: str, fallback: Any, read: Any) -> Any:
        return table.take(name, fallback, read, _permitted("activator", name))

    settings = ActivatorSettings(
        processes=take("processes", default.processes, _whole(1, 64)),
        drain_s=take("drain", default.drain_s, seconds),
    )
    table.refuse_rest(_names("activator"))
    return settings


def _keda(table: Table) -> Address | None:
    listen: Address | None = table.take("listen", None, address, _permitted("keda", "listen"))
    table.refuse_rest(_names("keda"))
    return listen


def _service(table: Table, name: str, base: Path) -> ServiceSettings | None:
    if not (name[:1].isalpha() and name.replace("-", "").isalnum() and len(name) <= 63):
        table.problems.append(bad_value(table.where[:-1], name, NAME))

    def take(key: str, fallback: Any, read: Any) -> Any:
        return table.take(key, fallback, read, _permitted("services.NAME", key))

    before = len(table.problems)
    listen = take("listen", None, address)
    models = take("models", None, _models(base))
    command = take("command", None, _words)
    ours = command is None
    fields = {
        "env": take("env", {}, _texts),
        "cwd": take("cwd", None, _folder(base)),
        "ready_path": take("ready-path", "/v2/health/ready", _url_path),
        "metrics_path": take("metrics-path", "/metrics" if ours else "", _url_path_or_none) or None,
        "drain_grace_s": take("drain-grace", 30.0, seconds),
    }
    policy = _policy(table, slots=WORKER_SLOTS if ours else None)
    if listen is None and len(table.problems) == before:
        table.problems.append(f"{table.where}listen: missing; permitted: {LISTEN}")
    if (models is None) == (command is None) and len(table.problems) == before:
        table.problems.append(f"{table.where}models: give either models or command, one of the two")
    if len(table.problems) > before:
        return None
    return ServiceSettings(
        name, listen, command or _worker_command(models, policy.slots), policy, **fields
    )


def _policy(table: Table, *, slots: int | None) -> ServicePolicy:
    known = {key.name for key in contract.KEYS}
    ours = {name: table.values.pop(name) for name in list(table.values) if name in known}
    table.refuse_rest(_names("services.NAME") + sorted(known))
    try:
        policy = contract.policy_from(ours, where=table.where, slots=slots)
    except BadInput as wrong:
        table.problems.extend(wrong.problems)
        return ServicePolicy()
    if policy.activator is InPath.NEVER:
        why = "on one machine every request comes through the activator"
        table.problems.append(bad_value(f"{table.where}activator", "never", "auto, always", why))
    return policy


def _worker_command(models: Mapping[str, Path], slots: int | None) -> tuple[str, ...]:
    """How the bundled worker is started; by its own entry, so no package reaches into another."""
    served = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    start = (sys.executable, "-m", "autoscaler.cli", "worker")
    # The activator sends no more than `slots` at once, so that is all a worker ever has to queue.
    bounds = ("--host", "{host}", "--port", "{port}", "--max-queue-size", str(slots))
    # It is told to stop once the activator has no more for it: nobody is left to linger for.
    return (*start, *served, "--linger-s", "0", *bounds)


def _check_addresses(
    controller: ControllerSettings,
    keda: Address | None,
    services: tuple[ServiceSettings, ...],
    *,
    where: str,
    problems: list[str],
) -> None:
    # By port alone: what listens on 0.0.0.0 has it on every address.
    taken = {controller.api.port: "controller.api"}
    if keda is not None and keda.port:
        if keda.port in taken:
            problems.append(
                f"{where}keda.listen: {keda} is taken by controller.api; give each its own port"
            )
        taken[keda.port] = "keda.listen"
    for service in services:
        shown, port = f"services.{service.name}.listen", service.listen.port
        if port == 0:
            problems.append(
                f"{where}{shown}: port 0 is not permitted, clients must know where to connect; "
                f"permitted: 1 to 65535"
            )
        elif port in taken:
            problems.append(
                f"{where}{shown}: {service.listen} is taken by {taken[port]}; "
                f"give each its own port"
            )
        taken.setdefault(port, shown)


def _check_windows(
    controller: ControllerSettings,
    services: tuple[ServiceSettings, ...],
    where: str,
    problems: list[str],
) -> None:
    problems += [
        f"{where}services.{service.name}.signal-window: {service.policy.signal_window_s:g}s is not "
        f"permitted with a tick of {controller.tick_s:g}s; permitted: at least two ticks"
        for service in services
        if service.policy.signal_window_s < 2 * controller.tick_s
    ]


def address(value: object) -> Address:
    host, _, port = str(value).rpartition(":")
    if host.startswith("[") and host.endswith("]"):  # [::1]:8081, as in a URL
        host = host[1:-1]
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Unreadable
    return Address(host, int(port))


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Unreadable
    return Path(value)


def _folder(base: Path) -> Any:
    def read(value: object) -> Path:
        folder = base / _path(value)
        if not folder.is_dir():
            raise Unreadable(f"there is no folder {str(folder)!r}")
        return folder

    return read


def _models(base: Path) -> Any:
    def read(value: object) -> dict[str, Path]:
        if not isinstance(value, dict) or not value:
            raise Unreadable
        models = {str(name): (base / _path(path)).resolve() for name, path in value.items()}
        for name, path in models.items():
            if not path.exists():
                raise Unreadable(f"model {name}: there is no {path}")
        return models

    return read


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(w, str) for w in value):
        raise Unreadable
    if not value[0] or any("\0" in word for word in value):
        raise Unreadable("the first word names what to start, and none has a zero byte")
    return tuple(value)


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Unreadable
    texts = {str(name): str(text) for name, text in value.items()}
    for name, text in texts.items():
        if not name or "=" in name or "\0" in name + text:
            raise Unreadable(f"{name!r} is no name and text of an environment")
    return texts


def _url_path(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise Unreadable
    return value


def _url_path_or_none(value: object) -> str:
    return "" if value == "" else _url_path(value)


def _whole(least: int, most: int) -> Any:
    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Unreadable
        return value

    return read
