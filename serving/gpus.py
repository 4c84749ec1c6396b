# SPDX-License-Identifier: Apache-2.0
"""Only this file asks NVIDIA's driver. It holds the process to the GPUs that its pod was given.

Called before anything is loaded: CUDA reads which GPUs it may use once, when it begins.
"""

import os
from collections.abc import Iterator
from typing import Any, Final

from serving.core.share import Share, mismatch
from serving.errors import GiveUp
from serving.log import event

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


class WrongGpus(GiveUp):
    """What the process sees is not what its pod was given, or cannot be known."""


def keep_to(share: Share, library: Any = None) -> None:
    """Let CUDA see the GPUs of the share alone. Raises `WrongGpus` where others are visible.

    `library` has the functions of the module `pynvml`. Where there is no driver no GPU can be
    taken from anybody: models that run on the CPU run all the same, and the log says it.
    """
    os.environ[VISIBLE] = ",".join(share.uuids)
    seen = _seen(library)
    if seen is None:
        event("no driver", granted=share.uuids, memory_mib=share.memory_mib)
    elif why := mismatch(share, seen):
        raise WrongGpus(why)
    else:
        event("gpus", granted=share.uuids, memory_mib=share.memory_mib)


def _seen(library: Any) -> tuple[str, ...] | None:
    """The UUIDs that can be seen; None: there is no driver."""
    import pynvml

    nvml = pynvml if library is None else library
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        ):
            return None
        raise WrongGpus(_cannot("NVML does not begin", error)) from error
    try:
        return tuple(_uuids(nvml))
    except pynvml.NVMLError as error:
        raise WrongGpus(_cannot("NVML does not list them", error)) from error
    finally:
        nvml.nvmlShutdown()


def _uuids(nvml: Any) -> Iterator[str]:
    """Of whole GPUs, and of the instances of those that are split."""
    import pynvml

    for index in range(nvml.nvmlDeviceGetCount()):
        card = nvml.nvmlDeviceGetHandleByIndex(index)
        try:
            split = nvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
            split = False
        for part in _instances(nvml, card) if split else (card,):
            yield str(nvml.nvmlDeviceGetUUID(part))


def _instances(nvml: Any, card: Any) -> Iterator[Any]:
    """Those that this process may use."""
    import pynvml

    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, number)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_NoPermission):
            continue


def _cannot(what: str, error: Exception) -> str:
    return (
        f"this pod was given GPUs, and whether it sees those and no others cannot be checked: "
        f"{what} ({error}); look at the node's driver with nvidia-smi"
    )
