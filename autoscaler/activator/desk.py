# SPDX-License-Identifier: Apache-2.0
"""One service's desk: its port, its queue, its clients, its connections to replicas.

Everything that happens at one service and is not about one request is here: the route it follows,
the timer that ends waits, what is told of it to the controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from time import monotonic
from typing import Final

from autoscaler.activator.errors import RETRY_AFTER_S
from autoscaler.activator.holding import Holding, Ticket, TicketState
from autoscaler.activator.listener import Listener
from autoscaler.activator.proxy import Client
from autoscaler.activator.upstream import Pool
from autoscaler.core.routes import Demand, Route

# Clients that are to go elsewhere leave with their next answer. A connection on which none was due
# for so long is closed: by then it is more likely forgotten than about to be used.
IDLE_PARTING_S: Final = 10.0


class Departures:
    """Sees clients leave whose bytes are not being read.

    A paused transport tells nothing of the other side's end; this asks the kernel for just that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Client] = {}
        self._descriptors: dict[Client, int] = {}
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, client: Client) -> None:
        fd = client.transport.get_extra_info("socket").fileno()
        if fd >= 0:
            self._watched[fd] = client
            self._descriptors[client] = fd
            self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def unwatch(self, client: Client) -> None:
        fd = self._descriptors.pop(client, None)
        if fd is not None and self._watched.get(fd) is client:
            del self._watched[fd]
            with contextlib.suppress(OSError):  # a closed descriptor has left the set by itself
                self._epoll.unregister(fd)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            client = self._watched.get(fd)
            if client is not None:
                self.unwatch(client)
                client.departed()


@dataclass(slots=True)
class Shared:
    """What all desks of one process share.

    `max_clients` bounds connections, so that descriptors for the replicas' side are left; `on_wait`
    is told when a desk's first request begins to wait, and whether no endpoint could be used.
    `name` is who this activator says it is.
    """

    loop: asyncio.AbstractEventLoop
    max_clients: int
    on_wait: Callable[[Desk, bool], None]
    departures: Departures
    shares_ports: bool = False
    name: str = ""
    clients: int = 0
    draining: bool = False


