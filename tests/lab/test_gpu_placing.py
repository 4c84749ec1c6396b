# SPDX-License-Identifier: Apache-2.0
"""GPU pods through a real kube-scheduler and our extender: each process sees its own cards."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from scheduler_extender.adapters.api import Api
from scheduler_extender.adapters.cluster import KubernetesBinder
from scheduler_extender.core.node_report import GPUS
from scheduler_extender.errors import Unreachable
from scheduler_extender.ports import Binding
from tests.lab import asking, gpu
from tests.lab.gpu import GpuScheduler, a_gpu_pod, granted, share
from tests.lab.lab import NODES, Lab
from tests.lab.place import Object, Place

pytestmark = pytest.mark.lab

CARD_MIB = 24_000
CARDS = {node: {card.uuid: CARD_MIB for card in gpu.cards(node, 2, CARD_MIB)} for node in NODES}
SAYS = "echo seen=$NVIDIA_VISIBLE_DEVICES.; exec sleep 1000"


@pytest.fixture(scope="module")
def scheduler(lab: Lab) -> Iterator[GpuScheduler]:
    """On nodes of two cards each."""
    for node in NODES:
        said = {"metadata": {"annotations": gpu.report(node, 2, CARD_MIB)}}
        lab.kubectl("patch", "node", node, "--type=merge", "-p", json.dumps(said))
    with gpu.gpu_scheduler(lab, audit_s=5.0) as scheduler:
        yield scheduler
    for node in NODES:
        lab.kubectl("annotate", "node", node, f"{GPUS}-")


@pytest.fixture
def place(lab: Lab, scheduler: GpuScheduler) -> Iterator[Place]:
    with lab.namespace("gpu") as namespace:
        place = Place(lab, namespace)
        yield place
        # The next test finds the cards empty.
        place.kubectl("delete", "pods", "--all", "--wait=true")


def a_process(name: str, asked: dict[str, str]) -> Object:
    return a_gpu_pod(name, asked, image="shell", command=["sh", "-c", SAYS])


def pods(place: Place) -> list[Object]:
    found: list[Object] = place.lab.get("pods", "-n", place.namespace)["items"]
    return found


def seen(place: Place, pod: str) -> str | None:
    """What the pod's process found in its environment; None: it has not said so yet."""
    said = [line for line in place.log_of(pod).splitlines() if line.startswith("seen=")]
    return said[-1].removeprefix("seen=").removesuffix(".") if said else None


def test_every_process_sees_its_own_cards_and_one_without_sees_none(place: Place) -> None:
    """Shares, a whole card and two at once; and a pod that no allocation was made for."""
    asked = {f"share-{number}": share(6_000, 25) for number in range(8)}
    asked |= {"whole": {gpu.WHOLE: "1"}, "nothing": {}}
    place.apply(*(a_process(name, wish) for name, wish in asked.items()))
    place.until(lambda: all(seen(place, name) is not None for name in asked), within_s=60)
    given = {pod["metadata"]["name"]: granted(pod) for pod in pods(place)}
    for name in asked:
        assert seen(place, name) == ",".join(given[name])
        assert len(given[name]) == (name != "nothing")
    assert not gpu.doubts(pods(place), CARDS)
    # Shares go side by side: eight quarters are two cards.
    assert len({uuid for name in asked if "share" in name for uuid in given[name]}) == 2


def test_what_does_not_fit_waits_and_says_why(place: Place) -> None:
    """Until room is made; then it is placed."""
    wholes = [a_process(f"whole-{number}", {gpu.WHOLE: "2"}) for number in range(2)]
    place.apply(*wholes)
    place.until(lambda: all(map(granted, pods(place))))
    place.apply(a_process("late", share(1_000, 5)))

    def told() -> bool:
        conditions = place.get("pod", "late").get("status", {}).get("conditions", ())
        return any("GPU" in one.get("message", "") for one in conditions)

    place.until(told)
    assert not granted(place.get("pod", "late"))
    place.kubectl("delete", "pod", "whole-0")
    place.until(lambda: granted(place.get("pod", "late")), within_s=60)
    assert not gpu.doubts(pods(place), CARDS)


