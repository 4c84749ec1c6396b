# SPDX-License-Identifier: Apache-2.0
"""Which pods are refused, and why, each problem with its remedy. Pure.

Nobody but the extender gives GPUs: not a variable that a pod sets itself, not a grant that it
brings along, not an image that shows itself every card.
"""

from collections.abc import Iterator, Sequence

from scheduler_extender import annotations as named
from scheduler_extender.admission.pods import (
    ASKING,
    GPU_KEYS,
    GRANTS,
    HOW,
    TOLD,
    VISIBLE,
    Raw,
    Wiring,
    added,
    annotations_of,
    asks,
    containers,
    device_plugin_resources,
    hides,
    own_resources,
    tells,
)
from scheduler_extender.annotations import Unclear, demand_of


def problems_of_new(pod: Raw, *, wiring: Wiring) -> list[str]:
    """What is wrong with a pod that is to be created; empty: nothing."""
    notes = annotations_of(pod)
    problems = [
        f"{key}: only the scheduler extender writes it; leave it out"
        for key in GRANTS
        if key in notes
    ]
    problems += problems_of_env(list(containers(pod)), asking=asks(pod))
    demand = demand_of(pod)
    if isinstance(demand, Unclear):
        return [*problems, *demand.problems]
    more = _problems_of_asking(pod) if asks(pod) else _problems_of_runtime(pod, wiring)
    return [*problems, *more]


def problems_of_change(pod: Raw, old: Raw) -> list[str]:
    """Of a pod that is there: its grant stays, and debuggers get no GPUs of their own choice."""
    now, then = annotations_of(pod), annotations_of(old)
    problems = [
        f"{key}: only the scheduler extender writes it; leave it as it is"
        for key in GRANTS
        if now.get(key) != then.get(key)
    ]
    return problems + problems_of_env(list(added(pod, old)), asking=asks(pod))


def problems_of_env(every: Sequence[tuple[str, Raw]], *, asking: bool) -> list[str]:
    """`asking`: whether the pod's annotations ask for GPUs."""
    remedy = "ask by tidegate.dev/gpu-memory or tidegate.dev/gpu-count"
    if asking:
        remedy = "leave it out, and it is filled in with what the pod is given"
    problems = []
    for _, container in every:
        for entry in container.get("env") or ():
            variable = entry.get("name")
            if variable not in TOLD or tells(entry, variable) or hides(entry):
                continue
            if variable == VISIBLE or asking:
                problems.append(
                    f"container {container['name']}: nobody sets {variable} himself; {remedy}"
                )
    return problems


def warnings_of(pod: Raw, *, wiring: Wiring) -> Iterator[str]:
    """What is allowed, and yet likely not what was meant. `kubectl` shows it."""
    notes = annotations_of(pod)
    known = {*ASKING, *HOW, *GRANTS}
    for key in notes:
        if key.startswith(GPU_KEYS) and key not in known:
            yield f"{key} is not known; the annotations are {', '.join(sorted({*ASKING, *HOW}))}"
    if not asks(pod):
        for key in HOW:
            if key in notes:
                yield f"{key} alone asks for no GPU; add one of {', '.join(ASKING)}"
        return
    scheduler = (pod.get("spec") or {}).get("schedulerName")
    if scheduler != wiring.scheduler:
        yield (
            f"spec.schedulerName is {scheduler}: the pod waits for ever unless that scheduler has "
            f"Tidegate's extender; {wiring.scheduler} has it"
        )


def _problems_of_asking(pod: Raw) -> Iterator[str]:
    only = annotations_of(pod).get(named.CONTAINER)
    names = [container["name"] for _, container in containers(pod)]
    if only is not None and only not in names:
        yield f"{named.CONTAINER}: {only!r} is no container of this pod; it has {', '.join(names)}"
    for _, container in containers(pod):
        name, plugin = container["name"], device_plugin_resources(container)
        if plugin:
            yield (
                f"container {name}: {', '.join(plugin)} beside annotations of tidegate.dev; ask "
                f"for whole GPUs by {named.COUNT}, or leave the annotations out"
            )
        if only is not None and own_resources(container) and name != only:
            yield f"{named.CONTAINER}: {only}, but the resources stand at {name}; move them"
    node = (pod.get("spec") or {}).get("nodeName")
    if node:
        yield (
            f"spec.nodeName: {node}, so that no scheduler would give the pod its GPUs; leave it "
            "out, and choose nodes by spec.nodeSelector"
        )


def _problems_of_runtime(pod: Raw, wiring: Wiring) -> Iterator[str]:
    """Images for CUDA bring `NVIDIA_VISIBLE_DEVICES=all`, which this runtime would obey.

    A pod that the device plugin serves does not come to a node whose GPUs are ours.
    """
    chosen = (pod.get("spec") or {}).get("runtimeClassName")
    every = [container for _, container in containers(pod)]
    if not wiring.runtime_class or chosen != wiring.runtime_class:
        return
    if any(device_plugin_resources(container) for container in every):
        return
    for container in every:
        env = container.get("env") or ()
        if not any(hides(entry) or tells(entry, VISIBLE) for entry in env):
            yield (
                f"container {container['name']}: spec.runtimeClassName {chosen} shows it whatever "
                f"GPUs its image names, and the pod asks for none by annotations; ask, set "
                f"{VISIBLE} to void, or leave the runtime class out"
            )
