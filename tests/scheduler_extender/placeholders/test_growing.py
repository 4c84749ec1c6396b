# SPDX-License-Identifier: Apache-2.0
"""Nodes are asked for slowly and taken back when nobody needs them; failures end nothing."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scheduler_extender.adapters.api import Api
from scheduler_extender.adapters.events import KubernetesReporter
from scheduler_extender.adapters.placeholders import KubernetesPlaceholders
from scheduler_extender.core import annotations as named
from scheduler_extender.core.annotations import PodSeen, pod_seen
from scheduler_extender.errors import Refused, Unreachable
from scheduler_extender.placeholders.growing import (
    GRACE_S,
    LOOK_S,
    MOST_LABELLED,
    MOST_TOLD,
    PAUSE_S,
    Growth,
)
from scheduler_extender.placeholders.plan import NAME, Wanted, pool_key, told
from scheduler_extender.settings import PlaceholderSettings, Settings
from tests.scheduler_extender.builders import Extender, a_node
from tests.scheduler_extender.fakes import FakeReporter, a_pod
from tests.scheduler_extender.placeholders.test_placeholders import (
    HALF,
    WHOLE,
    full,
    placed,
    show,
    waits,
)
from tests.scheduler_extender.test_process import BindingApiServer, a_process, until

HOME = "home"


@dataclass
class FakePlaceholders:
    """Shown by the watch at once. `down`: the API server does not answer."""

    extender: Extender
    made: list[Wanted] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    labelled: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # in this order
    down: bool = False

    async def make(self, wanted: Wanted) -> None:
        self._answer()
        self.asked.append(f"make {wanted.name}")
        raw = a_pod(wanted.name, uid=f"uid-{wanted.name}-{len(self.made)}")
        raw["metadata"]["namespace"] = HOME
        raw["metadata"]["labels"] = {named.PLACEHOLDER: pool_key(wanted.pool)}
        self.made.append(wanted)
        show(self.extender, raw)

    async def remove(self, pod: PodSeen) -> None:
        self._answer()
        self.removed.append(pod.name)
        self.extender.state.pod_gone(pod.uid)

    async def label(self, pod: PodSeen) -> None:
        self._answer()
        self.labelled.append(pod.name)
        self.asked.append(f"label {pod.name}")
        raw = self.extender.cluster.pods[pod.namespace, pod.name]
        raw["metadata"]["labels"] = {named.HAS_GPUS: "true"}
        show(self.extender, raw)

    def _answer(self) -> None:
        if self.down:
            raise Unreachable("no answer", after_s=0.0)


class Story:
    """A full node, and time that passes."""

    def __init__(self, extender: Extender, *, most: int = 2) -> None:
        self.extender = extender
        self.placeholders = FakePlaceholders(extender)
        self.told = FakeReporter()
        self.growth = Growth(
            extender.state,
            self.placeholders,
            reporter=self.told,
            scheduler=Settings().scheduler,
            namespace=HOME,
            most=most,
        )

    async def passes(self, seconds: float) -> "Story":
        """With a look every second."""
        clock = self.extender.cluster.clock
        for _ in range(round(seconds)):
            clock.s += 1
            await self.growth.look(now_s=clock.s)
        return self

    @property
    def made(self) -> list[tuple[str, ...]]:
        """For whom a node was asked."""
        return [one.pods for one in self.placeholders.made]


@pytest.fixture
async def story() -> Story:
    extender = await full(a_node("n"))
    for name in ("n-0", "n-1"):
        raw = extender.cluster.pods["ns", name]
        raw["metadata"]["labels"] = {named.HAS_GPUS: "true"}
        show(extender, raw)
    return Story(extender)


async def test_a_node_is_asked_for_once_a_pod_has_waited_for_long(story: Story) -> None:
    waits(story.extender, "late", WHOLE, "n")
    await story.passes(GRACE_S)
    assert story.made == []
    await story.passes(LOOK_S)
    assert story.made == [("ns/late",)]
    await story.passes(2 * PAUSE_S)
    assert len(story.made) == 1
    assert story.placeholders.removed == []


async def test_more_is_asked_for_only_after_a_pause(story: Story) -> None:
    waits(story.extender, "late-0", {named.COUNT: "2"}, "n")
    await story.passes(GRACE_S + LOOK_S)
    waits(story.extender, "late-1", {named.COUNT: "2"}, "n")
    await story.passes(PAUSE_S - LOOK_S)
    assert len(story.made) == 1
    await story.passes(2 * LOOK_S)
    assert story.made == [("ns/late-0",), ("ns/late-1",)]


async def test_a_pod_that_is_placed_takes_its_placeholder_along(story: Story) -> None:
    waits(story.extender, "late", WHOLE, "n")
    await story.passes(GRACE_S + LOOK_S)
    raw = story.extender.cluster.pods["ns", "late"]
    show(story.extender, {**raw, "spec": {**raw["spec"], "nodeName": "n"}})
    await story.passes(LOOK_S)
    assert story.placeholders.removed == [f"{NAME}0"]


async def test_what_a_new_list_lacks_is_gone(story: Story) -> None:
    """The watch missed the ends of both."""
    waits(story.extender, "late", WHOLE, "n")
    await story.passes(GRACE_S + LOOK_S)
    state, pods = story.extender.state, story.extender.cluster.pods
    for name in (("ns", "late"), (HOME, f"{NAME}0")):
        del pods[name]
    story.extender.watch.list_all(began_s=story.extender.cluster.clock.s)
    assert (state.unplaced, state.placeholders) == ({}, {})


async def test_a_pod_that_replaces_another_keeps_its_placeholder(story: Story) -> None:
    waits(story.extender, "old", WHOLE, "n")
    await story.passes(GRACE_S + LOOK_S)
    story.extender.cluster.delete("old")
    waits(story.extender, "new", WHOLE, "n")
    await story.passes(GRACE_S + 2 * PAUSE_S)
    assert (len(story.made), story.placeholders.removed) == (1, [])


async def test_who_is_about_to_be_placed_asks_for_nothing(story: Story) -> None:
    """Pods are evicted for the one; the Binding of the other is under way."""
    extender = story.extender
    waits(extender, "important", WHOLE, "n")
    raw = extender.cluster.pods["ns", "important"]
    raw["status"]["nominatedNodeName"] = "n"
    show(extender, raw)
    extender.cluster.delete("n-0")
    extender.cluster.delete("n-1")
    waits(extender, "held", WHOLE, "n")
    extender.watch.deliver()
    extender.binds.remember("uid-held", told(extender.state.unplaced["uid-held"]).demand)
    await extender.bind(extender.cluster.pods["ns", "held"], "n")
    assert extender.state.ledger.entry("uid-held") is not None
    await story.passes(GRACE_S + PAUSE_S)
    assert story.made == []


async def test_a_nomination_that_cannot_be_kept_keeps_no_node_away(story: Story) -> None:
    """Its node is gone, or was not used in time, and nobody takes it off the pod."""
    waits(story.extender, "late", WHOLE, "n")
    story.extender.cluster.write_status("late", nominatedNodeName="gone")
    story.extender.watch.deliver()
    story.extender.preempting.look(now_s=story.extender.cluster.clock.s)
    await story.passes(GRACE_S + LOOK_S)
    assert story.made == [("ns/late",)]


async def test_a_pod_of_another_scheduler_brings_no_node(story: Story) -> None:
    """Nobody would ask us to place it there."""
    pod = waits(story.extender, "theirs", WHOLE)
    raw = story.extender.cluster.pods["ns", "theirs"]
    for scheduler in ("default-scheduler", None):
        show(story.extender, {**raw, "spec": {**raw["spec"], "schedulerName": scheduler}})
        await story.passes(GRACE_S + LOOK_S)
    assert (pod.uid in story.extender.state.unplaced, story.made) == (True, [])


async def test_a_wish_that_no_node_can_meet_is_told_on_the_pod(story: Story) -> None:
    waits(story.extender, "big", {named.COUNT: "3"}, "n")
    await story.passes(GRACE_S + LOOK_S)
    assert {line.split(":")[0] for line in story.told.told} == {"big"}
    assert story.made == []


async def test_each_of_many_such_wishes_is_told_in_its_turn(story: Story) -> None:
    names = {f"big-{number}" for number in range(MOST_TOLD + 5)}
    for name in names:
        waits(story.extender, name, {named.COUNT: "3"}, "n")
    await story.passes(GRACE_S + 1)
    assert len(story.told.told) == MOST_TOLD
    await story.passes(LOOK_S)
    assert {line.split(":")[0] for line in story.told.told} == names


async def test_pods_without_the_label_get_it_before_a_node_is_asked_for(story: Story) -> None:
    """Else the placeholder would go beside them, and bring none."""
    raw = story.extender.cluster.pods["ns", "n-0"]
    raw["metadata"]["labels"] = {}
    show(story.extender, raw)
    waits(story.extender, "late", WHOLE, "n")
    await story.passes(GRACE_S + LOOK_S)
    assert story.placeholders.asked == ["label n-0", f"make {NAME}0"]


async def test_pods_that_are_bound_all_the_time_do_not_delay_a_node(story: Story) -> None:
    """Each of them lacks the label at first, where the API server is older than 1.35."""
    story.extender.state.node_seen(a_node("busy", cards=8))
    waits(story.extender, "late", WHOLE, "n")
    for number in range(6):
        await placed(story.extender, f"busy-{number}", HALF, node="busy")
        await story.passes(LOOK_S)
    assert story.made == [("ns/late",)]


async def test_no_node_is_asked_for_while_pods_lack_the_label(story: Story) -> None:
    """There are more than one look has time for."""
    extender = story.extender
    for number in range(MOST_LABELLED + 1):
        granted = {named.GRANTED_UUIDS: "x", named.GRANTED_MIB: "1", named.GRANTED_CORE: "1"}
        show(extender, a_pod(f"old-{number}", annotations=granted, node="unknown"))
    waits(extender, "late", WHOLE, "n")
    await story.passes(GRACE_S + 1)
    assert (len(story.placeholders.labelled), story.made) == (MOST_LABELLED, [])
    await story.passes(LOOK_S)
    assert (len(story.placeholders.labelled), len(story.made)) == (MOST_LABELLED + 1, 1)


async def test_an_api_server_that_is_down_delays_it_and_ends_nothing(story: Story) -> None:
    waits(story.extender, "late", WHOLE, "n")
    story.placeholders.down = True
    await story.passes(GRACE_S + LOOK_S)
    story.placeholders.down = False
    await story.passes(PAUSE_S + LOOK_S)
    assert len(story.made) == 1
    story.extender.cluster.delete("late")
    story.extender.watch.deliver()
    story.placeholders.down = True
    await story.passes(LOOK_S)
    story.placeholders.down = False
    await story.passes(LOOK_S)
    assert story.placeholders.removed == [f"{NAME}0"]


async def test_switched_off_it_takes_its_own_placeholders_away_and_makes_none() -> None:
    extender = await full(a_node("n"))
    waits(extender, "late", WHOLE, "n")
    for namespace in (HOME, "another"):
        raw = a_pod("left", uid=f"uid-{namespace}")
        raw["metadata"] |= {"namespace": namespace, "labels": {named.PLACEHOLDER: "x"}}
        show(extender, raw)
    story = await Story(extender, most=0).passes(GRACE_S + PAUSE_S)
    assert (story.made, story.placeholders.removed) == ([], ["left"])
    assert [pod.namespace for pod in extender.state.placeholders.values()] == ["another"]


# The real one, against an API server that is faked at the socket.


@pytest.fixture
async def server() -> AsyncIterator[BindingApiServer]:
    api = BindingApiServer()
    await api.up()
    yield api
    await api.down()


POOL = (
    '{"affinity":{"nodeSelectorTerms":[{"matchExpressions":[]}]},'
    '"nodeSelector":{"pool":"big"},"tolerations":[{"key":"gpu","operator":"Exists"}]}'
)
WANTED = Wanted(f"{NAME}0", POOL, cpu_milli=2500, ram_mib=4096, pods=("ns/a", "ns/b"))


async def test_a_placeholder_asks_for_no_gpu_and_goes_where_its_pods_may(
    server: BindingApiServer, tmp_path: Path
) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        there = KubernetesPlaceholders(
            api, PlaceholderSettings(), namespace=HOME, owner=("me", "my-uid")
        )
        await there.make(WANTED)
        raw = server.objects["", "pods", HOME, WANTED.name]
        with pytest.raises(Refused):
            await there.make(WANTED)
        await there.remove(pod_seen(raw))
        assert ("", "pods", HOME, WANTED.name) not in server.objects
    spec = raw["spec"]
    assert spec["containers"][0]["resources"]["requests"] == {"cpu": "2500m", "memory": "4096Mi"}
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true", "pool": "big"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert spec["affinity"]["nodeAffinity"][named.REQUIRED]["nodeSelectorTerms"]
    keys = [term["topologyKey"] for term in spec["affinity"]["podAntiAffinity"][named.REQUIRED]]
    assert keys == ["kubernetes.io/hostname"] * 2
    assert "schedulerName" not in spec  # the cluster's own
    assert pod_seen(raw).placeholder == pool_key(POOL)
    assert raw["metadata"]["ownerReferences"][0]["uid"] == "my-uid"


async def test_a_pod_with_gpus_is_labelled_by_its_binding_and_one_without_later(
    server: BindingApiServer, tmp_path: Path
) -> None:
    await server.put_node("n1")
    pod = await server.put_pod(a_pod("p", annotations=HALF))
    async with a_process(server, tmp_path) as (client, _):
        asked = {"PodName": "p", "PodNamespace": "ns", "PodUID": pod["metadata"]["uid"]}
        await client.post("/bind", json={**asked, "Node": "n1"})
    bound = server.objects["", "pods", "ns", "p"]
    assert bound["metadata"]["labels"] == {named.HAS_GPUS: "true"}
    assert pod_seen(bound).labelled
    async with Api(server.kubeconfig(tmp_path)) as api:
        other = await server.put_pod(a_pod("other", annotations=HALF))
        there = KubernetesPlaceholders(api, PlaceholderSettings(), namespace=HOME)
        await there.label(pod_seen(other))
    assert pod_seen(server.objects["", "pods", "ns", "other"]).labelled


async def test_a_process_takes_away_what_was_left_and_knows_who_waits(
    server: BindingApiServer, tmp_path: Path
) -> None:
    """It was killed, and is started again without placeholders."""
    raw = a_pod(f"{NAME}0")
    raw["metadata"]["labels"] = {named.PLACEHOLDER: "x"}
    path = f"/api/v1/namespaces/here/pods/{NAME}0"
    raw["metadata"]["namespace"] = "here"
    await server.put(path, raw)
    async with a_process(server, tmp_path):

        async def is_gone() -> bool:
            return ("", "pods", "here", f"{NAME}0") not in server.objects

        await until(is_gone)


async def test_a_pod_is_told_in_its_own_namespace(server: BindingApiServer, tmp_path: Path) -> None:
    async with Api(server.kubeconfig(tmp_path)) as api:
        reporter = KubernetesReporter(api, instance="pod")
        seen = pod_seen(a_pod("p"))
        for _ in range(2):
            reporter.tell_pod(seen, reason="Why", message="so")
        while reporter._writing:
            await next(iter(reporter._writing))
    ((key, event),) = [(key, raw) for key, raw in server.objects.items() if key[1] == "events"]
    assert key[2] == "ns"
    assert event["regarding"]["uid"] == seen.uid
