# SPDX-License-Identifier: Apache-2.0
"""Only this file says what a user can choose, with default, unit and a sentence for each.

The command line shows the sentences of `Settings` as its help; `validate` reports every problem at
once.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from serving.catalog import ModelFile
from serving.errors import BadInput

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS_BYTES = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def _knob(default: Any, unit: str, about: str) -> Any:
    return field(default=default, metadata={"unit": unit, "about": about})


@dataclass(frozen=True, slots=True)
class Settings:
    """How one worker runs.

    Everything is counted for each model on its own unless it says otherwise.
    """

    models: tuple[ModelFile, ...] = _knob((), "NAME=PATH", "What to serve.")
    host: str = _knob("127.0.0.1", "address", "Address to listen on; 0.0.0.0 for all.")
    port: int = _knob(
        8080, "port", "Port to listen on; 0 lets the kernel choose, the log says which."
    )
    threads: int = _knob(1, "threads", "Computing threads for one batch.")
    concurrency: int = _knob(
        1, "batches", "Batches of a model that run at once; threads x concurrency x models cores."
    )
    max_batch_size: int = _knob(
        32,
        "rows",
        "Most rows that requests are joined to; 1 joins none. One wider request runs alone.",
    )
    max_queue_delay_s: float = _knob(
        0.0,
        "seconds",
        "How long a batch that is not full waits for more (2ms); 0 sends what is there.",
    )
    max_queue_size: int = _knob(
        256, "requests", "Most requests that wait; more are answered 503 with Retry-After."
    )
    max_body_bytes: int = _knob(
        64 * 2**20, "bytes", "Largest request body (64Mi), also once unpacked; more is a 413."
    )
    drain_grace_s: float = _knob(
        30.0,
        "seconds",
        "After SIGTERM: how long requests may take to finish (30s); lingering is part of it.",
    )
    linger_s: float = _knob(
        3.0,
        "seconds",
        "After SIGTERM: how long new connections are still taken in, not being ready any more:"
        " kube-proxy sends them for 1 to 2 s. 0 where nobody sends here any more.",
    )
    listen_late: bool = _knob(
        False,
        "yes/no",
        "Open the port only once all models are loaded: for probes that merely connect, such as"
        " those that KServe gives its own servers.",
    )
    unsafe_pickle: bool = _knob(
        False, "yes/no", "Serve .pkl and .joblib too. Reading one runs the code in it."
    )
    trusted_types: tuple[str, ...] = _knob(
        (), "type name", "A type that a .skops file may hold besides those known to be harmless."
    )
    memory_max_bytes: int | None = _knob(
        None,
        "bytes",
        "Most memory that all models may take together: the pod's share of GPUs; None: no limit.",
    )

    def validate(self) -> list[str]:
        """All problems, each as name, value and allowed range; empty when there are none."""
        return [*self._out_of_range(), *self._bad_models()]

    def _out_of_range(self) -> Iterator[str]:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                yield f"{_flag(name)}: {value:g} is out of range, allowed is {low:g} to {high:g}"

    def _bad_models(self) -> Iterator[str]:
        if not self.models:
            yield "--model: nothing to serve; name at least one model as --model NAME=PATH"
        seen: set[str] = set()
        for model in self.models:
            if model.name in seen:
                yield f"--model: the name {model.name!r} is given twice; each model needs its own"
            seen.add(model.name)


DEFAULTS = Settings()

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "threads": (1, 1024),
    "concurrency": (1, 1024),
    "max_batch_size": (1, 1_000_000),
    "max_queue_delay_s": (0, 60),
    "max_queue_size": (1, 1_000_000),
    "max_body_bytes": (1, 2**40),
    "drain_grace_s": (0, 86_400),
    "linger_s": (0, 3_600),
}
_FLAGS = {
    "max_queue_delay_s": "--max-queue-delay (seconds)",
    "max_body_bytes": "--max-body (bytes)",
    "drain_grace_s": "--drain-grace (seconds)",
}


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def about(name: str) -> str:
    """The sentence of one setting, for the command line's help."""
    return str({f.name: f for f in fields(Settings)}[name].metadata["about"])


def as_seconds(value_s: float) -> str:
    """0.002 -> `2ms`; what `seconds` reads back."""
    return f"{value_s:g}s" if value_s >= 1 or value_s == 0 else f"{value_s * 1000:g}ms"


def as_size(value: int) -> str:
    """67108864 -> `64Mi`; what `size_bytes` reads back."""
    unit = max(
        (u for u, size in _UNITS_BYTES.items() if value % size == 0), key=_UNITS_BYTES.__getitem__
    )
    return f"{value // _UNITS_BYTES[unit]}{unit}"


def seconds(flag: str, text: str) -> float:
    """`2ms` -> 0.002. Raises BadInput."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)", text)
    if text.strip() == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise BadInput(
            f"{flag}: {text!r} is no duration; write one such as 500us, 2ms, 30s or 1m30s"
        )
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def size_bytes(flag: str, text: str) -> int:
    """`64Mi` -> 67108864. Raises BadInput."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi|)", text.strip())
    if found is None:
        raise BadInput(f"{flag}: {text!r} is no size; write a number and Ki, Mi or Gi: 64Mi")
    return int(found[1]) * _UNITS_BYTES[found[2]]
