# SPDX-License-Identifier: Apache-2.0
"""A GPU pod of high priority takes a card from the right pods, where GPUs alone are scarce.

Four cards are full: one with a large pod of low priority, two with halves of which one is of middle
priority, one with a pod of middle priority. Room for a whole card costs one pod, or two.
"""

import json
from collections.abc import Iterator
from functools import partial

import pytest

from scheduler_extender.core.node_report import GPUS
from tests.lab import gpu
from tests.lab.gpu import GpuScheduler, a_gpu_pod, granted, share
from tests.lab.lab import NODES, Lab
from tests.lab.place import Object, Place

pytestmark = pytest.mark.lab

CARD_MIB = 24_000
CARDS = {node: {card.uuid: CARD_MIB for card in gpu.cards(node, 2, CARD_MIB)} for node in NODES}
SAYS = "echo seen=$NVIDIA_VISIBLE_DEVICES.; exec sleep 1000"
# It takes its time to end, so that others could take what it leaves.
SLOW = "trap 'sleep 4; exit' TERM; echo seen=$NVIDIA_VISIBLE_DEVICES.; while :; do sleep 0.1; done"
LARGE = share(22_000, 90)
HALF = share(12_000, 50)
SMALL = share(3_000, 15)
WHOLE = {gpu.WHOLE: "1"}
HALVES = ("low-a", "low-b", "low-c", "middle-c")
PRIORITIES = {"low": 10, "middle": 100, "high": 1000, "polite": 1000}
SOON_S = 120.0


@pytest.fixture(scope="module")
def scheduler(lab: Lab) -> Iterator[GpuScheduler]:
    """On nodes of two cards each, with a PriorityClass for every name in PRIORITIES."""
    for node in NODES:
        said = {"metadata": {"annotations": gpu.report(node, 2, CARD_MIB)}}
        lab.kubectl("patch", "node", node, "--type=merge", "-p", json.dumps(said))
    lab.apply(*(a_priority_class(name, value) for name, value in PRIORITIES.items()))
    with gpu.gpu_scheduler(lab) as scheduler:
        yield scheduler
    lab.kubectl("delete", "priorityclass", *PRIORITIES)
    for node in NODES:
        lab.kubectl("annotate", "node", node, f"{GPUS}-")


@pytest.fixture
def place(lab: Lab, scheduler: GpuScheduler) -> Iterator[Place]:
    """With all cards full."""
    with lab.namespace("preempt") as namespace:
        place = Place(lab, namespace)
        fill(place)
        yield place
        place.kubectl("delete", "pdb,pods", "--all", "--wait=true")


def a_priority_class(name: str, value: int) -> Object:
    policy = "Never" if name == "polite" else "PreemptLowerPriority"
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value,
        "preemptionPolicy": policy,
    }


def a_process(name: str, asked: dict[str, str], *, script: str = SAYS, grace_s: int = 1) -> Object:
    """Its name begins with its PriorityClass."""
    pod = a_gpu_pod(name, asked, image="shell", command=["sh", "-c", script])
    pod["metadata"]["labels"] = {"app": name}
    pod["spec"] |= {
        "priorityClassName": name.split("-")[0],
        "terminationGracePeriodSeconds": grace_s,
    }
    return pod


def fill(place: Place) -> None:
    """One after the other, so that each finds a card of its own or its place beside another."""
    first = [("low-large", LARGE), ("middle-large", LARGE)]
    for name, asked in (*first, *((name, HALF) for name in HALVES)):
        script, grace_s = (SLOW, 30) if name == "low-large" else (SAYS, 1)
        place.apply(a_process(name, asked, script=script, grace_s=grace_s))
        place.until(partial(runs, place, name), within_s=SOON_S)
    assert not gpu.doubts(pods(place).values(), CARDS)


def runs(place: Place, name: str) -> bool:
    return bool(seen(place, name)) and place.is_ready(name)


def pods(place: Place) -> dict[str, Object]:
    """By name."""
    found = place.lab.get("pods", "-n", place.namespace)["items"]
    return {pod["metadata"]["name"]: pod for pod in found}