def test_room_that_comes_without_an_event_is_found_as_well(place: Place) -> None:
    """Cards are in doubt until an audit after the odd pod's end, which no event tells."""
    odd = a_process("odd", {})
    odd["metadata"]["annotations"] = {gpu.UUIDS: f"GPU-{NODES[0]}-0"}  # and no share of it
    odd["spec"]["nodeName"] = NODES[0]
    place.apply(odd)
    place.until(lambda: "tidegate_extender_doubts 1.0" in asking.text(f"{gpu.URL}/metrics"))
    wholes = [f"whole-{number}" for number in range(3)]
    place.apply(*(a_process(name, {gpu.WHOLE: "1"}) for name in wholes))

    def placed() -> list[str]:
        return [name for name in wholes if granted(place.get("pod", name))]

    place.until(lambda: len(placed()) == 2)
    (late,) = set(wholes) - set(placed())
    place.until(lambda: "GPU" in json.dumps(place.get("pod", late).get("status", {})))
    place.kubectl("delete", "pod", "odd")
    place.until(lambda: granted(place.get("pod", late)), within_s=60)
    assert place.get("pod", late)["spec"]["nodeName"] == NODES[0]


@pytest.mark.parametrize("name", [gpu.EXTENDER, gpu.SECOND])
def test_a_restart_in_the_middle_loses_no_pod_and_gives_no_card_twice(
    place: Place, scheduler: GpuScheduler, name: str
) -> None:
    """Killed as soon as the first pod is placed; what is left is placed after it is back."""
    names = [f"p{number}" for number in range(24)]
    place.apply(*(a_process(one, share(3_000, 12)) for one in names))
    place.until(lambda: any(map(granted, pods(place))))
    scheduler.stop(name, kill=True)
    between = [granted(pod) for pod in pods(place)]
    scheduler.lab.start_component(name)
    scheduler.wait_ready()
    place.until(lambda: all(map(granted, pods(place))), within_s=90)
    place.until(lambda: all(seen(place, one) is not None for one in names), within_s=60)
    after = pods(place)
    assert not gpu.doubts(after, CARDS)
    assert {pod["metadata"]["name"]: seen(place, pod["metadata"]["name"]) for pod in after} == {
        pod["metadata"]["name"]: ",".join(granted(pod)) for pod in after
    }
    assert all(had in ([], granted(pod)) for had, pod in zip(between, after, strict=True))


def test_a_binding_that_ran_out_of_time_is_not_made_later(place: Place) -> None:
    """On this rests that a new leader may give out what the old one asked for in vain."""
    given_up = any(not made_at_once(place, f"late-{n}") for n in range(TRIES))
    assert given_up, "the API server gives up no Binding when its time is over"


TRIES = 4


def made_at_once(place: Place, name: str) -> bool:
    """Whether etcd makes, as soon as it goes on, a Binding that it was handed while it stood still.

    It may have read it before it reads that nobody waits for it. Then it comes before what is
    written now, such as the Lease of a new leader.
    """
    place.apply(a_gpu_pod(name, {}, image="shell") | {"spec": NOBODYS})
    uid = place.get("pod", name)["metadata"]["uid"]
    etcd = place.lab.component("etcd").process
    assert etcd is not None
    os.kill(etcd.pid, signal.SIGSTOP)
    try:
        asyncio.run(bind_in_vain(place, name, uid))
    finally:
        os.kill(etcd.pid, signal.SIGCONT)
    place.lab.wait_api()
    place.kubectl("annotate", "pod", name, "after=it")
    found = place.get("pod", name)
    time.sleep(1.0)
    later = place.get("pod", name)
    assert later["spec"].get("nodeName") == found["spec"].get("nodeName")
    assert bool(granted(found)) == ("nodeName" in found["spec"])
    return "nodeName" in found["spec"]


NOBODYS = {"schedulerName": "nobody", "containers": [{"name": "c", "image": "shell"}]}


async def bind_in_vain(place: Place, name: str, uid: str) -> None:
    async with Api(place.lab.kubeconfig) as api:
        said = {gpu.UUIDS: "GPU-x", gpu.MEMORY: "1", gpu.CORE: "1"}
        with pytest.raises(Unreachable):
            await KubernetesBinder(api).bind(Binding(place.namespace, name, uid, NODES[0], said))
        await asyncio.sleep(1.0)  # longer than the API server was given
