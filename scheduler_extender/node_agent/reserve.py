# SPDX-License-Identifier: Apache-2.0
"""The process of a reservation pod: see one card, say which, hold it until told to end.

Holding is all that the pod's `nvidia.com/gpu` does; the process only says which card that is. It
tells a pod of its own UID and no other: a later one of the same name may have another card.
"""

import asyncio
import signal
from typing import Any, Final

import pynvml
import structlog

from scheduler_extender.adapters.api import Api, pod_path
from scheduler_extender.core.annotations import RESERVED_UUID
from scheduler_extender.errors import GiveUp, Unreachable
from scheduler_extender.node_agent.agent import GpusOnAThread
from scheduler_extender.node_agent.gpus import Machine, NotRead
from scheduler_extender.node_agent.nvml import NvmlGpus
from scheduler_extender.node_agent.settings import OwnPod

log = structlog.get_logger(__name__)

FIELD_MANAGER: Final = "tidegate-reservation"
TIMEOUT_S: Final = 10.0
AGAIN_S: Final = 1.0


def run(own: OwnPod, *, library: Any = pynvml) -> None:
    """Until SIGTERM. `library` has the functions of `pynvml`. Raises `GiveUp`."""
    asyncio.run(_until_told(own, library))


async def _until_told(own: OwnPod, library: Any) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await reserve(own, stop, library=library)


async def reserve(own: OwnPod, stop: asyncio.Event, *, library: Any = pynvml) -> None:
    """Raises `GiveUp` where there is not one card, or where it may not be told."""
    stopping = asyncio.create_task(stop.wait())
    telling = asyncio.create_task(_tell(own, library))
    await asyncio.wait((stopping, telling), return_when=asyncio.FIRST_COMPLETED)
    try:
        if telling.done():
            telling.result()
            await stopping
    finally:
        for task in (stopping, telling):
            task.cancel()
        await asyncio.wait((stopping, telling))
    log.info("stopped")


async def _tell(own: OwnPod, library: Any) -> None:
    reader = GpusOnAThread(NvmlGpus(library))
    try:
        uuid = the_card(await reader.read())
    finally:
        reader.close()
    # The status takes annotations too, and the right to write it is less than that to write pods.
    path = f"{pod_path(own.namespace, own.name)}/status"
    body = {"metadata": {"uid": own.uid, "annotations": {RESERVED_UUID: uuid}}}
    params = {"fieldManager": FIELD_MANAGER}
    async with Api(own.kubeconfig) as api:
        while True:
            try:
                await api.ask("PATCH", path, params=params, body=body, timeout_s=TIMEOUT_S)
                break
            except Unreachable as trouble:
                log.warning("the card was not told; trying again", why=str(trouble))
            await asyncio.sleep(AGAIN_S)
    log.info("a card is reserved", uuid=uuid)


def the_card(seen: Machine | NotRead) -> str:
    """The UUID of the one that is seen. Raises `GiveUp`."""
    if isinstance(seen, NotRead):
        raise GiveUp(f"the card of this pod was not read: {seen.why}")
    uuids = [gpu.uuid for gpu in seen.gpus]
    if len(uuids) != 1:
        what = ", ".join(uuids) or "; ".join(seen.unlisted) or "none"
        raise GiveUp(
            f"this pod sees {len(uuids)} GPUs ({what}), and must see the one that the device "
            "plugin gave to it: it must ask for nvidia.com/gpu: 1, run with NVIDIA's runtime, and "
            "not set NVIDIA_VISIBLE_DEVICES"
        )
    return uuids[0]
