# SPDX-License-Identifier: Apache-2.0
"""The simulated side of the loop's ports, and the way of a request through it.

Nothing here waits: every port answers at once, so the shipped loop runs in virtual time.
Requests are held, seated and let go by the activator's own `Holding`; replicas are modelled in
`replicas.py`. One service, and one activator that always stands in its path. A replica that drains
is not called back.
"""

from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autoscaler.activator.holding import Holding, Ticket, TicketState
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.replicas import ReplicaState
from autoscaler.core.signals import Measure, Measures, ServiceId, reading
from autoscaler.ports import Refusal, ServiceView, SourceHealth
from simulations.clock import VirtualClock
from simulations.events import EventQueue
from simulations.invariants import (
    ONE_FATE,
    InvariantViolated,
    check_bounds,
    check_held,
    check_sleep,
    check_slots,
)
from simulations.replicas import Chance, ColdStart, ServiceTime, SimulatedReplica
from simulations.traces.arrivals import Arrival

SERVICE = ServiceId("simulated", "service")

T = TypeVar("T")


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never really waits. Raises `RuntimeError` if it does."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        value: T = ended.value
        return value
    coroutine.close()
    raise RuntimeError(f"{coroutine} waited for something; in virtual time nothing may")


class SimulatedCluster:
    """One service and its replicas: the `Cluster` of a run. It alone changes a replica.

    `on_change` is called whenever the set of usable replicas changed, `on_ready` after one became
    ready. `in_use` says (held, in flight): the cluster itself sees neither, the invariants do.
    """

    def __init__(
        self,
        policy: ServicePolicy,
        *,
        slots: int,
        cold_start: ColdStart,
        clock: VirtualClock,
        events: EventQueue,
        chance: Chance,
    ) -> None:
        self.policy = policy
        self.slots = slots
        self.replicas: dict[str, SimulatedReplica] = {}
        self.scale_asked = 0
        self.cold_starts_s: list[float] = []
        self.abandoned_starts = 0
        self.moves: list[tuple[float, int]] = []  # (at_s, the count asked for from then on)
        self.on_change: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.in_use: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._cold_start = cold_start
        self._clock = clock
        self._events = events
        self._chance = chance
        self._generation = 1
        self._born = 0
        self._gone_replica_seconds = 0.0

    async def services(self) -> Mapping[ServiceId, ServiceView]:
        seen = tuple(replica.as_seen() for replica in self.replicas.values())
        view = ServiceView(SERVICE, self.policy, self._generation, self.scale_asked, seen)
        return {SERVICE: view}

    async def scale(self, service: ServiceId, replicas: int, *, generation: int) -> Refusal | None:
        if generation != self._generation:
            return Refusal(f"{service} has moved on to generation {self._generation}")
        self._check(replicas)
        self._ask_for(replicas)
        return None

    def begin_with(self, replicas: int) -> None:
        """Let the run begin with this many replicas, ready."""
        for _ in range(replicas):
            replica = self._born_replica()
            replica.state, replica.ready_at_s = ReplicaState.READY, self._clock.now_s()
        self.scale_asked = replicas
        self.moves.append((self._clock.now_s(), replicas))
        self.on_change()

    def endpoints(self) -> tuple[Mapping[str, int], Collection[str]]:
        """What the activator may use: endpoint -> slots, and which of them are draining."""
        up = {ReplicaState.READY, ReplicaState.DRAINING}
        listed = {r.id: self.slots for r in self.replicas.values() if r.state in up}
        return listed, [r.id for r in self.replicas.values() if r.state is ReplicaState.DRAINING]

    def began(self, replica_id: str) -> None:
        """A request takes one of the replica's slots."""
        replica = self.replicas[replica_id]
        replica.in_flight += 1
        check_slots(replica_id, in_flight=replica.in_flight, slots=self.slots)

    def ended(self, replica_id: str) -> None:
        """A request left its slot; a draining replica goes with its last one."""
        replica = self.replicas[replica_id]
        replica.in_flight -= 1
        if replica.state is ReplicaState.DRAINING and not replica.in_flight:
            self._gone(replica)
            self.on_change()

    def count(self, state: ReplicaState) -> int:
        return sum(replica.state is state for replica in self.replicas.values())

    def replica_seconds(self) -> float:
        """Seconds that replicas have been taken so far: from being asked for until gone."""
        now_s = self._clock.now_s()
        standing = (now_s - replica.asked_at_s for replica in self.replicas.values())
        return self._gone_replica_seconds + sum(standing)

    def _check(self, replicas: int) -> None:
        check_bounds(replicas, least=self.policy.min_replicas, most=self.policy.max_replicas)
        if replicas == 0:
            held, in_flight = self.in_use()
            check_sleep(held=held, in_flight=in_flight, start_failed=self._start_failed())

    def _start_failed(self) -> bool:
        """Whether all there is has been starting for longer than the cold-start timeout."""
        now_s, patience_s = self._clock.now_s(), self.policy.cold_start_timeout_s
        return all(r.state is ReplicaState.STARTING for r in self.replicas.values()) and any(
            now_s - r.asked_at_s >= patience_s - 1e-6 for r in self.replicas.values()
        )

    def _ask_for(self, replicas: int) -> None:
        self._generation += 1
        self.scale_asked = replicas
        self.moves.append((self._clock.now_s(), replicas))
        standing = [r for r in self.replicas.values() if r.state is not ReplicaState.DRAINING]
        for _ in range(replicas - len(standing)):
            self._start()
        # First those that are not ready yet, then the idlest, of equals the youngest.
        order = sorted(
            standing,
            key=lambda r: (r.state is ReplicaState.READY, r.in_flight, -r.asked_at_s),
        )
        for replica in order[: max(len(standing) - replicas, 0)]:
            self._stop(replica)
        self.on_change()

    def _born_replica(self) -> SimulatedReplica:
        self._born += 1
        replica = SimulatedReplica(f"replica-{self._born}", self._clock.now_s())
        self.replicas[replica.id] = replica
        return replica

    def _start(self) -> None:
        replica = self._born_replica()
        cold_s = self._cold_start.draw_s(self._chance)
        self._events.plan(self._clock.now_s() + cold_s, lambda: self._ready(replica, cold_s))

    def _ready(self, replica: SimulatedReplica, cold_s: float) -> None:
        if replica.id not in self.replicas:  # stopped while it was starting
            return
        replica.state, replica.ready_at_s = ReplicaState.READY, self._clock.now_s()
        self.cold_starts_s.append(cold_s)
        self.on_change()
        self.on_ready()

    def _stop(self, replica: SimulatedReplica) -> None:
        if replica.state is ReplicaState.STARTING:
            self.abandoned_starts += 1
        replica.state = ReplicaState.DRAINING
        if not replica.in_flight:
            self._gone(replica)

    def _gone(self, replica: SimulatedReplica) -> None:
        del self.replicas[replica.id]
        self._gone_replica_seconds += self._clock.now_s() - replica.asked_at_s


