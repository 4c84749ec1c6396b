# SPDX-License-Identifier: Apache-2.0
"""What a pod asks of a node's GPUs. Says nothing about any node.

Two pods with equal demands are alike to the scheduler, so a demand is also the class under which
scores are kept.
"""

from dataclasses import dataclass
from enum import StrEnum

WHOLE_MILLI = 1000


class Policy(StrEnum):
    """How nodes that fit are ranked."""

    TIDEGATE = "tidegate"
    BINPACK = "binpack"
    SPREAD = "spread"
    TOPOLOGY = "topology"


@dataclass(frozen=True, slots=True)
class Demand:
    """`cards` distinct cards of one node, and on each of them the same part.

    A whole card is one that nobody else uses, before and after. A share asks for memory
    (`memory_mib`, or `memory_milli`: thousandths of the card's own memory), for compute (`milli`:
    thousandths of the card), or for both. `profile` asks for MIG instances of that profile instead.
    """

    cards: int = 1
    whole: bool = False
    memory_mib: int = 0
    memory_milli: int = 0
    milli: int = 0
    profile: str = ""
    models: tuple[str, ...] = ()  # empty: any model will do; sorted, so that equal sets are equal
    policy: Policy = Policy.TIDEGATE
    cpu_milli: int = 0
    ram_mib: int = 0
    mesh: str = ""  # pods of one mesh stand side by side where they can
    apart: bool = False  # pods of one mesh stand on different nodes where they can

    @property
    def exclusive(self) -> bool:
        """No other pod may be on its cards."""
        return self.whole or bool(self.profile) or self.milli >= WHOLE_MILLI

    @property
    def gpu_milli(self) -> int:
        """How much of the cluster's GPUs it takes, in thousandths, as far as it says in advance."""
        if self.exclusive:
            return self.cards * WHOLE_MILLI
        return self.cards * max(self.milli, self.memory_milli)
