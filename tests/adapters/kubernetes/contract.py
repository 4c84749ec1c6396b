# SPDX-License-Identifier: Apache-2.0
"""What we rely on from an API server: one suite, over the fake and over the real one."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from autoscaler.adapters.kubernetes.annotations import AnnotationWriter
from autoscaler.adapters.kubernetes.api import KubeApi
from autoscaler.adapters.kubernetes.election import LeaderElection, LeaseTiming
from autoscaler.adapters.kubernetes.errors import Conflict, NotFound
from autoscaler.adapters.kubernetes.events import EventRecorder, ObjectRef
from autoscaler.adapters.kubernetes.informer import Informer, Timing
from autoscaler.adapters.kubernetes.memory import ConfigMapMemoryStore
from autoscaler.adapters.kubernetes.resources import (
    CONFIG_MAPS,
    EVENTS,
    LEADER_WORKER_SETS,
    LEASES,
)
from autoscaler.core.lead_time import LeadTimes
from autoscaler.core.signals import ServiceId
from tests.adapters.kubernetes.waiting import until

TIMING = Timing(first_wait_s=0.05, longest_wait_s=0.5)


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace of an API server. `away`: it is down within, and has no history after it."""

    api: KubeApi
    namespace: str
    away: Callable[[], AbstractAsyncContextManager[None]]

    async def put(self, name: str, x: str) -> dict[str, Any]:
        """A config map, labelled: a real namespace has some of its own."""
        metadata = {"name": name, "labels": {"ours": "yes"}}
        whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": x}}
        return await self.api.create(CONFIG_MAPS.path(self.namespace), whole)

    def path(self, name: str = "") -> str:
        return CONFIG_MAPS.path(self.namespace, name)


