# SPDX-License-Identifier: Apache-2.0
"""Sleep and wake as a table: the first rule of a state whose condition holds says what happens.

The picture in docs/zero.md is drawn from this table, so the two cannot disagree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

SWITCHED_OFF = "D5 set to 0 by somebody else; it stays 0 until it is set above"


class ZeroState(StrEnum):
    ASLEEP = "asleep"  # no replica; the activator is in the path
    WAKING = "waking"  # replicas were asked for, none is ready; requests are held
    ACTIVE = "active"  # at least one replica is ready
    DRAINING = "draining"  # idle long enough; the activator is being proven in the path


@dataclass(frozen=True, slots=True)
class Facts:
    """What the table may ask about one service at one tick."""

    demanded: bool  # something is held, waiting or in flight
    floored: bool  # the policy wants at least one replica at all times
    starting: bool  # none can serve yet, and at least one is on its way
    ready: bool  # at least one replica can serve
    idle: bool  # idleness is proven for the whole keep-alive, and nothing is starting (D6)
    overdue: bool  # waking took longer than the cold-start timeout, and no replica is at work
    backing_off: bool  # the last start failed, and its pause has not passed
    parked: bool  # somebody else set the count to 0
    path_held: bool  # an activator is proven to receive the service's requests


class Awake(Enum):
    """The count that a rule leads to."""

    NONE = "0"
    ENOUGH = "the wish, at least activation-replicas"


CONDITIONS: Mapping[str, Callable[[Facts], bool]] = {
    "somebody else set the count to 0": lambda f: f.parked,
    "a start failed a moment ago": lambda f: f.backing_off,
    "demand, or a floor": lambda f: f.demanded or f.floored,
    "a replica is ready": lambda f: f.ready,
    "a replica is starting": lambda f: f.starting,
    "no replica within the cold-start timeout": lambda f: f.overdue and not f.floored,
    "no replica is ready": lambda f: not f.ready,
    "a replica is ready all the same, and no longer idle": lambda f: f.ready and not f.idle,
    "idle for the whole keep-alive": lambda f: f.idle,
    "no longer idle": lambda f: not f.idle,
    "the activator holds the path": lambda f: f.path_held,
    "otherwise": lambda f: True,
}


@dataclass(frozen=True, slots=True)
class Rule:
    state: ZeroState
    when: str  # a key of CONDITIONS
    to: ZeroState
    count: Awake
    why: str


RULES: Sequence[Rule] = (
    *(Rule(state, "somebody else set the count to 0", ZeroState.ASLEEP, Awake.NONE,
           SWITCHED_OFF)
      for state in ZeroState),
    Rule(ZeroState.ASLEEP, "a start failed a moment ago", ZeroState.ASLEEP, Awake.NONE,
         "the last start failed; waiting before the next"),
    Rule(ZeroState.ASLEEP, "demand, or a floor", ZeroState.WAKING, Awake.ENOUGH, "waking"),
    # The count was to fall and did not: what proved idleness then proves nothing now (D1).
    Rule(ZeroState.ASLEEP, "a replica is ready all the same, and no longer idle", ZeroState.ACTIVE,
         Awake.ENOUGH, "not asleep after all"),
    # Somebody else asked for it: rule D6, a replica that is loading is never judged idle.
    Rule(ZeroState.ASLEEP, "a replica is starting", ZeroState.WAKING, Awake.ENOUGH,
         "a replica is starting"),
    Rule(ZeroState.ASLEEP, "otherwise", ZeroState.ASLEEP, Awake.NONE, "asleep"),
    Rule(ZeroState.WAKING, "a replica is ready", ZeroState.ACTIVE, Awake.ENOUGH, "awake"),
    Rule(ZeroState.WAKING, "no replica within the cold-start timeout", ZeroState.ASLEEP, Awake.NONE,
         "no replica became ready within the cold-start timeout"),
    Rule(ZeroState.WAKING, "otherwise", ZeroState.WAKING, Awake.ENOUGH, "waking"),
    Rule(ZeroState.ACTIVE, "no replica is ready", ZeroState.WAKING, Awake.ENOUGH,
         "no replica is ready any more"),
    Rule(ZeroState.ACTIVE, "idle for the whole keep-alive", ZeroState.DRAINING, Awake.ENOUGH,
         "idle; bringing the activator into the path"),
    Rule(ZeroState.ACTIVE, "otherwise", ZeroState.ACTIVE, Awake.ENOUGH, "active"),
    Rule(ZeroState.DRAINING, "no longer idle", ZeroState.ACTIVE, Awake.ENOUGH, "busy again"),
    Rule(ZeroState.DRAINING, "the activator holds the path", ZeroState.ASLEEP,
         Awake.NONE, "idle, and the activator holds the path"),
    Rule(ZeroState.DRAINING, "otherwise", ZeroState.DRAINING, Awake.ENOUGH,
         "waiting until the activator is proven in the path"),
)  # fmt: skip


def next_state(state: ZeroState, facts: Facts) -> Rule:
    """The rule that applies; each state ends with `otherwise`, so there always is one."""
    return next(rule for rule in RULES if rule.state is state and CONDITIONS[rule.when](facts))


def first_state(*, scale: int, ready: bool) -> ZeroState:
    """The state of a service that was never seen before."""
    if scale == 0:
        return ZeroState.ASLEEP
    return ZeroState.ACTIVE if ready else ZeroState.WAKING


def as_mermaid() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {ZeroState.ASLEEP}"]
    lines += [
        f"    {rule.state} --> {rule.to}: {rule.when}"
        for rule in RULES
        if rule.state is not rule.to
    ]
    return "\n".join(lines) + "\n"


def as_table() -> str:
    """The table as Markdown, for the documentation."""
    head = "| in | when | then | replicas |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {rule.state} | {rule.when} | {rule.to} | {rule.count.value} |\n" for rule in RULES
    )
