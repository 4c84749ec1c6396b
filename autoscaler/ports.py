# SPDX-License-Identifier: Apache-2.0
"""What the loop needs of the world, each a protocol; `adapters/` has one file per technology.

Fakes for tests are in `tests/fakes.py`; the simulator brings its own in `simulations/world.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from autoscaler.core.budget import Room
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.replicas import Replica
from autoscaler.core.signals import Measures, NoReading, ServiceId
from scheduler_extender.core.demand import Demand


class Clock(Protocol):
    """Seconds that never go back; their zero means nothing."""

    def now_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service as the platform holds it now.

    `generation` changes whenever the policy or the scale changed, by whomever. `written_by`: who
    set `scale`, where that was neither Tidegate nor whoever made the service; else empty.
    """

    service: ServiceId
    policy: ServicePolicy
    generation: int
    scale: int
    replicas: tuple[Replica, ...]
    written_by: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An action was not carried out, and why. A value, not an error: the next tick sees anew."""

    why: str


class Cluster(Protocol):
    """Where services live and replicas run. The only thing that changes a replica count."""

    async def services(self) -> Mapping[ServiceId, ServiceView]:
        """Every service that opted in. Raises `RetryLater` when the platform cannot be asked."""
        ...

    async def scale(self, service: ServiceId, replicas: int, *, generation: int) -> Refusal | None:
        """Ask for `replicas`; refuse if the service's generation is no longer `generation`."""
        ...


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """How one source of numbers fares.

    `why`: what is wrong with it now; None: nothing. `age_s`: since it last answered; None: never.
    `asked`, `failed`: how often since the start, in the source's own units (scrapes, queries).
    """

    name: str
    why: str | None
    age_s: float | None
    asked: int
    failed: int


class SignalSource(Protocol):
    """One place that numbers come from; asked once a tick for all services together."""

    @property
    def name(self) -> str: ...

    def health(self) -> SourceHealth: ...

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        """What is known of each service. A failed read is `NoReading` in its place, never 0.

        A service or a measure that this source does not speak of is left out. Does not raise.
        """
        ...


class RouteTable(Protocol):
    """Whether the activator stands in a service's path, and what it is told about the service."""

    async def hold(self, service: ServiceId) -> bool:
        """Bring the activator into the path; true once it is proven to receive the requests."""
        ...

    async def release(self, service: ServiceId) -> None:
        """Take the activator out of the path. Where it always stands there, this does nothing."""
        ...

    def in_path(self, service: ServiceId) -> bool:
        """Whether the activator stands in the path now, proven or not."""
        ...

    async def announce(self, service: ServiceId, *, state: str, why: str) -> None:
        """Say how the service stands: clients whose wait fails are told these words."""
        ...


class Budget(Protocol):
    """What there is room for; asked only of services whose count is to rise. Does no I/O."""

    def needs(self, service: ServiceId) -> Demand | None:
        """What one more replica takes; None: no GPU, or nobody tells, and then nothing caps it."""
        ...

    def room(self) -> Room | NoReading:
        """What is free now. It may be read within this tick only."""
        ...


class MemoryStore(Protocol):
    """What outlives the controller's process."""

    async def load(self) -> Mapping[ServiceId, LeadTimes]: ...

    async def save(self, learned: Mapping[ServiceId, LeadTimes]) -> None: ...
