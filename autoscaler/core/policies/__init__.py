# SPDX-License-Identifier: Apache-2.0
"""From signals to a wish: one file per policy, each with `propose(...) -> Proposal`.

Read first: `target.py`. A new policy is a file here and a row in `POLICIES`.
"""

from collections.abc import Mapping
from typing import Protocol

from autoscaler.core.policies import target
from autoscaler.core.policy import ServicePolicy
from autoscaler.core.proposal import Proposal
from autoscaler.core.signals import Signals


class Propose(Protocol):
    """How many replicas the signals ask for; `current` is the count asked for now."""

    def __call__(self, signals: Signals, policy: ServicePolicy, *, current: int) -> Proposal: ...


POLICIES: Mapping[str, Propose] = {"target": target.propose}