class ApiContract:
    """Needs the fixture `place`."""

    async def test_an_object_lives_and_dies(self, place: Place) -> None:
        """Made once, changed in part, replaced only by who has seen it last, deleted."""
        api, path = place.api, place.path("a")
        made = await place.put("a", "1")
        with pytest.raises(Conflict):
            await place.put("a", "2")
        await api.patch(path, {"data": {"y": "2"}})
        with pytest.raises(Conflict):
            await api.replace(path, made)
        seen = await api.get(path)
        assert seen["data"] == {"x": "1", "y": "2"}
        await api.replace(path, {**seen, "data": {"z": "3"}})
        assert (await api.get(path))["data"] == {"z": "3"}
        await api.delete(path)
        with pytest.raises(NotFound):
            await api.get(path)
        with pytest.raises(NotFound):
            await api.patch(path, {"data": {}})

    async def test_a_list_in_pages_is_one_list(self, place: Place) -> None:
        for name in "abcde":
            await place.put(name, "1")
        params = {"labelSelector": "ours=yes"}
        async with aclosing(place.api.pages(place.path(), params)) as pages:
            seen = [page async for page in pages]
        assert [len(page.items) for page in seen] == [2, 2, 1]
        assert len({page.resource_version for page in seen}) == 1
        names = [raw["metadata"]["name"] for page in seen for raw in page.items]
        assert names == list("abcde")

    async def test_a_watch_tells_what_came_after_its_version(self, place: Place) -> None:
        made = await place.put("a", "1")
        await place.api.patch(place.path("a"), {"data": {"x": "2"}})
        await place.api.delete(place.path("a"))
        params = {
            "resourceVersion": made["metadata"]["resourceVersion"],
            "labelSelector": "ours=yes",
            "timeoutSeconds": 30,
        }
        seen = []
        async with aclosing(place.api.watch(place.path(), params)) as lines:
            async for line in lines:
                if line:
                    event = orjson.loads(line)
                    seen.append((event["type"], event["object"]["data"]["x"]))
                if len(seen) == 2:
                    break
        assert seen == [("MODIFIED", "2"), ("DELETED", "2")]

    async def test_an_informer_follows_and_survives_a_server_without_history(
        self, place: Place
    ) -> None:
        """What was deleted while it looked away is found missing, though no event ever says so."""
        for name in "abc":
            await place.put(name, "1")
        changes: list[tuple[str, str | None, str | None]] = []
        informer: Informer[str] = Informer(
            place.api,
            CONFIG_MAPS,
            parse=lambda raw: raw["data"]["x"],
            namespaces=(place.namespace,),
            label_selector="ours=yes",
            on_change=lambda key, old, new: changes.append((key[1], old, new)),
            timing=TIMING,
        )
        informer.start()
        await informer.wait_synced()
        await place.api.patch(place.path("a"), {"data": {"x": "2"}})
        await place.api.delete(place.path("b"))
        await until(lambda: len(changes) == 5, "both changes")
        assert changes[3:] == [("a", "1", "2"), ("b", "1", None)]
        async with place.away():
            await until(lambda: informer.trouble, "the trouble")
            assert len(informer.objects) == 2
        await place.api.delete(place.path("c"))
        await place.put("d", "4")
        await until(lambda: ("d", None, "4") in changes and ("c", "1", None) in changes, "news")
        assert dict(informer.objects) == {(place.namespace, "a"): "2", (place.namespace, "d"): "4"}
        await informer.stop()

    async def test_what_is_not_installed_is_known_to_be_absent(self, place: Place) -> None:
        informer: Informer[bool] = Informer(place.api, LEADER_WORKER_SETS, parse=lambda raw: True)
        informer.start()
        await informer.wait_synced()
        assert informer.absent
        await informer.stop()

    async def test_a_lease_goes_from_hand_to_hand(self, place: Place) -> None:
        patient = LeaseTiming(lease_s=600.0, renew_deadline_s=300.0, retry_s=60.0)
        one, two = (
            LeaderElection(
                place.api,
                namespace=place.namespace,
                name="tidegate",
                identity=identity,
                annotations={"tidegate.dev/channel": f"{identity}:8071"},
                timing=patient,
            )
            for identity in ("one", "two")
        )
        one.start()
        await until(lambda: one.leading, "the first to lead")
        two.start()
        await until(lambda: two.holder.identity == "one", "the second to know the first")
        assert two.holder.annotations == {"tidegate.dev/channel": "one:8071"}
        await one.stop()
        await until(lambda: two.leading, "the second to lead")
        lease = await place.api.get(LEASES.path(place.namespace, "tidegate"))
        assert lease["spec"]["holderIdentity"] == "two"
        assert lease["metadata"]["annotations"] == {"tidegate.dev/channel": "two:8071"}
        await two.stop()

    async def test_an_event_repeated_is_one_event(self, place: Place) -> None:
        uid = (await place.put("a", "1"))["metadata"]["uid"]
        ref = ObjectRef(CONFIG_MAPS, place.namespace, "a", uid)
        recorder = EventRecorder(place.api, instance="tidegate-0")
        recorder.start()
        for _ in range(3):
            recorder.record(ref, reason="Refused", message="an HPA is there")
            await recorder.stop()
            recorder.start()
        recorder.record(ref, reason="Asleep", message="idle")
        await recorder.stop()
        found = (await place.api.get(EVENTS.path(place.namespace)))["items"]
        said = {raw["reason"]: raw.get("series", {}).get("count", 1) for raw in found}
        assert said == {"Refused": 3, "Asleep": 1}
        assert recorder.dropped == 0

    async def test_an_annotation_leaves_the_rest_alone(self, place: Place) -> None:
        await place.put("a", "1")
        ref = ObjectRef(CONFIG_MAPS, place.namespace, "a")
        writer = AnnotationWriter(place.api)
        writer.start()
        writer.annotate(ref, {"tidegate.dev/status": "asleep"})
        for _ in range(1000):
            seen = await place.api.get(ref.path)
            if "annotations" in seen["metadata"]:
                break
            await asyncio.sleep(0.01)
        await writer.stop()
        assert seen["metadata"]["annotations"] == {"tidegate.dev/status": "asleep"}
        assert seen["metadata"]["labels"] == {"ours": "yes"}

    async def test_what_was_learned_is_found_again(self, place: Place) -> None:
        learned = {ServiceId("ns", f"s{n}"): LeadTimes((float(n),)) for n in range(20)}
        store = ConfigMapMemoryStore(place.api, namespace=place.namespace)
        assert await store.load() == {}
        await store.save(learned)
        await store.flush()
        await store.save({**learned, ServiceId("ns", "s1"): LeadTimes((1.0, 2.0))})
        await store.flush()
        found = await ConfigMapMemoryStore(place.api, namespace=place.namespace).load()
        assert found == {**learned, ServiceId("ns", "s1"): LeadTimes((1.0, 2.0))}