@dataclass(slots=True)
class Fates:
    """What became of the requests that ended. Seconds; one entry a request, in order of ending."""

    latencies_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)  # of the answered
    service_s: float = 0.0
    tokens: int = 0
    answered: int = 0
    refused: int = 0
    expired: int = 0
    cold: int = 0  # answered ones that began to wait with no replica ready


class SimulatedActivator:
    """Requests on their way: the `SignalSource` and `RouteTable` of a run.

    `on_wake` is called when the first request begins to wait with no endpoint to go to.
    """

    name = "activator"

    def __init__(
        self,
        cluster: SimulatedCluster,
        *,
        service_time: ServiceTime,
        clock: VirtualClock,
        events: EventQueue,
    ) -> None:
        policy = cluster.policy
        self.holding = Holding(
            hold_limit=policy.hold_limit,
            hold_bytes=policy.hold_bytes,
            hold_timeout_s=policy.hold_timeout_s,
            now_s=clock.now_s(),
        )
        self.fates = Fates()
        self.on_wake: Callable[[], None] = lambda: None
        self.state, self.why = "", ""
        self._cluster = cluster
        self._service_time = service_time
        self._clock = clock
        self._events = events
        self._running: dict[int, tuple[Arrival, float]] = {}
        self._sweep_planned_s: float | None = None
        self._most_held = 0
        cluster.on_change = self._endpoints_changed
        cluster.in_use = lambda: (self.holding.held, self.holding.in_flight)

    def health(self) -> SourceHealth:
        return SourceHealth(self.name, why=None, age_s=0.0, asked=0, failed=0)

    async def measure(self, services: Collection[ServiceId]) -> Mapping[ServiceId, Measures]:
        now_s, holding = self._clock.now_s(), self.holding
        levels = {
            Measure.HELD: float(holding.held),
            Measure.IN_FLIGHT: float(holding.in_flight),
            Measure.WAITING: 0.0,  # replicas get no more than their slots, so none queue inside
            Measure.REQUESTS_TOTAL: float(holding.arrived),
            Measure.REQUEST_SECONDS_TOTAL: holding.request_seconds(now_s),
            Measure.HELD_SECONDS_TOTAL: holding.held_seconds(now_s),
            Measure.TOKENS_TOTAL: self._tokens(now_s),
        }
        measures: Measures = {
            measure: reading(value, at_s=now_s, source=self.name)
            for measure, value in levels.items()
        }
        return {service: measures for service in services if service == SERVICE}

    async def hold(self, service: ServiceId) -> bool:
        return service == SERVICE

    async def release(self, service: ServiceId) -> None:
        """It stays: in a simulation it is the only way to the service."""

    def in_path(self, service: ServiceId) -> bool:
        return service == SERVICE

    async def announce(self, service: ServiceId, *, state: str, why: str) -> None:
        self.state, self.why = state, why

    def arrive(self, arrival: Arrival) -> None:
        """A request reaches the activator now."""
        ticket = self.holding.arrive(self._clock.now_s(), owner=arrival)
        if ticket.state is TicketState.IN_FLIGHT:
            self._begin(ticket)
            return
        if ticket.state is TicketState.REFUSED:
            self.fates.refused += 1
            return
        check_held(self.holding.held, limit=self._cluster.policy.hold_limit)
        self._most_held = max(self._most_held, self.holding.held)
        self._plan_sweep()
        if ticket.cold and self.holding.held == 1:
            self.on_wake()

    def most_held(self) -> int:
        """The most requests held at once since this was last asked."""
        most, self._most_held = self._most_held, self.holding.held
        return most

    def still_open(self) -> int:
        """Requests that have arrived and not ended."""
        return self.holding.held + len(self._running)

    def _begin(self, ticket: Ticket) -> None:
        arrival: Arrival = ticket.owner
        now_s = self._clock.now_s()
        if ticket.number in self._running:
            raise InvariantViolated(ONE_FATE, f"request {ticket.number} began twice")
        self._running[ticket.number] = (arrival, now_s)
        self._cluster.began(ticket.endpoint)
        service_s = self._service_time.of(
            prompt_tokens=arrival.prompt_tokens, output_tokens=arrival.output_tokens
        )
        self._events.plan(now_s + service_s, lambda: self._end(ticket, service_s))

    def _end(self, ticket: Ticket, service_s: float) -> None:
        now_s, fates = self._clock.now_s(), self.fates
        arrival, _ = self._running.pop(ticket.number)
        fates.answered += 1
        fates.latencies_s.append(now_s - ticket.arrived_at_s)
        fates.waits_s.append(ticket.held_s)
        fates.service_s += service_s
        fates.tokens += arrival.output_tokens
        fates.cold += ticket.cold
        seated = self.holding.finish(ticket, now_s)
        self._cluster.ended(ticket.endpoint)
        if seated is not None:
            self._begin(seated)

    def _endpoints_changed(self) -> None:
        slots, draining = self._cluster.endpoints()
        for ticket in self.holding.set_endpoints(slots, self._clock.now_s(), draining=draining):
            self._begin(ticket)

    def _plan_sweep(self) -> None:
        due_s = self.holding.next_sweep_s()
        if due_s is None or self._sweep_planned_s is not None:
            return
        self._sweep_planned_s = due_s
        self._events.plan(due_s, self._sweep)

    def _sweep(self) -> None:
        self._sweep_planned_s = None
        expired, seated = self.holding.sweep(self._clock.now_s())
        self.fates.expired += len(expired)
        for ticket in seated:
            self._begin(ticket)
        self._plan_sweep()

    def _tokens(self, now_s: float) -> float:
        """Output tokens generated so far; those of running requests come evenly."""
        per_token_s = self._service_time.s_per_output_token
        total = float(self.fates.tokens)
        for arrival, began_s in self._running.values():
            first_s = began_s + self._service_time.before_output_s(arrival.prompt_tokens)
            if per_token_s > 0 and now_s > first_s:
                total += min((now_s - first_s) / per_token_s, float(arrival.output_tokens))
        return total


class LearnedInRun:
    """The `MemoryStore` of a run: a run begins knowing nothing and forgets all at its end."""

    def __init__(self) -> None:
        self._learned: Mapping[ServiceId, LeadTimes] = {}

    async def load(self) -> Mapping[ServiceId, LeadTimes]:
        return self._learned

    async def save(self, learned: Mapping[ServiceId, LeadTimes]) -> None:
        self._learned = learned
