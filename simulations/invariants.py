# SPDX-License-Identifier: Apache-2.0
"""What must hold in every run, each under one name; a run that breaks one ends with that name.

The checks are cheap, and always on: a report that was printed is a report of a run that kept them.
"""

from autoscaler.errors import TidegateError

MONOTONE_CLOCK = "the clock never goes back"
CONSERVED = "I10 requests are conserved"
ONE_FATE = "I1 each request ends once"
WITHIN_BOUNDS = "the replica count stays within the policy's bounds"
WITHIN_SLOTS = "no endpoint gets more requests than it has slots"
HELD_BOUNDED = "I6 the held queue is bounded"
NO_SLEEP_IN_USE = "no service sleeps while a request is held or in flight"
FLUID_BOUND = "no run uses fewer replica-seconds than its answers took"

NAMES = (
    CONSERVED,
    ONE_FATE,
    WITHIN_BOUNDS,
    WITHIN_SLOTS,
    HELD_BOUNDED,
    NO_SLEEP_IN_USE,
    FLUID_BOUND,
    MONOTONE_CLOCK,
)


class InvariantViolated(TidegateError):
    """A named invariant did not hold: a fault of the code under test or of the simulator."""

    def __init__(self, name: str, seen: str) -> None:
        super().__init__(
            f"this run broke the invariant {name!r}: {seen}; "
            "please report the command and the trace"
        )
        self.name = name
        self.seen = seen


def check_conserved(
    *, arrived: int, answered: int, refused: int, expired: int, still_open: int
) -> None:
    if arrived != answered + refused + expired + still_open:
        raise InvariantViolated(
            CONSERVED,
            f"{arrived} arrived, but {answered} answered + {refused} refused + {expired} expired "
            f"+ {still_open} open = {answered + refused + expired + still_open}",
        )


def check_bounds(replicas: int, *, least: int, most: int) -> None:
    """`least` is the policy's minimum, which 0 undercuts only where it is 0 itself."""
    if not least <= replicas <= most:
        raise InvariantViolated(
            WITHIN_BOUNDS, f"asked for {replicas} replicas, permitted are {least} to {most}"
        )


def check_slots(endpoint: str, *, in_flight: int, slots: int) -> None:
    if in_flight > slots:
        raise InvariantViolated(
            WITHIN_SLOTS, f"{endpoint} has {in_flight} requests in {slots} slots"
        )


def check_held(held: int, *, limit: int) -> None:
    if held > limit:
        raise InvariantViolated(HELD_BOUNDED, f"{held} requests are held, the limit is {limit}")


def check_sleep(*, held: int, in_flight: int, start_failed: bool) -> None:
    """`start_failed`: nothing got ready within the cold-start timeout; that ends a wake by rule."""
    if in_flight or (held and not start_failed):
        raise InvariantViolated(
            NO_SLEEP_IN_USE, f"asked for 0 replicas with {held} held and {in_flight} in flight"
        )


def check_fluid_bound(*, replica_seconds: float, bound_replica_seconds: float) -> None:
    if replica_seconds < bound_replica_seconds * (1 - 1e-9):  # sums of floats in another order
        raise InvariantViolated(
            FLUID_BOUND,
            f"{replica_seconds} replica-seconds, the answers alone took {bound_replica_seconds}",
        )
