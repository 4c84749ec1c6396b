# SPDX-License-Identifier: Apache-2.0
"""Which pods belong to targets that do not say so themselves: their scale subresource is asked.

A Deployment's own spec has the labels; what anybody's CRD calls them, only `/scale` tells.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final

import structlog

from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.inventory import Target
from autoscaler.adapters.kubernetes.objects import Labels
from autoscaler.adapters.kubernetes.resources import Resource
from autoscaler.errors import TidegateError

log = structlog.get_logger(__name__)

EVERY_S: Final = 2.0  # how often it is looked who has not been asked yet
AGAIN_S: Final = 60.0  # a selector hardly ever changes


class ScaleSelectors:
    """Asks for the selectors of `targets()`, and tells `found(target, labels)`; `run()` it."""

    def __init__(
        self,
        api: KubeApi,
        *,
        targets: Callable[[], Collection[tuple[Target, Resource]]],
        found: Callable[[Target, Labels], None],
    ) -> None:
        self._api = api
        self._targets = targets
        self._found = found
        self._asked_at_s: dict[Target, float] = {}

    async def run(self) -> None:
        """Ask until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for target, resource in self._targets():
                asked_at_s = self._asked_at_s.get(target)
                if asked_at_s is None or loop.time() - asked_at_s > AGAIN_S:
                    self._asked_at_s[target] = loop.time()
                    await self._ask(target, resource)
            await asyncio.sleep(EVERY_S)

    async def _ask(self, target: Target, resource: Resource) -> None:
        _, namespace, name = target
        try:
            scale = await self._api.get(resource.path(namespace, name, "scale"))
        except TidegateError as trouble:
            log.warning("a scale was not read", target="/".join(target), why=str(trouble))
            return
        labels = equalities((scale.get("status") or {}).get("selector", ""))
        if labels:
            self._found(target, labels)
        else:
            log.warning("a scale names no labels of pods", target="/".join(target))


def equalities(selector: str) -> Labels:
    """The labels of `a=b,c==d`; empty where there are none, or something else is asked for."""
    labels = {}
    for part in filter(None, (piece.strip() for piece in selector.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name.endswith("!") or not name:
            return {}
        labels[name.strip()] = value.removeprefix("=").strip()
    return labels