@dataclass(slots=True, eq=False)
class Desk:
    """One service at this activator. `alone`: the controller has been away for a while.

    `tunnels`: connections of which only bytes are seen, now and ever. `listener` is the port of its
    own, unless it has a `shared_listener`.
    """

    shared: Shared
    route: Route
    shared_listener: InitVar[Listener | None] = None
    listener: Listener = field(init=False)
    holding: Holding = field(init=False)
    pools: dict[str, Pool] = field(default_factory=dict)
    clients: set[Client] = field(default_factory=set)
    alone: bool = False
    cold_starts: int = 0
    tunnels: int = 0
    tunnels_total: int = 0
    _owns_listener: bool = True
    _dismissed: bool = False
    _parting_at_s: float | None = None
    _sweep: asyncio.TimerHandle | None = None
    _sweep_at_s: float = 0.0

    def __post_init__(self, shared_listener: Listener | None) -> None:
        route = self.route
        self._owns_listener = shared_listener is None
        self.listener = shared_listener or Listener(
            route.host,
            route.port,
            make_client=lambda: Client(self),
            shares_port=self.shared.shares_ports,
        )
        self.holding = Holding(
            hold_limit=route.hold_limit,
            hold_bytes=route.hold_bytes,
            hold_timeout_s=route.hold_timeout_s,
            now_s=monotonic(),
        )
        self.follow(route)

    # The route

    def follow(self, route: Route) -> None:
        """Take over a new route: bounds, endpoints, and whoever may go now goes."""
        self.route = route
        holding = self.holding
        holding.set_bounds(
            hold_limit=route.hold_limit,
            hold_bytes=route.hold_bytes,
            hold_timeout_s=route.hold_timeout_s,
        )
        addresses = {e.id: (e.host, e.port) for e in route.endpoints}
        for pool in list(self.pools.values()):
            if addresses.get(pool.endpoint) != (pool.host, pool.port):
                pool.close()
                del self.pools[pool.endpoint]
        for endpoint in route.endpoints:
            if endpoint.id not in self.pools:
                self.pools[endpoint.id] = Pool(
                    endpoint.id,
                    endpoint.host,
                    endpoint.port,
                    reached=holding.reached,
                    loop=self.shared.loop,
                )
            pool = self.pools[endpoint.id]
            if endpoint.draining:
                pool.close()
            else:
                pool.reopen()
        self._seat()
        self._set_parting(self._dismissed or not route.in_path)

    def set_alone(self, alone: bool) -> None:
        """The controller went away, or came back."""
        if alone is not self.alone:
            self.alone = alone
            self._seat()

    def _seat(self) -> None:
        """Hand the endpoints to the queue.

        When processes share a replica with fewer slots than processes, some hold none, and get one
        from the controller as soon as somebody waits there. Without the controller nobody could
        hand slots round, so then each process takes one where it has none: a replica that queues
        a request is better than a client that waits for a controller.
        """
        now_s = monotonic()
        open_ = [e for e in self.route.endpoints if not e.draining]
        stuck = self.alone and all(e.slots == 0 for e in open_)
        slots = {e.id: 1 if stuck and e.slots == 0 else e.slots for e in self.route.endpoints}
        draining = {e.id for e in self.route.endpoints if e.draining}
        for ticket in self.holding.set_endpoints(slots, now_s, draining=draining):
            ticket.owner.released(now_s)
        self.plan_sweep()

    def _set_parting(self, parting: bool) -> None:
        """Clients are to go elsewhere from now on, or may stay again."""
        if not parting:
            self._parting_at_s = None
        elif self._parting_at_s is None:
            self._parting_at_s = monotonic()
            for client in self.clients:
                client.drain()

    # The port

    @property
    def port(self) -> int:
        """The port on which it is reached; 0 if it is not."""
        return self.listener.port

    @property
    def problem(self) -> str:
        """Why it does not listen."""
        return self.listener.problem

    async def listen(self) -> None:
        """Listen on the route's port if that is not so already; `problem` says why not."""
        await self.listener.listen()

    # Clients

    @property
    def draining(self) -> bool:
        """Whether every answer must end its connection: clients do better elsewhere."""
        return self.shared.draining or self._parting_at_s is not None

    def admit(self, client: Client) -> bool:
        """A client has connected; false: there is no room for one more."""
        self.clients.add(client)
        self.shared.clients += 1
        return self.shared.clients <= self.shared.max_clients

    def forget(self, client: Client) -> None:
        """A client's connection has ended."""
        if client in self.clients:
            self.clients.remove(client)
            self.shared.clients -= 1

    def pass_on(self, client: Client, to: Desk) -> None:
        """This client's next request is for another desk."""
        self.clients.discard(client)
        to.clients.add(client)

    def watch(self, client: Client) -> None:
        self.shared.departures.watch(client)

    def unwatch(self, client: Client) -> None:
        self.shared.departures.unwatch(client)

    def soon(self, call: Callable[[], None]) -> None:
        self.shared.loop.call_soon(call)

    def waits(self, *, cold: bool) -> None:
        """A request has begun to wait."""
        self.plan_sweep()
        if self.holding.held == 1:
            self.shared.on_wait(self, cold)

    def leave(
        self, ticket: Ticket | None, now_s: float, fate: TicketState = TicketState.CANCELLED
    ) -> None:
        """A request ends without a whole answer; its seat goes to whoever waits longest."""
        if ticket is None:
            return
        if ticket.state is TicketState.IN_FLIGHT:
            following = self.holding.finish(ticket, now_s, fate)
        else:
            following = self.holding.cancel(ticket, now_s)
        if following is not None:
            following.owner.released(now_s)

    # Time

    def plan_sweep(self) -> None:
        """Have the sweep run when it next has something to do: one timer, however many wait."""
        due_s = self.holding.next_sweep_s()
        if due_s is None:
            return
        if self._sweep is not None:
            if due_s >= self._sweep_at_s:
                return  # it comes earlier, and will plan anew
            self._sweep.cancel()
        self._sweep_at_s = due_s
        self._sweep = self.shared.loop.call_later(max(0.0, due_s - monotonic()), self._run_sweep)

    def _run_sweep(self) -> None:
        self._sweep = None
        now_s = monotonic()
        expired, released = self.holding.sweep(now_s)
        for ticket in expired:
            ticket.owner.expire()
        for ticket in released:
            ticket.owner.released(now_s)
        self.plan_sweep()

    def tick(self, now_s: float) -> None:
        """Called every second or so."""
        for pool in self.pools.values():
            pool.close_stale(now_s)
        parting_at_s = self._parting_at_s
        late = parting_at_s is not None and now_s - parting_at_s >= IDLE_PARTING_S
        for client in list(self.clients):
            client.tick(now_s)
            if late:
                client.close_if_idle(since_s=now_s - IDLE_PARTING_S)

    # Words

    def overflow_words(self) -> str:
        route = self.route
        return (
            f"{route.service} already holds {self.holding.held} of at most {route.hold_limit} "
            f"requests ({self.holding.held_bytes} of {route.hold_bytes} bytes) while it is "
            f"{route.state}{self._why()}; come again in {RETRY_AFTER_S} s"
        )

    def expiry_words(self) -> str:
        route = self.route
        return (
            f"{route.service} took no request within {route.hold_timeout_s:g} s: "
            f"it is {route.state}{self._why()}"
        )

    def _why(self) -> str:
        return f" ({self.route.why})" if self.route.why else ""

    def demand(self, now_s: float) -> Demand:
        """What the controller is told."""
        holding = self.holding
        held_prompt_tokens, held_output_tokens, held_open_ended = holding.held_work
        prompt_tokens_total, output_tokens_asked_total, open_ended_total = holding.work
        return Demand(
            service=self.route.service,
            held=holding.held,
            held_bytes=holding.held_bytes,
            in_flight=holding.in_flight,
            in_flight_by_endpoint=holding.in_flight_by_endpoint(),
            requests_total=holding.arrived,
            answered_total=holding.answered,
            overflow_total=holding.refused,
            expired_total=holding.expired,
            cancelled_total=holding.cancelled,
            broken_total=holding.broken,
            tunnels=self.tunnels,
            tunnels_total=self.tunnels_total,
            request_seconds_total=holding.request_seconds(now_s),
            held_seconds_total=holding.held_seconds(now_s),
            held_prompt_tokens=held_prompt_tokens,
            held_output_tokens=held_output_tokens,
            held_open_ended=held_open_ended,
            prompt_tokens_total=prompt_tokens_total,
            output_tokens_asked_total=output_tokens_asked_total,
            open_ended_total=open_ended_total,
        )

    # The end

    @property
    def busy(self) -> bool:
        """Whether a request is held or in flight, or bytes of an answer have not gone out yet."""
        return bool(
            self.holding.held
            or self.holding.in_flight
            or any(client.transport.get_write_buffer_size() for client in self.clients)
        )

    def part(self) -> None:
        """End every connection with its next answer; go on taking in new ones."""
        self._set_parting(True)

    def drain(self) -> None:
        """Take no new connection, and end each with its next answer."""
        self.stop_listening()
        self.part()

    def close(self) -> None:
        """End everything at once."""
        self.stop_listening()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for pool in self.pools.values():
            pool.close()
        for client in list(self.clients):
            client.transport.abort()

    def dismiss(self) -> None:
        """The service is gone: nobody new, those held are sent away, those in flight may end."""
        self._dismissed = True
        self.drain()
        for client in list(self.clients):
            client.dismiss()
            client.close_if_idle()

    def stop_listening(self) -> None:
        """Close the port, if it is no other desk's too."""
        if self._owns_listener:
            self.listener.close()
