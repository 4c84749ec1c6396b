# SPDX-License-Identifier: Apache-2.0
"""All but the model servers fails while requests go on: none is lost, and no count falls."""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from tests.lab.installed import Tidegate
from tests.lab.lab import Lab
from tests.lab.place import Place, a_deployment, a_service
from tests.lab.traffic import Clients, Tally

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4]]}
CLIENTS = 24
# The server makes each request wait this long for others: so many clients keep 3 replicas busy.
DELAY = "100ms"
PER_REPLICA = 8
REQUESTS = 2500  # through each fault: ten thousand in all


@pytest.fixture
def busy(lab: Lab, tidegate: Tidegate) -> Iterator[Place]:
    """A plain Deployment and Service that Tidegate scales, asleep."""
    with lab.namespace("faults") as namespace:
        place = Place(lab, namespace)
        container = {
            "name": "c",
            "image": "kserve/sklearnserver:lab",
            "args": ["--model_name=iris", "--http_port=8080", f"--queue_delay={DELAY}"],
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        }
        spec = {"containers": [container], "terminationGracePeriodSeconds": 60}
        deployment = a_deployment("iris", 0, spec)
        deployment["metadata"]["annotations"] = {
            "tidegate.dev/enabled": "true",
            "tidegate.dev/max-replicas": "4",
            "tidegate.dev/targets": f"concurrency={PER_REPLICA}",
            "tidegate.dev/scale-to-zero-after": "20s",
        }
        place.apply(deployment, a_service("iris"))
        lab.wait_for(lambda: in_path(place), what="the activator's slice", within_s=60)
        # kube-proxy may still be backing off from an API server that was away.
        lab.wait_for(lambda: place.answers("iris"), what="an activator there", within_s=90)
        yield place


def scale(place: Place) -> int:
    """The count asked for; -1 while the API server cannot be asked."""
    words = ("get", "deployment", "iris", "-o", "jsonpath={.spec.replicas}")
    said = place.lab.kubectl("-n", place.namespace, *words, check=False).strip()
    return int(said) if said.isdecimal() else -1


def restart_controller(lab: Lab, tidegate: Tidegate) -> None:
    """As an upgrade does it: one after the other, gracefully."""
    lab.kubectl("rollout", "restart", "deployment/tidegate-controller", "-n", tidegate.namespace)
    tidegate.wait_ready()


def restart_activators(lab: Lab, tidegate: Tidegate) -> None:
    lab.kubectl("rollout", "restart", "deployment/tidegate-activator", "-n", tidegate.namespace)
    tidegate.wait_ready()


def kill_the_leader(lab: Lab, tidegate: Tidegate) -> None:
    """kill -9, and no word to anybody: it comes back to its own Lease, or another takes over."""
    before = tidegate.renewed()
    lab.kill_pod(tidegate.leader())
    lab.wait_for(lambda: tidegate.renewed() > before, what="a renewed Lease", within_s=60)
    tidegate.wait_ready()


def stop_the_api_server(lab: Lab, tidegate: Tidegate) -> None:
    """Half a minute without; etcd's history is dropped meanwhile, so every watch must list anew."""
    lab.stop_component("kube-apiserver")
    time.sleep(30)
    lab.compact()
    lab.start_component("kube-apiserver")
    tidegate.wait_ready(within_s=90)


FAULTS: tuple[Callable[[Lab, Tidegate], None], ...] = (
    restart_controller,
    restart_activators,
    kill_the_leader,
    stop_the_api_server,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost_and_no_count_falls_while(
    lab: Lab, tidegate: Tidegate, busy: Place, fault: Callable[[Lab, Tidegate], None]
) -> None:
    """Under steady load from zero up: the fault, a while after it, and every answer counted."""
    url = f"http://{busy.cluster_ip('iris')}/v1/models/iris:predict"
    counts: list[int] = []
    over = False

    async def watch() -> None:
        while not over:
            counts.append(await asyncio.to_thread(scale, busy))
            await asyncio.sleep(0.5)

    async with Clients(url, ROWS, count=CLIENTS) as clients:
        watching = asyncio.create_task(watch())
        sending = asyncio.create_task(clients.until(lambda: over))
        settled = CLIENTS // PER_REPLICA
        await asyncio.to_thread(
            lab.wait_for, lambda: scale(busy) >= settled, what="enough replicas", within_s=60
        )
        await asyncio.to_thread(fault, lab, tidegate)
        await asyncio.sleep(10)  # a new leader has looked around by then
        await asyncio.to_thread(
            lab.wait_for, lambda: clients.sent >= REQUESTS, what="requests", within_s=240
        )
        over = True
        tally: Tally = await sending
        await watching
    assert not tally.lost, tally
    known = [count for count in counts if count >= 0]
    assert falls(known) == [], known


async def test_a_new_leader_wakes_what_the_old_one_put_to_sleep(
    lab: Lab, tidegate: Tidegate, busy: Place
) -> None:
    """Requests that come while nobody leads are held, and answered once somebody does."""
    url = f"http://{busy.cluster_ip('iris')}/v1/models/iris:predict"
    lab.kill_pod(tidegate.leader())
    async with Clients(url, ROWS, count=8) as clients:
        tally = await clients.storm()
    assert not tally.lost, tally


def in_path(place: Place) -> bool:
    """Whether the activators are listed for the Service."""
    label = "endpointslice.kubernetes.io/managed-by=tidegate.dev"
    words = ("get", "endpointslices", "-l", label, "-o", "name")
    return bool(place.kubectl(*words).strip())


def falls(counts: list[int]) -> list[tuple[int, int]]:
    return [(before, after) for before, after in pairwise(counts) if after < before]
