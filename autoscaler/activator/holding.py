# SPDX-License-Identifier: Apache-2.0
"""Who waits, who goes to which endpoint, who is refused: one service's requests, without any I/O.

Pure: no clock, no event loop, no bytes of a protocol. Time comes in as `now_s`, requests are
`Ticket`s that carry their owner's object, and every call says at once what became of the ticket.
The activator drives it with sockets, the simulator with events.

    arrive --> IN_FLIGHT --finish--> ANSWERED | BROKEN | CANCELLED
       |            ^  \\--bounce--> IN_FLIGHT elsewhere, or HELD again at its old place
       |            |
       +--> HELD ---+ (a seat came free: oldest first)
       |      \\--sweep--> EXPIRED       \\--cancel--> CANCELLED
       +--> REFUSED (the queue is full by count or by bytes)

Rules, each kept after every call:
- H1 While anyone waits no seat is free; who waits longest is seated first, and newcomers never
  overtake.
- H2 `held <= hold_limit` and `held_bytes <= hold_bytes` (a bound that is lowered under what is
  already held evicts nobody; it only refuses newcomers).
- H3 An endpoint never has more requests than its slots, unless its slots were lowered meanwhile; a
  draining endpoint, and one that was set aside because it could not be reached, gets none.
- H4 Among the endpoints with a free slot the one with the fewest requests is chosen; equals take
  turns.
- H5 `arrived == held + in_flight + answered + broken + refused + expired + cancelled`.
- H6 `request_seconds` and `held_seconds` are exact integrals over time: of held + in flight, and
  of held.
- H7 `held_work` is the sum of the work of those held, `work` of all that ever arrived.

Every call costs O(1) amortised, but for `set_endpoints` and `sweep`, which cost what they change.
"""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

ASIDE_S = 0.05  # an endpoint that refused a connection is tried again after this long ...
ASIDE_MAX_S = 1.0  # ... doubled with every refusal in a row, up to this


class TicketState(Enum):
    """Where one request is. All but the first two are final."""

    HELD = "held"
    IN_FLIGHT = "in flight"
    ANSWERED = "answered"
    BROKEN = "broken"  # its endpoint failed it after it was sent there
    REFUSED = "refused"  # no room to hold it
    EXPIRED = "expired"  # waited longer than the hold timeout
    CANCELLED = "cancelled"  # its client went away, waiting or in flight


# What a request for generated text is estimated to cost: tokens of its prompt, tokens it allows its
# answer, and 1 if it allows any number of them. A plain tuple: one is made for each request.
Work = tuple[int, int, int]
NO_WORK: Work = (0, 0, 0)


class Ticket:
    """One request. `Holding` changes it; others only read.

    `owner` is whatever the caller handed to `arrive`. `endpoint` is set while IN_FLIGHT (and stays
    after). `was_held` and `held_s` (seconds, summed over all its waits) tell whether and how long
    it waited, `cold` whether no endpoint at all could be used when it began to wait. `work` is None
    unless it asks for generated text.
    """

    __slots__ = (
        "arrived_at_s",
        "cold",
        "endpoint",
        "held_s",
        "held_since_s",
        "number",
        "owner",
        "size_bytes",
        "state",
        "was_held",
        "work",
    )

    def __init__(
        self, number: int, owner: Any, arrived_at_s: float, size_bytes: int, work: Work | None
    ) -> None:
        self.number = number
        self.owner = owner
        self.arrived_at_s = arrived_at_s
        self.size_bytes = size_bytes
        self.work = work
        self.state = TicketState.IN_FLIGHT
        self.endpoint = ""
        self.was_held = False
        self.cold = False
        self.held_since_s = arrived_at_s
        self.held_s = 0.0


class _Seats:
    """One endpoint's slots and load; `open` while it stands in a bucket and may be chosen."""

    __slots__ = ("aside_until_s", "draining", "id", "load", "open", "refusals", "slots")

    def __init__(self, endpoint: str) -> None:
        self.id = endpoint
        self.slots: int | None = None
        self.draining = False
        self.load = 0
        self.open = False
        self.refusals = 0
        self.aside_until_s: float | None = None


