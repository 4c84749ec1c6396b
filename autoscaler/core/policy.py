# SPDX-License-Identifier: Apache-2.0
"""What a user wants for one service, after `contract.py` has read and checked it."""

from dataclasses import dataclass
from enum import Enum, StrEnum

from autoscaler.core.signals import Query, Signal


@dataclass(frozen=True, slots=True)
class Target:
    """How much of a signal one replica should carry; `per_replica` > 0, in the signal's unit."""

    signal: Signal | Query
    per_replica: float


@dataclass(frozen=True, slots=True)
class RateStep:
    """One rate policy: within any `period_s` the count may move by this much.

    Exactly one of `replicas` and `ratio` (part of the count at the period's start) is set.
    """

    period_s: float
    replicas: int | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class RateRule:
    """How fast a wish may become a number, in one direction; HPA's `behavior`.

    No steps: no limit on speed. Of several steps the one that allows most counts.
    `window_s` None: learned (rule D3). `tolerance_ratio`: a wish this close to the present count is
    no reason to move.
    """

    steps: tuple[RateStep, ...] = ()
    window_s: float | None = None
    tolerance_ratio: float = 0.0


class InPath(StrEnum):
    """When the activator stands in a service's path."""

    AUTO = "auto"  # only while it is needed
    ALWAYS = "always"
    NEVER = "never"  # then nothing could hold a request, so the service never sleeps


@dataclass(frozen=True, slots=True)
class Window:
    """Bounds for the same hours of certain weekdays, by the clocks of one place.

    `days`: 0 is Monday. `begins_s` and `ends_s`: what the clocks show, as seconds after the day's
    midnight; a window that ends on the next day has `ends_s` above 86400. `zone`: an IANA name.
    A bound that is None is the service's own.
    """

    days: frozenset[int]
    begins_s: int
    ends_s: int
    zone: str
    min_replicas: int | None = None
    max_replicas: int | None = None


class Idle(Enum):
    """What stands in `scale-to-zero-after` when it is not a duration."""

    AUTO = "auto"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """One service's wishes, complete and in range. Durations in seconds."""

    policy: str = "target"
    targets: tuple[Target, ...] = (Target(Signal.CONCURRENCY, 1.0),)
    min_replicas: int = 0
    max_replicas: int = 1
    initial_replicas: int = 1
    activation_replicas: int = 1
    scale_to_zero_after: float | Idle = Idle.AUTO
    hold_timeout_s: float = 600.0
    hold_limit: int = 1000
    hold_bytes: int = 64 * 1024 * 1024
    cold_start_timeout_s: float = 1800.0
    scale_up: RateRule = RateRule(window_s=0.0, tolerance_ratio=0.1)
    scale_down: RateRule = RateRule(window_s=None, tolerance_ratio=0.1)
    signal_window_s: float = 6.0
    slots: int | None = None
    activator: InPath = InPath.AUTO
    schedule: tuple[Window, ...] = ()
    dry_run: bool = False
    paused: bool = False

    @property
    def queries(self) -> tuple[Query, ...]:
        """What Prometheus is to be asked for."""
        return tuple(target.signal for target in self.targets if isinstance(target.signal, Query))