def seen(place: Place, pod: str) -> str | None:
    """What the pod's process found in its environment; None: it has not said so yet."""
    said = [line for line in place.log_of(pod).splitlines() if line.startswith("seen=")]
    return said[-1].removeprefix("seen=").removesuffix(".") if said else None


def lives(found: dict[str, Object]) -> dict[str, tuple[str, str, int]]:
    """Which lives of which pods: of one that was touched another one is told, or none."""
    return {
        name: (pod["metadata"]["uid"], status["containerID"], status["restartCount"])
        for name, pod in found.items()
        if "deletionTimestamp" not in pod["metadata"]
        for status in pod["status"].get("containerStatuses", ())
    }


def place_high(place: Place, name: str = "high") -> None:
    """A pod that wants a whole card; its process runs when this returns."""
    place.apply(a_process(name, WHOLE))
    place.until(lambda: seen(place, name), within_s=SOON_S)


def evicted(place: Place) -> dict[str, str]:
    """Who was, by whom, as Events have it."""
    found = place.lab.get("events.events.k8s.io", "-n", place.namespace)["items"]
    return {
        event["regarding"]["name"]: event["related"]["name"]
        for event in found
        if event["reason"] == "Preempted"
    }


def without(before: dict[str, tuple[str, str, int]], *names: str) -> dict[str, object]:
    return {name: life for name, life in before.items() if name not in names}


def test_one_pod_of_low_priority_goes_and_all_others_run_on(place: Place) -> None:
    """The card that costs one pod, not one that costs two or a pod of middle priority."""
    before = pods(place)
    place_high(place)
    after = pods(place)
    assert without(lives(after), "high") == without(lives(before), "low-large")
    assert granted(after["high"]) == granted(before["low-large"])
    assert seen(place, "high") == ",".join(granted(after["high"]))
    assert not gpu.doubts(after.values(), CARDS)
    place.until(lambda: evicted(place) == {"low-large": "high"})


def test_a_pod_that_its_budget_protects_stays_and_others_go(place: Place) -> None:
    """Then the card costs two pods of low priority; none of middle priority."""
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "low-large"}}}
    meta = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "pdb"}}
    place.apply({**meta, "spec": budget})
    place.until(lambda: place.get("pdb", "pdb").get("status", {}).get("currentHealthy") == 1)
    before = pods(place)
    card = next(
        granted(before[name])
        for name in HALVES
        if name != "middle-c" and granted(before[name]) != granted(before["middle-c"])
    )
    victims = [name for name in HALVES if granted(before[name]) == card]
    assert len(victims) == 2
    place_high(place)
    after = pods(place)
    assert without(lives(after), "high") == without(lives(before), *victims)
    assert granted(after["high"]) == card
    assert not gpu.doubts(after.values(), CARDS)


def test_a_pod_that_may_not_preempt_evicts_nobody(place: Place) -> None:
    """Nor does it take the room that is made for another of the same priority, later on."""
    before = pods(place)
    place.apply(a_process("polite", WHOLE))
    place.until(lambda: place.condition("pod", "polite", of="PodScheduled") == "False")
    place_high(place)
    after = pods(place)
    assert without(lives(after), "high") == without(lives(before), "low-large")
    assert not granted(after["polite"])
    place.until(lambda: evicted(place) == {"low-large": "high"})


def test_pods_of_low_priority_that_wait_do_not_take_the_room(place: Place) -> None:
    """Though any of them would fit as soon as the victim is gone, and more of them come."""
    before = pods(place)
    place.apply(*(a_process(f"low-{number}", SMALL) for number in range(12)))
    place.until(lambda: place.condition("pod", "low-11", of="PodScheduled") == "False")
    place.apply(a_process("high", WHOLE))
    place.until(lambda: evicted(place), within_s=SOON_S)
    place.apply(*(a_process(f"low-{number}", SMALL) for number in range(12, 18)))
    place.until(lambda: seen(place, "high"), within_s=SOON_S)
    after = pods(place)
    assert granted(after["high"]) == granted(before["low-large"])
    assert not any(granted(after[f"low-{number}"]) for number in range(18))
    assert without(lives(after), "high") == without(lives(before), "low-large")
    assert evicted(place) == {"low-large": "high"}
