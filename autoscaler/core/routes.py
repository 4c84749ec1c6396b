# SPDX-License-Identifier: Apache-2.0
"""What an activator is told and what it tells: routes down, demand up.

Plain values; `autoscaler/channel.py` puts them on the wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica that requests may be sent to.

    `slots`: how many requests it takes at once, >= 1; None: no limit is known. A `draining` one
    gets no new request; it stays listed while its last ones are in flight.
    """

    id: str
    host: str
    port: int
    slots: int | None = None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """The Kubernetes Service port whose endpoints the activator finds by itself.

    It goes on finding them while no controller can be reached. `probe`: how a pod that is not yet
    marked ready may be asked whether it can serve: `tcp`, `http:PORT:/path`, or empty where only
    the platform can tell. `slots`: what one pod takes at once; None: no limit is known.
    """

    namespace: str
    service: str
    port_name: str
    probe: str = ""
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Everything an activator needs to serve one service. Replaced whole; never patched.

    `port`: the port of its own on which the activator listens for this service; where `hosts` are
    given the port is shared, and the Host header decides between the routes that share it.
    `backend`: where its endpoints are found; None: `endpoints` are all there are. With a backend,
    `endpoints` say which slots of those found are this activator's, and which of them drain.
    `in_path`: false once clients are better off without the activator: each answer then ends its
    connection. `state` and `why`: the controller's last word, quoted to clients whose wait fails.
    """

    service: str
    host: str
    port: int
    endpoints: tuple[Endpoint, ...] = ()
    hold_limit: int = 1000
    hold_bytes: int = 64 * 1024 * 1024
    hold_timeout_s: float = 600.0
    hosts: tuple[str, ...] = ()
    backend: Backend | None = None
    in_path: bool = True
    state: str = "asleep"
    why: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one activator process knows of one service; the totals grow for as long as it lives.

    `in_flight_by_endpoint`: endpoint id -> requests sent there and not finished. Integrals over
    time: `request_seconds_total` of held + in flight, `held_seconds_total` of held.

    `tunnels`: connections of which only bytes are seen (HTTP/2, WebSockets) and that are open now;
    each is one request, however many go through it.

    Of requests for generated text, as estimated: `prompt_tokens` of their prompts, `output_tokens`
    that they allow for their answers, and how many are `open_ended`, allowing any number.
    """

    service: str
    held: int = 0
    held_bytes: int = 0
    in_flight: int = 0
    in_flight_by_endpoint: Mapping[str, int] = field(default_factory=dict)
    requests_total: int = 0
    answered_total: int = 0
    overflow_total: int = 0
    expired_total: int = 0
    cancelled_total: int = 0
    broken_total: int = 0
    tunnels: int = 0
    tunnels_total: int = 0
    request_seconds_total: float = 0.0
    held_seconds_total: float = 0.0
    held_prompt_tokens: int = 0
    held_output_tokens: int = 0
    held_open_ended: int = 0
    prompt_tokens_total: int = 0
    output_tokens_asked_total: int = 0
    open_ended_total: int = 0

    def __add__(self, other: "Demand") -> "Demand":
        """Both together, under this one's name: a service may have several ports."""
        by_endpoint = dict(self.in_flight_by_endpoint)
        for endpoint, count in other.in_flight_by_endpoint.items():
            by_endpoint[endpoint] = by_endpoint.get(endpoint, 0) + count
        sums = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name not in ("service", "in_flight_by_endpoint")
        }
        return Demand(self.service, in_flight_by_endpoint=by_endpoint, **sums)
