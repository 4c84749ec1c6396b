# SPDX-License-Identifier: Apache-2.0
"""How many pods of one demand a fleet has room for: what the autoscaler may still ask for."""

import numpy as np

from scheduler_extender.core.assign import choose_cards
from scheduler_extender.core.demand import Demand
from scheduler_extender.core.fit import fits
from scheduler_extender.core.gpus import Fleet


def how_many_fit(fleet: Fleet, demand: Demand, *, at_most: int = 1_000_000) -> int:
    """How many pods with this demand fit beside what is there, each placed as it comes."""
    twin, count = fleet.copy(), 0
    for row in np.flatnonzero(fits(twin, demand, twin.all_rows())):
        while count < at_most:
            cards = choose_cards(twin, demand, int(row))
            if cards is None:
                break
            twin.take(twin.grant(int(row), cards=cards, demand=demand))
            count += 1
    return count
