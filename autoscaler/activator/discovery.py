# SPDX-License-Identifier: Apache-2.0
"""Which endpoints a desk may use: what was found, less what the controller says of it. Pure.

Found are facts (address, readiness), the controller tells intentions (slots, draining). So each
activator goes on while no controller can be reached, and uses a new replica before one has heard
of it; and what the controller wants emptied is left, however ready it is.
"""

from collections.abc import Callable, Collection, Container
from typing import Protocol

from autoscaler.core.found import Found
from autoscaler.core.routes import Backend, Endpoint, Route

Service = tuple[str, str]  # namespace, name


class Discovery(Protocol):
    """Finds the endpoints of backends, from when it was told to until it is told otherwise.

    `on_change` is called with each service of which something new was found. Where looking fails,
    what was found before stays: that something cannot be seen does not mean that it is gone.
    """

    on_change: Callable[[Service], None]

    def follow(self, backends: Collection[Backend]) -> None:
        """Find these from now on, and nothing else."""

    def found(self, backend: Backend) -> tuple[Found, ...] | None:
        """Its endpoints; None: not known yet."""


def endpoints_of(
    route: Route,
    found: Collection[Found] | None,
    *,
    passing: Container[Found] = (),
    activators: int = 1,
) -> tuple[Endpoint, ...]:
    """The endpoints that the route's desk is to use.

    `passing`: those of `found` that are not ready by the platform's word and do answer.
    As long as nothing is known of a backend, the controller's word is all there is.
    """
    if route.backend is None or found is None:
        return route.endpoints
    told = {endpoint.id: endpoint for endpoint in route.endpoints}
    usable = [each for each in found if each.terminating or each.ready or each in passing]
    return tuple(_endpoint(each, told, route.backend, activators) for each in usable)


def _endpoint(
    found: Found, told: dict[str, Endpoint], backend: Backend, activators: int
) -> Endpoint:
    known = told.get(found.id)
    if known is None:
        slots, draining = _own_share(backend.slots, activators), False
    else:
        slots, draining = known.slots, known.draining
    return Endpoint(
        found.id, found.host, found.port, slots=slots, draining=draining or found.terminating
    )


def _own_share(slots: int | None, activators: int) -> int | None:
    """Of a replica's slots that nobody has dealt yet each activator takes its part, at least one.

    With fewer slots than activators that may be too many for a moment; the replica queues them.
    """
    return None if slots is None else max(1, slots // activators)