class Holding:
    """The requests of one service: a bounded queue before endpoints with slots (rules above).

    Counters are plain attributes to read: `held`, `held_bytes`, `in_flight`, `arrived`,
    `answered`, `broken`, `refused`, `expired`, `cancelled`.
    """

    def __init__(
        self, *, hold_limit: int, hold_bytes: int, hold_timeout_s: float, now_s: float
    ) -> None:
        self.hold_limit = hold_limit
        self.hold_bytes = hold_bytes
        self.hold_timeout_s = hold_timeout_s
        self.held = self.held_bytes = self.in_flight = 0
        self.arrived = self.answered = self.broken = 0
        self.refused = self.expired = self.cancelled = 0
        self.work = self.held_work = NO_WORK
        self._queue: OrderedDict[int, Ticket] = OrderedDict()  # never seated yet, oldest first
        # Seated once and sent back, oldest first. Whoever was seated came before all who never were
        # (H1), so this heap always goes before the queue. Entries of tickets that left are skipped.
        self._sent_back: list[tuple[int, Ticket]] = []
        self._seats: dict[str, _Seats] = {}
        # _buckets[n]: the open endpoints with n requests, in the order they came to n (H4).
        self._buckets: list[dict[str, _Seats]] = [{}]
        self._lowest = 0  # no open endpoint has fewer requests than this
        self._open = 0
        self._usable = 0
        self._aside: set[str] = set()
        self._request_area = self._held_area = 0.0
        self._request_at_s = self._held_at_s = now_s

    # What is known

    @property
    def usable(self) -> int:
        """Endpoints that take new requests, now or as soon as a slot is free."""
        return self._usable

    def in_flight_by_endpoint(self) -> dict[str, int]:
        """Requests in flight at each endpoint that has some, also if it is no longer listed."""
        return {seats.id: seats.load for seats in self._seats.values() if seats.load}

    def request_seconds(self, now_s: float) -> float:
        """Integral of held + in flight until `now_s`, in request-seconds (H6)."""
        present = self.held + self.in_flight
        return self._request_area + present * max(0.0, now_s - self._request_at_s)

    def held_seconds(self, now_s: float) -> float:
        """Integral of held until `now_s`, in request-seconds (H6)."""
        return self._held_area + self.held * max(0.0, now_s - self._held_at_s)

    def oldest_held_at_s(self) -> float | None:
        """When the request that waits longest arrived; None if nobody waits."""
        ticket = self._first()
        return None if ticket is None else ticket.arrived_at_s

    def next_sweep_s(self) -> float | None:
        """When `sweep` has something to do next; None if nothing is due as things stand."""
        due = [self._seats[endpoint].aside_until_s or 0.0 for endpoint in self._aside]
        oldest = self.oldest_held_at_s()
        if oldest is not None:
            due.append(oldest + self.hold_timeout_s)
        return min(due, default=None)

    def choose(self) -> str | None:
        """The endpoint that has the fewest requests, for one that is not counted (a health check).

        Slots do not matter to it. None: no endpoint can be used.
        """
        able = [s for s in self._seats.values() if not s.draining and s.aside_until_s is None]
        return min(able, key=lambda s: s.load).id if able else None

    # What happens to one request

    def arrive(
        self, now_s: float, *, size_bytes: int = 0, owner: Any = None, work: Work | None = None
    ) -> Ticket:
        """A request comes in. Its ticket is IN_FLIGHT (see `endpoint`), HELD or REFUSED.

        `size_bytes`: the memory that keeping it takes at most; counted against `hold_bytes` while
        it is held. `work`: what is known of its cost; it is the ticket's from now on.
        """
        self.arrived += 1
        ticket = Ticket(self.arrived, owner, now_s, size_bytes, work)
        if work is not None:
            self.work = _sum(self.work, work)
        if self._open and not self.held:
            self._count_requests(now_s)
            self._seat(ticket, now_s)
        elif not self._hold(ticket, now_s):
            ticket.state = TicketState.REFUSED
            self.refused += 1
        return ticket

    def allows(self, ticket: Ticket, output_tokens: int | None) -> None:
        """It has become known how many output tokens a request allows; None: any number."""
        if ticket.work is None:
            raise ValueError(f"allows: ticket {ticket.number} came without an estimate")
        more = (0, output_tokens or 0, int(output_tokens is None))
        ticket.work, self.work = _sum(ticket.work, more), _sum(self.work, more)
        if ticket.state is TicketState.HELD:
            self.held_work = _sum(self.held_work, more)

    def finish(
        self, ticket: Ticket, now_s: float, fate: TicketState = TicketState.ANSWERED
    ) -> Ticket | None:
        """A request in flight ended as `fate`: ANSWERED, BROKEN or CANCELLED.

        Returns the held ticket that got the seat, now IN_FLIGHT: the caller sends it on its way.
        """
        if ticket.state is not TicketState.IN_FLIGHT:
            raise ValueError(
                f"finish: ticket {ticket.number} is {ticket.state.value}, not in flight"
            )
        if fate is TicketState.ANSWERED:
            self.answered += 1
        elif fate is TicketState.BROKEN:
            self.broken += 1
        elif fate is TicketState.CANCELLED:
            self.cancelled += 1
        else:
            raise ValueError(f"finish: a request in flight cannot end as {fate.value}")
        self._count_requests(now_s)
        ticket.state = fate
        self._unseat(ticket)
        return self._release_one(now_s) if self.held else None

    def cancel(self, ticket: Ticket, now_s: float) -> Ticket | None:
        """The client went away, waiting or in flight. Returns what `finish` returns.

        A ticket whose fate is sealed already is left as it is.
        """
        if ticket.state is TicketState.IN_FLIGHT:
            return self.finish(ticket, now_s, TicketState.CANCELLED)
        if ticket.state is TicketState.HELD:
            self._unhold(ticket, now_s, TicketState.CANCELLED)
            self.cancelled += 1
        return None

    def bounce(self, ticket: Ticket, now_s: float, *, blame: bool) -> Ticket | None:
        """A request in flight turned out never to have reached its endpoint: find it a new place.

        With `blame` the endpoint could not be reached at all and is set aside for a while. The
        ticket is then IN_FLIGHT again, HELD at its old place in the order, EXPIRED or REFUSED: read
        its state. Returns another ticket that got the seat it left, as `finish` does.
        """
        if ticket.state is not TicketState.IN_FLIGHT:
            raise ValueError(
                f"bounce: ticket {ticket.number} is {ticket.state.value}, not in flight"
            )
        self._count_requests(now_s)
        seats = self._seats[ticket.endpoint]
        self._unseat(ticket)
        if blame:
            self._set_aside(seats, now_s)
        if self._open:  # whoever was seated before is older than all who wait (H1)
            self._seat(ticket, now_s)
        elif now_s >= ticket.arrived_at_s + self.hold_timeout_s:
            ticket.state = TicketState.EXPIRED
            self.expired += 1
        elif not self._hold(ticket, now_s, back=True):
            ticket.state = TicketState.REFUSED
            self.refused += 1
        return self._release_one(now_s) if self.held else None

    def reached(self, endpoint: str) -> None:
        """A connection to `endpoint` came about: forget its earlier refusals."""
        seats = self._seats.get(endpoint)
        if seats is not None:
            seats.refusals = 0

    # What happens to all of them

    def set_bounds(self, *, hold_limit: int, hold_bytes: int, hold_timeout_s: float) -> None:
        """New bounds; the timeout counts for those already waiting too, from their arrival."""
        self.hold_limit = hold_limit
        self.hold_bytes = hold_bytes
        self.hold_timeout_s = hold_timeout_s

    def set_endpoints(
        self, slots: Mapping[str, int | None], now_s: float, *, draining: Collection[str] = ()
    ) -> list[Ticket]:
        """Replace the endpoints: id -> slots (None: no limit; 0: none for us at present).

        Those in `draining`, and those no longer listed, keep what they have and get nothing new.
        Returns the held tickets that were seated by this, oldest first.
        """
        for endpoint, seats in list(self._seats.items()):
            if endpoint not in slots:
                self._close(seats)
                seats.draining, seats.slots = True, 0
                self._forget_aside(seats)
                if not seats.load:
                    del self._seats[endpoint]
        for endpoint, count in slots.items():
            seats = self._seats.setdefault(endpoint, _Seats(endpoint))
            seats.slots = count
            seats.draining = endpoint in draining
            if seats.draining:
                self._forget_aside(seats)
            self._place(seats)
        self._recount_usable()
        return self._release_all(now_s)

    def sweep(self, now_s: float) -> tuple[list[Ticket], list[Ticket]]:
        """Let time pass: (tickets now EXPIRED, held tickets now IN_FLIGHT), both oldest first."""
        expired = []
        while (ticket := self._first()) is not None:
            if now_s < ticket.arrived_at_s + self.hold_timeout_s:
                break
            self._unhold(ticket, now_s, TicketState.EXPIRED)
            self.expired += 1
            expired.append(ticket)
        for endpoint in list(self._aside):
            seats = self._seats[endpoint]
            if seats.aside_until_s is not None and now_s >= seats.aside_until_s:
                self._forget_aside(seats)
                self._place(seats)
        self._recount_usable()
        return expired, self._release_all(now_s)

    # The queue

    def _first(self) -> Ticket | None:
        while self._sent_back:
            ticket = self._sent_back[0][1]
            if ticket.state is TicketState.HELD:
                return ticket
            heapq.heappop(self._sent_back)
        return next(iter(self._queue.values()), None)

    def _hold(self, ticket: Ticket, now_s: float, *, back: bool = False) -> bool:
        size_bytes = self.held_bytes + ticket.size_bytes
        if self.held >= self.hold_limit or size_bytes > self.hold_bytes:
            return False
        self._count_requests(now_s)
        self._count_held(now_s)
        ticket.state = TicketState.HELD
        ticket.was_held = True
        ticket.held_since_s = now_s
        ticket.cold = ticket.cold or not self._usable
        self.held += 1
        self.held_bytes = size_bytes
        if ticket.work is not None:
            self.held_work = _sum(self.held_work, ticket.work)
        if back:
            heapq.heappush(self._sent_back, (ticket.number, ticket))
        else:
            self._queue[ticket.number] = ticket
        return True

    def _unhold(self, ticket: Ticket, now_s: float, state: TicketState) -> None:
        self._count_requests(now_s)
        self._count_held(now_s)
        ticket.state = state
        ticket.held_s += max(0.0, now_s - ticket.held_since_s)
        self.held -= 1
        self.held_bytes -= ticket.size_bytes
        if ticket.work is not None:
            self.held_work = _difference(self.held_work, ticket.work)
        self._queue.pop(ticket.number, None)

    def _release_one(self, now_s: float) -> Ticket | None:
        if not self._open:
            return None
        ticket = self._first()
        if ticket is None:
            return None
        if self._sent_back and self._sent_back[0][1] is ticket:
            heapq.heappop(self._sent_back)
        self._unhold(ticket, now_s, TicketState.IN_FLIGHT)
        self._seat(ticket, now_s)
        return ticket

    def _release_all(self, now_s: float) -> list[Ticket]:
        released = []
        while self.held and (ticket := self._release_one(now_s)) is not None:
            released.append(ticket)
        return released

    # The seats

    def _seat(self, ticket: Ticket, now_s: float) -> None:
        """Seat the ticket at the least loaded open endpoint; there must be one (`_open` > 0)."""
        buckets = self._buckets
        while not buckets[self._lowest]:
            self._lowest += 1
        seats = next(iter(buckets[self._lowest].values()))
        ticket.endpoint = seats.id
        ticket.state = TicketState.IN_FLIGHT
        self.in_flight += 1
        self._move(seats, 1)

    def _unseat(self, ticket: Ticket) -> None:
        self.in_flight -= 1
        seats = self._seats[ticket.endpoint]
        self._move(seats, -1)
        if not seats.load and seats.draining and seats.slots == 0:
            del self._seats[seats.id]  # it was no longer listed, and this was its last request

    def _move(self, seats: _Seats, by: int) -> None:
        """Change an endpoint's load by one, and with it its bucket."""
        if seats.open:
            del self._buckets[seats.load][seats.id]
        seats.load = load = seats.load + by
        if seats.draining or seats.aside_until_s is not None:
            may_open = False
        else:
            may_open = seats.slots is None or load < seats.slots
        if may_open is not seats.open:
            seats.open = may_open
            self._open += 1 if may_open else -1
        if may_open:
            if load == len(self._buckets):
                self._buckets.append({})
            self._buckets[load][seats.id] = seats
            if load < self._lowest:
                self._lowest = load

    def _place(self, seats: _Seats) -> None:
        """Put an endpoint where its load, slots and standing say it belongs."""
        while len(self._buckets) <= seats.load:
            self._buckets.append({})
        full = seats.slots is not None and seats.load >= seats.slots
        if seats.draining or seats.aside_until_s is not None or full:
            self._close(seats)
        elif not seats.open:
            seats.open = True
            self._open += 1
            self._buckets[seats.load][seats.id] = seats
            self._lowest = min(self._lowest, seats.load)

    def _close(self, seats: _Seats) -> None:
        if seats.open:
            seats.open = False
            self._open -= 1
            del self._buckets[seats.load][seats.id]

    def _set_aside(self, seats: _Seats, now_s: float) -> None:
        if seats.draining or self._seats.get(seats.id) is not seats:
            return
        # Many connections may fail in one moment; that is one refusal, not many.
        if seats.aside_until_s is None:
            seats.aside_until_s = now_s + min(ASIDE_MAX_S, ASIDE_S * 2 ** min(seats.refusals, 16))
            seats.refusals += 1
            self._aside.add(seats.id)
            self._close(seats)
            self._recount_usable()

    def _forget_aside(self, seats: _Seats) -> None:
        seats.aside_until_s = None
        self._aside.discard(seats.id)

    def _recount_usable(self) -> None:
        self._usable = sum(
            not seats.draining and seats.aside_until_s is None for seats in self._seats.values()
        )

    # The integrals

    def _count_requests(self, now_s: float) -> None:
        if now_s > self._request_at_s:
            present = self.held + self.in_flight
            self._request_area += present * (now_s - self._request_at_s)
            self._request_at_s = now_s

    def _count_held(self, now_s: float) -> None:
        if now_s > self._held_at_s:
            self._held_area += self.held * (now_s - self._held_at_s)
            self._held_at_s = now_s


def _sum(of: Work, more: Work) -> Work:
    return of[0] + more[0], of[1] + more[1], of[2] + more[2]


def _difference(of: Work, less: Work) -> Work:
    return of[0] - less[0], of[1] - less[1], of[2] - less[2]
