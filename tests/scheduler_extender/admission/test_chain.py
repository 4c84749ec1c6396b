# SPDX-License-Identifier: Apache-2.0
"""From a pod's wish to its process: the webhook, the extender, and the environment a kubelet makes.

Only the API server and kube-scheduler between them are left out.
"""

import pytest

from tests.lab.kubelet.env import Place, environment
from tests.lab.rest import Object
from tests.scheduler_extender.admission.pods import Raw, a_container, a_pod, mutated
from tests.scheduler_extender.builders import a_node, an_extender
from tests.scheduler_extender.fakes import Clock, FakeCluster

GREEDY = {"kind": "ConfigMap", "data": {"NVIDIA_VISIBLE_DEVICES": "all"}}


async def seen_by(container: Raw, pod: Raw) -> dict[str, str]:
    """What a container's process has in its environment that is about GPUs."""

    async def find(_kind: str, _name: str) -> Object:
        return GREEDY

    place = Place("10.0.0.2", "10.0.0.1", {})
    env = await environment(container, pod=pod, place=place, find=find)
    return {name: text for name, text in env.items() if "DEVICES" in name or "GPU_" in name}


@pytest.mark.parametrize(
    ("wish", "cards", "told"),
    [
        pytest.param({"gpu-memory": "12Gi"}, 1, ("12288", "0"), id="a share of memory"),
        pytest.param(
            {"gpu-count": "2", "gpu-memory": "25%", "gpu-core": "30%"}, 2, ("10000", "30"), id="two"
        ),
        pytest.param({"gpu-count": "1"}, 1, ("40000", "100"), id="a whole one"),
    ],
)
async def test_a_process_sees_the_cards_of_its_pod_and_no_others(
    wish: dict[str, str], cards: int, told: tuple[str, str]
) -> None:
    greedy = {**a_container(), "envFrom": [{"configMapRef": {"name": "greedy"}}]}
    notes = {f"tidegate.dev/{key}": text for key, text in wish.items()}
    pod = mutated(a_pod(greedy, a_container("proxy"), annotations=notes))
    pod["metadata"] |= {"name": "w", "namespace": "ns", "uid": "uid-w"}
    cluster = FakeCluster(Clock())
    cluster.pods["ns", "w"] = {**pod, "status": {"phase": "Pending"}}
    extender = an_extender(a_node("n1", cards=4), cluster=cluster)
    assert extender.filter(cluster.pods["ns", "w"], "n1")["NodeNames"] == ["n1"]
    before = await seen_by(pod["spec"]["containers"][0], pod)
    assert before["NVIDIA_VISIBLE_DEVICES"] == ""

    assert await extender.bind(cluster.pods["ns", "w"], "n1") == ""

    bound = cluster.pods["ns", "w"]
    for container in bound["spec"]["containers"]:
        seen = await seen_by(container, bound)
        uuids = seen["NVIDIA_VISIBLE_DEVICES"].split(",")
        assert len(set(uuids)) == cards
        assert all(uuid.startswith("GPU-n1-") for uuid in uuids)
        assert seen["TIDEGATE_GPU_UUIDS"] == seen["NVIDIA_VISIBLE_DEVICES"]
        assert (seen["TIDEGATE_GPU_MEMORY_MIB"], seen["TIDEGATE_GPU_CORE_PERCENT"]) == told


async def test_a_container_that_is_not_named_sees_none() -> None:
    notes = {"tidegate.dev/gpu-memory": "1Gi", "tidegate.dev/gpu-container": "main"}
    pod = mutated(a_pod(a_container(), a_container("proxy"), annotations=notes))
    granted = {"tidegate.dev/gpu-uuids": "GPU-1", "tidegate.dev/gpu-mem-mib": "1024"}
    pod["metadata"]["annotations"] |= granted
    main, proxy = pod["spec"]["containers"]
    assert (await seen_by(main, pod))["NVIDIA_VISIBLE_DEVICES"] == "GPU-1"
    assert await seen_by(proxy, pod) == {"NVIDIA_VISIBLE_DEVICES": "void"}
