# SPDX-License-Identifier: Apache-2.0
"""Have kube-scheduler try those again for whom there is room by now; see `waiting`."""

import asyncio
from typing import Final

import structlog

from scheduler_extender.errors import NotFound, Refused, Unreachable
from scheduler_extender.ports import Retries
from scheduler_extender.waiting import Waiting, WaitingPods

log = structlog.get_logger(__name__)

# A look; room for one makes many placeable, and the next look finds the rest if there is more.
MOST_AT_ONCE: Final = 20


async def retry(pods: WaitingPods, retries: Retries, *, now_s: float) -> None:
    """To be called every second or so. What fails is logged, and done again later."""
    pods.look(now_s=now_s)
    due = pods.placeable(MOST_AT_ONCE, now_s=now_s)
    for pod in due:
        pods.told(pod.uid, now_s=now_s)
    await asyncio.gather(*(_retry(pod, pods, retries) for pod in due))


async def _retry(pod: Waiting, pods: WaitingPods, retries: Retries) -> None:
    name = f"{pod.namespace}/{pod.name}"
    try:
        await retries.retry(pod)
    except NotFound:
        pods.over(pod.uid)
    except (Refused, Unreachable) as trouble:
        log.warning(
            "kube-scheduler could not be told to try a pod again", pod=name, why=str(trouble)
        )
    else:
        log.info("there is room for a pod that was refused; it is tried again", pod=name)
